"""The reconciler: makes what runs on the nodes match what the catalog wants, for ever."""

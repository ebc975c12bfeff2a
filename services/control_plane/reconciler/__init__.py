"""The reconciler: one pass over one app, which brings what runs closer to what the catalog wants."""

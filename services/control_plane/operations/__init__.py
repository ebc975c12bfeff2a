"""Long-running operations: begun by commands, ended by what the reconciler observes."""

"""The control plane: the catalog of apps, the fleet, and the reconciler that makes one match the other."""

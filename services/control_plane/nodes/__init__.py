"""The control plane's side of a node: one client per node, with deadlines and bounded retries."""

"""The control plane's side of a node: a client with deadlines and bounded retries, and the node's stream."""

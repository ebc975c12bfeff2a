"""What the control plane and the node share: errors, watch feeds, interceptors, server lifecycle."""

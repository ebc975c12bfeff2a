"""The fleet: environments and the nodes registered in them."""

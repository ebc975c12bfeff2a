"""The instances of one node: what they are, how they live, which of them serves, and how they are watched."""

"""The controller: which app is looked at when, on how many nodes at once, and again after which pause."""

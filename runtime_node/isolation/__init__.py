"""Keeps what one instance does in a shared process away from the others, and undoes it at its stop."""

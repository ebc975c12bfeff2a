"""A board of posts."""

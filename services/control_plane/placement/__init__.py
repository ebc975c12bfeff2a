"""Placement: which copies of an app there are to be, and on which nodes. Pure: state in, assignment out."""

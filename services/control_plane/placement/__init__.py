"""Placement: which node an app runs on. Pure: state in, assignment out."""

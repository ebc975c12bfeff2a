"""The shop of twin b: the same module names as the other twin's, other contents."""

WHO = "twin b"

"""The shop of twin a: the same module names as the other twin's, other contents."""

WHO = "twin a"

"""The command line: a client of the public API alone, for any server of the same major version."""

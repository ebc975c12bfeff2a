"""Why the local stack cannot run here."""


class StartError(Exception):
    """The stack cannot run here; the message says why and what to do."""

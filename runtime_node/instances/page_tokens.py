"""Pages of what a node lists: their sizes, and the tokens that lead from one to the next."""

from __future__ import annotations

import base64

from services.rpc.errors import SupervisorError

DEFAULT_PAGE, MAX_PAGE = 50, 1000


def write_token(parent: str, last: str) -> str:
    """Return the token of the page that follows a name, for the same parent."""
    return base64.urlsafe_b64encode(f"{parent}\n{last}".encode()).decode().rstrip("=")


def read_token(token: str, parent: str) -> str:
    """Return the name after which a page begins. Raises INVALID_PAGE_TOKEN."""
    try:
        raw = base64.urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4)).decode()
    except ValueError:
        raw = ""
    of, _, last = raw.partition("\n")
    if of != parent or not last:
        raise SupervisorError(
            "INVALID_PAGE_TOKEN",
            "The page token is none of this node's, or the parent changed between pages.",
        )
    return last

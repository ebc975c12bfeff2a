"""Tickets for reading apps' data: each lets one reader in, once, within a minute. Pure."""

from __future__ import annotations

import hmac
from collections.abc import Callable

TICKET_BYTES = 16
VALID_SECONDS = 60.0


class Tickets:
    """By whom they are for: a newer one takes the place of an older one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives seconds, monotonic."""
        self._clock = clock
        self._good: dict[str, tuple[bytes, float]] = {}

    def put(self, what: str, ticket: bytes) -> None:
        """Let a ticket be good for something, from now on."""
        self._good[what] = ticket, self._clock() + VALID_SECONDS

    def drop(self, what: str) -> None:
        """Let no ticket be good for it."""
        self._good.pop(what, None)

    def take(self, ticket: bytes) -> str | None:
        """Return what a ticket is good for, which it is not any more; None for any other."""
        found = None
        now = self._clock()
        # All are compared, each in the same time: how long it takes tells nothing of how near a guess was.
        for what, (known, until) in list(self._good.items()):
            if until <= now:
                del self._good[what]
            elif hmac.compare_digest(known, ticket):
                found = what
        if found is not None:
            del self._good[found]
        return found

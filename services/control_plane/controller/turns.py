"""Spreads what there is very much of over turns of the loop: calls and heartbeats have theirs in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

TURN_SECONDS = 0.001
"""Of one turn, for all that has waited for it."""

BETWEEN = 2
"""Turns between two such: gRPC takes up one call in two or three, however many wait, so a thousand nodes that
come back at once are answered at this pace. One in which nothing is to be done takes some 20 µs."""


class Turn:
    """Calls back in a turn to come, unless it is cancelled before."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._left = BETWEEN
        self._handle = asyncio.get_running_loop().call_soon(self._count)

    def cancel(self) -> None:
        """Call nobody any more."""
        self._handle.cancel()

    def _count(self) -> None:
        if not self._left:
            self._callback()
            return
        self._left -= 1
        self._handle = asyncio.get_running_loop().call_soon(self._count)

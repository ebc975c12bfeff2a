"""Ends a stream on which nothing has come for too long; not because this program itself stood still.

One timer per stream and silence, not one per message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

STALL = 0.5
"""Seconds by which a timer is late if the loop was kept from running: what has come is not read yet.
To begin a thousand streams anew would keep it from running on."""


class Silence:
    """Watches one stream, from its beginning until `end`. Lives on one loop."""

    def __init__(self, seconds: float, cut: Callable[[], object]) -> None:
        """`cut` ends the stream when it was silent for so long."""
        self._seconds = seconds
        self._cut = cut
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self.is_over = False
        """The stream was silent for too long, and has been cut."""
        self._timer = self._loop.call_at(self._heard + seconds, self._look, self._heard + seconds)

    def heard(self) -> None:
        """Something has come."""
        self._heard = self._loop.time()

    def end(self) -> None:
        """Watch no longer."""
        self._timer.cancel()

    def _look(self, due: float) -> None:
        now = self._loop.time()
        if now > due + STALL:
            self._heard = max(self._heard, now - self._seconds + STALL)  # let it be read first
        if now >= self._heard + self._seconds:
            self.is_over = True
            self._cut()
            return
        due = self._heard + self._seconds
        self._timer = self._loop.call_at(due, self._look, due)

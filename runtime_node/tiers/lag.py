"""How late a loop of another thread is, measured by a callback that is sent to it now and then."""

from __future__ import annotations

import asyncio
import time

MIN_INTERVAL = 0.5


class LoopLag:
    """The delay of one loop. `read` may be called from any one thread; it never waits."""

    __slots__ = ("_last", "_loop", "_pending", "_sent")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._last: float | None = None
        self._pending = False
        self._sent = 0.0

    def read(self) -> float | None:
        """Return the last delay in seconds, or how long the present one lasts, and ask anew."""
        now = time.monotonic()
        if self._pending:
            return max(self._last or 0.0, now - self._sent)
        if now - self._sent >= MIN_INTERVAL:
            self._sent = now
            self._pending = True
            try:
                self._loop.call_soon_threadsafe(self._answer)
            except RuntimeError:
                return None
        return self._last

    def _answer(self) -> None:
        # Whole milliseconds: finer differences are no news to a watcher.
        self._last = round(time.monotonic() - self._sent, 3)
        self._pending = False

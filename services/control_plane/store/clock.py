"""The catalog's time: the wall clock's, but it never goes back and never stands still.

A wall clock that is set back by an hour would otherwise stop all times for an hour, and with them every
deadline and expiry.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def wall_clock() -> int:
    """Return the time in microseconds since the Unix epoch."""
    return time.time_ns() // 1000


def monotonic_clock() -> int:
    """Return microseconds since some moment, whatever the wall clock is set to."""
    return time.monotonic_ns() // 1000


class SteadyClock:
    """Follows `wall` forwards at once; where that is behind, goes on at its own pace by `elapsed`.

    Both give microseconds; `least` is a time that has been already. Safe from any thread.
    """

    def __init__(self, wall: Callable[[], int], elapsed: Callable[[], int], least: int) -> None:
        self._wall = wall
        self._elapsed = elapsed
        self._lock = threading.Lock()
        self._since = elapsed()
        self._now = least

    def __call__(self) -> int:
        """Return the time in microseconds since the Unix epoch."""
        with self._lock:
            return self._advance()

    def reach(self, moment: int) -> None:
        """Go on from a time that has been already somewhere else, if this is behind it."""
        with self._lock:
            # First: what has passed here until now is part of that time, and must not be added to it.
            self._now = max(self._advance(), moment)

    def _advance(self) -> int:
        elapsed = self._elapsed()
        self._now = max(self._now + elapsed - self._since, self._wall())
        self._since = elapsed
        return self._now


class RemoteClock:
    """The clock of another machine: as last told, and carried on by `elapsed`. Safe from any thread."""

    def __init__(self, now: int, elapsed: Callable[[], int]) -> None:
        self._elapsed = elapsed
        self._ahead = now - elapsed()

    def tell(self, now: int) -> None:
        """Set it to what the other machine's clock shows, µs."""
        self._ahead = now - self._elapsed()

    def __call__(self) -> int:
        """Return the time in microseconds since the Unix epoch."""
        return self._elapsed() + self._ahead

"""Whose turn it is: keys wait in lanes, each lane with its own bound on work under way.

A lane that hangs, such as a node that has gone silent, holds up nobody in another one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class Turns:
    """Gives each key its turn, one at a time per key, in the order of a lane. Lives on one loop."""

    def __init__(self, begin: Callable[[str], None], *, width: int) -> None:
        """`begin(key)` starts a key's work, which ends with `done(key)`; `width` bounds a lane."""
        self._begin = begin
        self._width = width
        self._waiting: dict[str, deque[str]] = {}
        self._queued: dict[str, str] = {}
        self._running: dict[str, str] = {}
        self._under_way: dict[str, int] = {}
        self._again: dict[str, str] = {}
        self._closed = False

    def add(self, key: str, lane: str) -> None:
        """Have a key worked on in a lane, once more if its work is under way."""
        if key in self._running:
            self._again[key] = lane
        elif key not in self._queued:
            self._queued[key] = lane
            self._waiting.setdefault(lane, deque()).append(key)
            self._fill(lane)

    def done(self, key: str) -> None:
        """Note the end of a key's work and give the next one its turn."""
        lane = self._running.pop(key)
        self._under_way[lane] -= 1
        if not self._under_way[lane]:
            del self._under_way[lane]
        again = self._again.pop(key, None)
        if again is not None:
            self.add(key, again)
        self._fill(lane)

    def count(self) -> tuple[int, int]:
        """Return how many keys wait, and how many are under way. Safe from any thread."""
        return len(self._queued), len(self._running)

    def close(self) -> None:
        """Begin nothing more."""
        self._closed = True

    def _fill(self, lane: str) -> None:
        waiting = self._waiting.get(lane)
        while waiting and not self._closed and self._under_way.get(lane, 0) < self._width:
            key = waiting.popleft()
            del self._queued[key]
            self._running[key] = lane
            self._under_way[lane] = self._under_way.get(lane, 0) + 1
            self._begin(key)
        if waiting is not None and not waiting:
            del self._waiting[lane]

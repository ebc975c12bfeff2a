"""How soon an app may be started again: at once a few times, then after growing pauses.

For starts that succeed and come to nothing: another control plane that takes the same node's apps away, or
a node that knows newer epochs again and again. What fails is the queue's to put off.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from services.control_plane.store.records import Version

FREE = 3
"""Starts of one version in one life of its node that need no pause."""

FIRST_PAUSE, LONGEST_PAUSE = 0.4, 60.0
"""Seconds."""

KEPT_SECONDS = 2 * LONGEST_PAUSE
"""How long after a start the next one counts as another of the same row."""


@dataclass(slots=True)
class _Row:
    target: Version
    incarnation: str
    starts: int
    last: float
    pause: float


class Pace:
    """Counts the starts of each app. Memory is bounded by the apps started within KEPT_SECONDS."""

    def __init__(
        self, clock: Callable[[], float], uniform: Callable[[float, float], float] = random.uniform
    ) -> None:
        """`clock` gives seconds; `uniform` a random number between two."""
        self._clock = clock
        self._uniform = uniform
        self._rows: dict[str, _Row] = {}
        """By app, the one started least recently first."""

    def wait(self, app: str, target: Version, incarnation: str) -> float:
        """Return the seconds until an app may be started; 0 for now.

        What somebody has changed, and what a new life of the node lost, is started at once.
        """
        row = self._rows.get(app)
        if row is None or (row.target, row.incarnation) != (target, incarnation):
            return 0.0
        return max(0.0, row.last + row.pause - self._clock())

    def started(self, app: str, target: Version, incarnation: str) -> None:
        """Note a start."""
        now = self._clock()
        row = self._rows.pop(app, None)
        if row is None or (row.target, row.incarnation) != (target, incarnation):
            row = _Row(target, incarnation, 0, now, 0.0)
        elif now > row.last + KEPT_SECONDS:
            row.starts = 0
        row.starts += 1
        row.last = now
        growth = max(0, row.starts - FREE)
        row.pause = 0.0 if not growth else _jittered(growth, self._uniform)
        self._rows[app] = row
        self._forget(now)

    def renewed(self, app: str, target: Version) -> None:
        """Note that it is the control plane itself that has given the app a new epoch."""
        row = self._rows.get(app)
        if row is not None:
            row.target = target

    def _forget(self, now: float) -> None:
        while self._rows:
            app, oldest = next(iter(self._rows.items()))
            if now <= oldest.last + KEPT_SECONDS:
                return
            del self._rows[app]


def _jittered(growth: int, uniform: Callable[[float, float], float]) -> float:
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(growth, 16)) * uniform(0.5, 1.0)

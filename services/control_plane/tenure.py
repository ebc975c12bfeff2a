"""A replica's time as the leader under one term, by its own clock. Pure: asks nobody.

It ends before another replica's can begin, for it counts from before the lead was asked for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass


def steady_seconds() -> float:
    """Return seconds since some moment, those in which the machine slept included."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a lead lasts, in seconds."""

    lasts: float = 5.0
    """By the database's clock, from each renewal; then another may lead."""
    renew: float = 1.0
    """Between two renewals, and between two tries to lead or to renew what failed."""
    margin: float = 0.5
    """Before the end, for the leader's work to stop."""


class Tenure:
    """One term of one leader. `holds` is safe from any thread."""

    def __init__(self, term: int, sent: float, pace: Pace, clock: Callable[[], float]) -> None:
        """`sent` is when the lead was asked for, by `clock`; a pace without end makes a tenure without."""
        self.term = term
        self._pace = pace
        self._clock = clock
        self._until = -math.inf
        self.extend(sent)

    @classmethod
    def endless(cls, term: int = 1) -> Tenure:
        """Return that of a leader whom nobody can follow."""
        return cls(term, 0.0, Pace(lasts=math.inf), steady_seconds)

    @property
    def until(self) -> float:
        """When its time is up, by its clock."""
        return self._until

    @property
    def holds(self) -> bool:
        """Whether this replica leads under this term now.

        To be looked at right before anything is done that only a leader may do, and that is not a write: the
        store checks those itself.
        """
        return self._clock() < self._until

    def extend(self, sent: float) -> None:
        """Go on: the database has agreed to what was asked for at `sent`."""
        self._until = sent + self._pace.lasts - self._pace.margin

    def end(self) -> None:
        """Lead no longer."""
        self._until = -math.inf

"""The node's lease: its right to answer for apps that are CONSISTENT, by its own clock. Pure.

Changed on the control loop and read on any thread, at each response: two comparisons.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from services.rpc.errors import SupervisorError

# Asked at each response: a call into C, without one of Python's around it.
steady_seconds: Callable[[], float] = partial(
    time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
)
"""Seconds since some moment, those in which the machine slept included."""


class ServingRight(Protocol):
    """What has to be held to answer for an app, from a request's beginning to its last byte."""

    @property
    def held(self) -> bool:
        """Whether the node may answer for the app now."""

    @property
    def stretch(self) -> int:
        """Number of the span without a gap in which it is held now, or was last."""

    def covers(self, stretch: int) -> bool:
        """Tell whether what was begun in a stretch may leave now."""


class Lease:
    """The lease of one life of a node.

    A *stretch* is a span without a gap in which it is held: what was begun in one stretch is not finished in
    another, for the app may have run elsewhere in between.
    """

    __slots__ = ("_clock", "_told_alone", "alone", "incarnation", "stretch", "term", "until")

    def __init__(
        self, incarnation: str, clock: Callable[[], float] = steady_seconds, *, endless: bool = False
    ) -> None:
        """`endless`: nobody grants leases here, and nobody gives this node's apps to another one."""
        self.incarnation = incarnation
        self._clock = clock
        self.term = 0
        """Of the newest leader that this life of the node knows."""
        self.until = math.inf if endless else -math.inf
        self.stretch = 0
        self.alone = False
        """Whether the node is the only one of its environment, as it was told last."""
        self._told_alone = 0, -math.inf
        """Term and heartbeat's time of the grant that told it."""

    @property
    def held(self) -> bool:
        """Whether the node may answer now."""
        return self._clock() < self.until

    @property
    def now(self) -> float:
        """The time by the lease's clock."""
        return self._clock()

    @property
    def remaining(self) -> float:
        """Seconds until it runs out; 0 if it has, infinite if it never does."""
        return max(0.0, self.until - self._clock())

    def covers(self, stretch: int) -> bool:
        """Tell whether what was begun in a stretch may leave now."""
        # In this order: a renewal moves the stretch first.
        return self._clock() < self.until and stretch == self.stretch

    def heed(self, term: int, incarnation: str = "") -> None:
        """Hear a leader, or nobody's call if the term is 0.

        Raises STALE_TERM for one of an older term, and for what is meant for another life of this node.
        """
        if incarnation not in {"", self.incarnation}:
            raise SupervisorError(
                "STALE_TERM",
                f"The call is for life {incarnation} of this node; this is {self.incarnation}.",
                metadata={"incarnation": incarnation, "known_incarnation": self.incarnation},
            )
        if not term:
            return
        if term < self.term:
            raise SupervisorError(
                "STALE_TERM",
                f"The call is of term {term}; this node knows term {self.term}.",
                metadata={"term": str(term), "known_term": str(self.term)},
            )
        self.term = term

    def renew(
        self,
        term: int,
        incarnation: str,
        monotonic_time: float,
        lasts: float,
        give_up: Callable[[], None],
        *,
        alone: bool = False,
    ) -> None:
        """Hold the lease for `lasts` seconds from the time of a heartbeat, after `give_up` has been called.

        `alone` holds until a newer grant says otherwise: one that comes late says nothing of it.

        Raises STALE_TERM for an older leader, or for another life of this node: its clock says nothing here.
        """
        self.heed(term, incarnation)
        give_up()
        told = term, monotonic_time
        if told > self._told_alone:
            self.alone, self._told_alone = alone, told
        elif told == self._told_alone:
            self.alone = self.alone and alone
        until = monotonic_time + lasts
        now = self._clock()
        if until <= max(now, self.until):
            return
        if now >= self.until:
            self.stretch += 1
        self.until = until


class LeaseUnlessAlone:
    """The lease of apps that are CONSISTENT by default: while their node is alone they need none."""

    __slots__ = ("_lease",)

    def __init__(self, lease: Lease) -> None:
        self._lease = lease

    @property
    def held(self) -> bool:
        """Whether the node may answer for such an app now."""
        return self._lease.alone or self._lease.held

    @property
    def stretch(self) -> int:
        """That of the lease."""
        return self._lease.stretch

    def covers(self, stretch: int) -> bool:
        """Tell whether what was begun in a stretch of the lease may leave now."""
        return self._lease.alone or self._lease.covers(stretch)


class _Revoked(Lease):
    """The lease of an instance that has left the node for good."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("", lambda: math.inf)


REVOKED = _Revoked()

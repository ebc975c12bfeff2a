"""The nodes' leases as one leader counts them: what it may grant, and when a node is lost. Pure.

A node counts from the heartbeat that a grant answers, the leader from when it sent the grant: so the node
always stops first, whatever is delayed, paused or repeated. Proved by trial in tests/model.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from appsupervisor.fleet.v1.fleet_pb2 import Node
from services.control_plane.tenure import Tenure

LeaseState: TypeAlias = Node.LeaseState.ValueType

MOST_AT_ONCE = 3
"""Fewer nodes than these may be lost together: of two or three each loss is most of them."""


@dataclass(frozen=True, slots=True)
class LeasePace:
    """How long a lease lasts, in seconds."""

    lasts: float = 6.0
    renew: float = 2.0
    slack: float = 0.05
    """By which the leader waits longer than the node: clocks whose rates differ by 200 ppm each way are 2.4
    ms apart after 6 s."""
    stall: float = 1.0
    """Between two looks of a leader that was not kept from them."""


@dataclass(frozen=True, slots=True)
class Fence:
    """An app's epochs below `epoch` have left the node."""

    app_uid: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Grant:
    """What one RenewLease says: times in seconds, `monotonic_time` by the node's own clock."""

    term: int
    incarnation: str
    monotonic_time: float
    lasts: float
    fences: tuple[Fence, ...] = ()
    alone: bool = False
    """The node needs no lease for apps that are CONSISTENT by default, until another grant says otherwise."""
    parting: int = 0
    """Number of the parting that is done once this is taken: the node serves alone no longer; 0 of none."""


@dataclass(slots=True)
class _Open:
    incarnation: str
    fences: tuple[Fence, ...]
    alone: bool = False
    """The catalog says that it serves alone, and no other node is known."""
    parting: int = 0
    """Set while the catalog says that it serves alone, and it has to hear that it does no longer."""


class Leases:
    """The leases under one term. Lives on one event loop.

    A node is granted leases while it is open: from when the catalog says GRANTED of it until this leader
    means to say otherwise. What is given up of its apps is so while it is closed, and reaches it with the
    next grant.
    """

    def __init__(self, tenure: Tenure, clock: Callable[[], float], pace: LeasePace | None = None) -> None:
        self._tenure = tenure
        self._clock = clock
        self.pace = pace or LeasePace()
        self._sent: dict[str, float] = {}
        self._open: dict[str, _Open] = {}
        self._parted: set[str] = set()
        """Nodes that have heard that they do not serve alone any more, which is not stored yet."""
        self._partings = itertools.count(1)
        self._braked: dict[str, float] = {}
        """By environment: when most of its nodes were missing together, as it was seen last."""
        self.begin()

    def begin(self) -> None:
        """Begin to count, knowing nothing: once the tenure has begun, never before."""
        # What a leader before this one granted has run out one TTL after its time was up.
        self._counted_from = self._looked = self._clock()
        self._sent.clear()
        self._open.clear()
        self._parted.clear()
        self._braked.clear()

    @property
    def term(self) -> int:
        """The leader's term."""
        return self._tenure.term

    def open(self, node: str, incarnation: str, fences: Iterable[Fence]) -> None:
        """Let a life of a node have leases: the catalog says GRANTED; `fences` is what was given up before.

        Never for what was written before the node was closed: its stream has broken since.
        """
        if not self.is_open(node, incarnation):
            self._open[node] = _Open(incarnation, tuple(fences))

    def is_open(self, node: str, incarnation: str) -> bool:
        """Tell whether a life of a node may have leases."""
        known = self._open.get(node)
        return known is not None and known.incarnation == incarnation

    def close(self, node: str) -> None:
        """Grant a node nothing more: it is about to be called lost, or is followed no longer."""
        self._open.pop(node, None)

    def grant(self, node: str, incarnation: str, monotonic_time: float) -> Grant | None:
        """Return the grant that answers a heartbeat which has just been read; None if none is due or allowed.

        Whether this replica leads is looked at here, after the heartbeat was read: so a lease that it grants
        ends at most one TTL after its time is up.
        """
        known = self._open.get(node)
        if known is None or known.incarnation != incarnation or not self._tenure.holds:
            return None
        now = self._clock()
        # A heartbeat's worth early: they come every second, and not to the millisecond.
        urgent = known.fences or known.parting
        if now < self._sent.get(node, -math.inf) + 0.75 * self.pace.renew and not urgent:
            return None
        self._sent[node] = now
        return Grant(
            self._tenure.term,
            incarnation,
            monotonic_time,
            self.pace.lasts,
            known.fences,
            known.alone,
            known.parting,
        )

    def accepted(self, node: str, grant: Grant, *, alone: bool = False) -> None:
        """Take note that a node has taken a grant, has given up what it named, and may be `alone` still."""
        known = self._open.get(node)
        if known is None or known.incarnation != grant.incarnation:
            return
        if known.fences == grant.fences:
            known.fences = ()
        if known.parting and known.parting == grant.parting and not alone:
            known.parting = 0
            self._parted.add(node)

    def set_alone(self, node: str, *, stored: bool, wanted: bool) -> None:
        """Let a node that is open serve alone, or no longer: `stored` is what the catalog says of it now.

        It is told that it does only while the catalog says so, and the catalog says so until it has taken a
        grant that tells it otherwise; `parted` names it then.
        """
        known = self._open.get(node)
        if known is None:
            return
        known.alone = stored and wanted and not known.parting and node not in self._parted
        if stored and not known.alone and not known.parting and node not in self._parted:
            known.parting = next(self._partings)

    @property
    def parted(self) -> frozenset[str]:
        """Nodes of which is to be stored that they do not serve alone any more."""
        return frozenset(self._parted)

    def parting_stored(self, node: str) -> None:
        """Take note that the catalog says that a node does not serve alone: it may do so again."""
        self._parted.discard(node)

    def has_run_out(self, node: str) -> bool:
        """Tell whether the node's lease has ended, whoever granted it and whatever is still under way."""
        sent = max(self._counted_from, self._sent.get(node, -math.inf))
        return self._clock() >= sent + self.pace.lasts + self.pace.slack

    def look(self) -> None:
        """Take note that this leader runs: one that stood still counts anew, for the nodes did not."""
        now = self._clock()
        if now > self._looked + self.pace.stall:
            self._counted_from = now
        self._looked = now

    def changed(self, environment: str, nodes: Iterable[Counted]) -> Mapping[str, LeaseState]:
        """Return the nodes of one environment whose lease's state is another one now.

        After most of them were missing together they come back one after the other: none is given up before a
        lease's time has passed since.
        """
        counted = list(nodes)
        now = self._clock()
        if are_held(counted):
            self._braked[environment] = now
        elif now < self._braked.get(environment, -math.inf) + self.pace.lasts:
            return {}
        else:
            self._braked.pop(environment, None)
        return changed_states(counted)


@dataclass(frozen=True, slots=True)
class Counted:
    """What the leader knows of one node of an environment."""

    node: str
    state: LeaseState
    """As the catalog has it."""
    heard: bool
    over: bool
    """Its lease has run out."""


def changed_states(environment: Iterable[Counted]) -> Mapping[str, LeaseState]:
    """Return the nodes of one environment whose lease's state is another one now, whatever was before.

    A node that is heard is not lost. While most of the nodes are missing together none is given up.
    """
    nodes = list(environment)
    state = Node.ON_HOLD if are_held(nodes) else Node.EXPIRED
    return {node.node: state for node in nodes if _is_missing(node) and node.over and node.state != state}


def are_held(environment: Iterable[Counted]) -> bool:
    """Tell whether most of the nodes are missing together: what cannot be heard then is the control plane."""
    nodes = list(environment)
    missing = sum(map(_is_missing, nodes))
    return missing >= MOST_AT_ONCE and missing >= sum(node.heard for node in nodes)


def _is_missing(node: Counted) -> bool:
    return not node.heard and node.state in (Node.GRANTED, Node.ON_HOLD)

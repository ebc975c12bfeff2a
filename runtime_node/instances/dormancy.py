"""Which running ON_REQUEST instances go dormant: those without requests for long, and under memory pressure
those least recently used. Pure: figures and clocks come in, names of instances go out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MIN_AGE = 10.0
"""Seconds for which a woken instance is safe from eviction, whatever the pressure."""

START_MULTIPLE = 10.0
"""And so many times what its start took: an instance is not evicted for less than it costs to bring back."""

EVICTION_SHARE = 0.1
"""Part of the candidates that one sweep evicts: memory falls only some time after an app has ended."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A running ON_REQUEST instance. Times are monotonic seconds."""

    name: str
    busy: bool
    """Requests or WebSockets are in it or wait for it, or work on after their response."""
    ready: float
    start_seconds: float
    last_used: float
    """The later of its last request and its start."""
    idle_timeout: float


def expired(candidates: Iterable[Candidate], now: float) -> list[str]:
    """Return those whose idle time is over."""
    return [c.name for c in candidates if not c.busy and now - c.last_used >= c.idle_timeout]


def evicted(candidates: Sequence[Candidate], now: float, excess_bytes: int) -> list[str]:
    """Return those to evict while the node's memory is `excess_bytes` over its budget, oldest use first."""
    if excess_bytes <= 0:
        return []
    old = [
        c for c in candidates
        if not c.busy and now - c.ready >= max(MIN_AGE, START_MULTIPLE * c.start_seconds)
    ]  # fmt: skip
    old.sort(key=lambda c: c.last_used)
    return [c.name for c in old[: max(1, int(len(old) * EVICTION_SHARE))]]

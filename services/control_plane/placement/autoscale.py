"""How many replicas the requests ask for: more at once, fewer after a quiet minute. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from appsupervisor.catalog.v1.app_catalog_pb2 import Autoscale
from services.control_plane.rules.sentences import counted

WINDOW_SECONDS = 6.0
"""Requests are counted as the average of so long: a single burst between two looks asks for nothing."""

QUIET_SECONDS = 60.0
"""So long fewer replicas must have been enough before any is taken away."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The requests of an app that were in flight or queued at a time, in seconds."""

    time: float
    in_flight: int


@dataclass(frozen=True, slots=True)
class Decision:
    """How many replicas there are to be, and why: one sentence."""

    replicas: int
    why: str


@dataclass(slots=True)
class Load:
    """What was seen of an app's requests lately. Memory is bounded by QUIET_SECONDS of looks."""

    began: float
    """Since when it is looked at."""
    samples: deque[Sample] = field(default_factory=deque)
    needed: deque[tuple[float, int]] = field(default_factory=deque)
    """When how many replicas were needed."""

    def seen(self, bounds: Autoscale, now: float, in_flight: int) -> None:
        """Take note of what is in flight now."""
        self.samples.append(Sample(now, in_flight))
        while self.samples[0].time <= now - WINDOW_SECONDS:
            self.samples.popleft()
        self.needed.append((now, needed(bounds, self.samples)))
        while self.needed[0][0] < now - QUIET_SECONDS:
            self.needed.popleft()


def needed(bounds: Autoscale, samples: Iterable[Sample]) -> int:
    """Return how many replicas requests ask for, within the bounds; 0 if there were none and 0 is allowed."""
    counts = [sample.in_flight for sample in samples]
    average = sum(counts) / len(counts) if counts else 0.0
    asked = math.ceil(average / bounds.target_concurrency)
    return max(bounds.min_replicas, min(asked, bounds.max_replicas))


def decide(bounds: Autoscale, load: Load, now: float, replicas: int) -> Decision | None:
    """Return how many replicas there are to be instead of `replicas`; None to leave it at that.

    Where none is needed one stays: it goes dormant by itself.
    """
    if not load.needed:
        return None
    wanted = max(1, load.needed[-1][1])
    if wanted > replicas:
        return Decision(wanted, _why(bounds, load, "in flight"))
    most = max(1, *(count for _, count in load.needed))
    if most < replicas and now - load.began >= QUIET_SECONDS:
        return Decision(most, f"for {QUIET_SECONDS:g} s {counted(most, 'replica')} would have been enough")
    return None


def _why(bounds: Autoscale, load: Load, what: str) -> str:
    average = sum(sample.in_flight for sample in load.samples) / len(load.samples)
    return f"{average:.1f} requests {what}, {bounds.target_concurrency} for each replica"

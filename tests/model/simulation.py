"""Virtual time for programs that fail: messages late, lost, twice or out of order, pauses anywhere, clocks of
rates of their own. Deterministic: one seed, one schedule.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

PPM = 1e-6
RATE = 200 * PPM
"""By which a clock may be fast or slow."""


class Violation(AssertionError):  # noqa: N818 - said as a sentence
    """A rule of the model that did not hold."""


@dataclass(eq=False)
class Process:
    """Something that runs, stands still at times, and has a clock of its own."""

    name: str
    rate: float = 1.0
    offset: float = 0.0
    paused_until: float = 0.0


@dataclass
class Weather:
    """What the network and the machines do to those in it."""

    lost: float = 0.0
    twice: float = 0.0
    late: float = 0.0
    """Share of the messages that take up to `latest` seconds."""
    latest: float = 0.0
    cut: dict[tuple[str, str], float] = field(default_factory=dict)
    """Until when nothing passes from one to another."""


class Simulation:
    """The one list of what happens next."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now = 0.0
        self.weather = Weather()
        self._events: list[tuple[float, int, Process | None, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0

    def process(self, name: str) -> Process:
        """Return a new process, whose clock began at some time and runs at some rate."""
        # Those at either end are the ones that matter.
        rate = 1 + self.chance.choice((-RATE, RATE, self.chance.uniform(-RATE, RATE)))
        return Process(name, rate, self.chance.uniform(0, 1000))

    def clock_of(self, process: Process) -> Callable[[], float]:
        """Return a process's clock."""
        rate, offset = process.rate, process.offset
        return lambda: self.now * rate + offset

    def after(self, delay: float, process: Process | None, act: Callable[..., None], *what: Any) -> None:
        """Let a process do something later, or something just happen."""
        self._number += 1
        heapq.heappush(self._events, (self.now + delay, self._number, process, act, what))

    def send(self, source: Process, target: Process, act: Callable[..., None], *what: Any) -> None:
        """Let a message take its way."""
        weather, chance = self.weather, self.chance
        if weather.cut and weather.cut.get((source.name, target.name), 0.0) > self.now:
            return
        draw = chance.random()
        if draw < weather.lost:
            return
        if draw < weather.lost + weather.twice:
            self.after(chance.uniform(0, weather.latest), target, act, *what)
        slow = weather.late and chance.random() < weather.late
        # Also no time at all: what is only just right has to be.
        self.after(
            chance.uniform(0, weather.latest) if slow else chance.random() ** 4 * 0.05, target, act, *what
        )

    def run(self, until: float) -> None:
        """Let things happen up to a moment."""
        events = self._events
        while events and events[0][0] <= until:
            self.now, _, process, act, what = heapq.heappop(events)
            if process is not None and process.paused_until > self.now:
                # It wakes, and finds all that has come meanwhile, in any order.
                self.after(process.paused_until - self.now + self.chance.random() * 1e-3, process, act, *what)
                continue
            act(*what)
        self.now = until

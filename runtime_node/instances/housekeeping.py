"""The node's one recurring look at its running instances: figures, idle times, memory pressure."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from runtime_node.http.figures import GateFigures
from runtime_node.instances.dormancy import Candidate, evicted, expired
from runtime_node.instances.figures import FigureSweep
from runtime_node.instances.lifecycle import Lifecycle
from runtime_node.instances.record import Instance
from services.spec.effective import idle_timeout

log = logging.getLogger("runtime_node.instances")

PERIOD = 1.0

MEASURED_EACH = 10
"""Sweeps for each measurement of memory where nothing could go dormant."""


class Traffic:
    """What the last two rounds saw of requests."""

    __slots__ = ("quiet",)

    def __init__(self) -> None:
        self.quiet = True
        """Whether there was no request from the round before the last one to the last."""


class Housekeeping:
    """Looks at every running instance once a second. Belongs to the control loop."""

    def __init__(
        self,
        running: Mapping[str, Instance],
        lifecycle: Lifecycle,
        figures: FigureSweep,
        traffic: Traffic,
        *,
        memory: Callable[[], int],
        memory_budget: int | None,
        measured: Callable[[int], None] = lambda _: None,
        after: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        period: float = PERIOD,
    ) -> None:
        """`measured` is told the bytes that are used, where there is a budget."""
        self._running = running
        self._lifecycle = lifecycle
        self._figures = figures
        self._memory = memory
        self._budget = memory_budget
        self._measured = measured
        self._sweeps = 0
        self._after = after
        self._clock = clock
        self._period = period
        self.traffic = traffic

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(self._period)
            try:
                self.sweep()
            except Exception:
                log.exception("sweep failed", extra={"action": "node.sweep_fault"})

    def sweep(self) -> None:
        """Do one round."""
        now = self._clock()
        candidates: list[Candidate] = []
        busy = 0
        latest = 0.0
        for instance in self._running.values():
            figures = instance.gate.figures()
            self._figures.look(instance, figures)
            busy += figures.in_flight + figures.queued
            latest = max(latest, figures.last_request_time or 0.0)
            if instance.on_request and instance.task is None and instance.run is not None:
                candidates.append(_candidate(instance, figures))
        self._figures.end()
        # Not only at this moment: a pause would meet the next one of those that come every few milliseconds.
        self.traffic.quiet = not busy and latest < now - self._period
        for name in expired(candidates, now):
            self._sleep(name)
        # Measuring looks at every process: each second only where that may have something go dormant.
        if self._budget is not None and (candidates or self._sweeps % MEASURED_EACH == 0):
            used = self._memory()
            self._measured(used)
            for name in evicted(candidates, now, used - self._budget):
                log.info("evicted", extra={"action": "instance.evicted", "instance": name})
                self._sleep(name)
        self._sweeps += 1
        self._after()

    def _sleep(self, name: str) -> None:
        instance = self._running.get(name)
        if instance is not None:
            self._lifecycle.sleep(instance)


def _candidate(instance: Instance, figures: GateFigures) -> Candidate:
    run = instance.run
    assert run is not None
    return Candidate(
        name=instance.name,
        busy=bool(figures.running or figures.queued),
        ready=run.ready,
        start_seconds=run.ready - run.started,
        last_used=max(run.ready, figures.last_request_time or 0.0),
        idle_timeout=idle_timeout(run.spec),
    )

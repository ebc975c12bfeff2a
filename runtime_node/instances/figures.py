"""Reads what each running instance does, from its gate and its tier, and tells what has changed."""

from __future__ import annotations

import time
from collections.abc import Callable

from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceFigures
from runtime_node.http.figures import GateFigures
from runtime_node.instances.feed import duration
from runtime_node.instances.record import Instance, timestamp
from runtime_node.tiers.runner import Usage

USAGE_EVERY = 5
"""An instance without requests has its tier asked every so many rounds: its background work counts too."""


class FigureSweep:
    """Compares each instance with what it last told. Belongs to the control loop."""

    def __init__(self, on_change: Callable[[str, InstanceFigures], None]) -> None:
        self._on_change = on_change
        self._sweeps = 0

    def look(self, instance: Instance, gate: GateFigures) -> None:
        """Take an instance's figures and publish them if they differ from the last."""
        run = instance.run
        if run is None or run.running is None:
            return
        same = run.told is not None and run.told[0] == gate
        if same and (self._sweeps + run.number) % USAGE_EVERY:
            return
        usage = run.running.usage()
        if same and run.told is not None and run.told[1] == usage:
            return
        run.told = (gate, usage)
        past = instance.past()
        past.figures = message(gate, run.base, usage, past.rescue_count)
        self._on_change(instance.name, past.figures)

    def end(self) -> None:
        """End one sweep."""
        self._sweeps += 1


def message(gate: GateFigures, base: GateFigures, usage: Usage, rescues: int) -> InstanceFigures:
    """Return figures as the API tells them: counts since `base`, times as durations."""
    figures = InstanceFigures(
        request_count=gate.requests - base.requests,
        error_count=gate.errors - base.errors,
        in_flight_count=gate.in_flight,
        queued_count=gate.queued,
        shed_count=gate.shed - base.shed,
        timeout_count=gate.timeouts - base.timeouts,
        requests_per_second=gate.requests_per_second,
        websocket_count=gate.websockets,
        rescue_count=rescues,
        update_time=timestamp(time.time()),
    )
    if gate.requests > base.requests:
        figures.latency_p50.CopyFrom(duration(gate.latency_p50))
        figures.latency_p99.CopyFrom(duration(gate.latency_p99))
    if usage.cpu_seconds is not None:
        figures.cpu_time.CopyFrom(duration(usage.cpu_seconds))
    if usage.loop_lag_seconds is not None:
        figures.loop_lag.CopyFrom(duration(usage.loop_lag_seconds))
    if usage.memory_bytes is not None:
        figures.memory_bytes = usage.memory_bytes
    return figures

"""Tells instances which values that all apps of a process share were put back after they changed them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance as InstanceMessage
from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec
from runtime_node.instances.record import SHARED_STATE_RESTORED, Instance
from runtime_node.instances.table import InstanceTable
from runtime_node.instances.transitions import Transitions
from runtime_node.isolation.drift import Drift

log = logging.getLogger("runtime_node.instances")

_TOGETHER = (InstanceSpec.SHARED, InstanceSpec.THREAD)
"""The tiers whose apps share this process."""


class SharedState:
    """Looks, when told to, at what apps have changed for all. Belongs to the control loop."""

    def __init__(
        self,
        table: InstanceTable,
        transitions: Transitions,
        period: float,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`period` is the time, in seconds, from one regular look to the next."""
        self._table = table
        self._transitions = transitions
        self._period = period
        self._wall = wall
        self._drift = Drift(self._at_work)

    def started(self, instance: Instance) -> None:
        """An app has been built and started."""
        if instance.run is not None and instance.run.tier in _TOGETHER:
            self.look(instance.name)

    def look(self, *at: str) -> None:
        """Put back what apps have changed for all; `at` has just started or ended."""
        restored = self._drift.look(at)
        for name, values in restored.by_instance.items():
            self._tell(name, values)
        if restored.unknown:
            log.warning(
                "put back what one of several apps has changed for all: %s", ", ".join(restored.unknown),
                extra={"action": "node.restored", "suspects": restored.suspects},
            )  # fmt: skip

    def _tell(self, name: str, values: Sequence[str]) -> None:
        """Tell an instance, each value once in a run, however often it is put back."""
        instance = self._table.find(name)
        if instance is None:
            facts = {"action": "instance.restored", "instance": name}
            log.warning("Put back what it had changed for all: %s", ", ".join(values), extra=facts)
            return
        told = instance.past().restored
        if told.issuperset(values):
            return
        told.update(values)
        text = f"Put back what it had changed for all apps of its process: {', '.join(sorted(told))}."
        instance.set_condition(SHARED_STATE_RESTORED, True, "SharedStateChanged", text, self._wall())
        self._transitions.log(instance, "restored", level=logging.WARNING, message=text)
        self._transitions.reassess(instance, tell=instance.state != InstanceMessage.STOPPING)

    def _at_work(self) -> tuple[str, ...]:
        """Return the instances that start or end, or have served since the look before the last."""
        since = time.monotonic() - 2 * self._period
        names = []
        for name, instance in self._table.running.items():
            if instance.run is not None and instance.run.tier in _TOGETHER:
                figures = instance.gate.figures()
                served = figures.in_flight or (figures.last_request_time or 0.0) > since
                if instance.task is not None or served:
                    names.append(name)
        return tuple(names)

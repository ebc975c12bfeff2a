"""Moves an instance from state to state; logs and tells each move once, and sets its gate by it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance as InstanceMessage
from runtime_node.instances.record import BLOCKED_LOOP, DEMOTED, LEAKED, PROBE_FAILING, Instance
from runtime_node.instances.states import Event, advance

log = logging.getLogger("runtime_node.instances")

_FORWARD_SECONDS = 1.0
"""By then a gate has handed what waited at it to its successor."""


class Transitions:
    """The one place where an instance's state changes. Belongs to the control loop."""

    def __init__(
        self,
        changed: Callable[[Instance], None],
        serving: Callable[[Instance], Instance | None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`changed` hears of each change of an instance; `serving` tells where its app's requests go now."""
        self._changed = changed
        self._serving = serving
        self._wall = wall
        self._loop = asyncio.get_running_loop()

    def move(self, instance: Instance, event: Event, **facts: object) -> None:
        """Take an instance to the state that `event` leads to. Raises IllegalTransition."""
        old = instance.state
        instance.state = advance(old, event)
        if (old == InstanceMessage.RUNNING) != (instance.state == InstanceMessage.RUNNING):
            instance.ready_changed = self._wall()
        instance.health = health_of(instance)
        self._note_probe(instance)
        level = logging.WARNING if instance.state == InstanceMessage.FAILED else logging.INFO
        states = {"state": InstanceMessage.State.Name(instance.state), "was": InstanceMessage.State.Name(old)}
        self.log(instance, "state", level, **states, **facts)
        self._changed(instance)

    def reassess(self, instance: Instance, *, tell: bool = False) -> None:
        """Work out its health anew; tell of a change, or of more than its health with `tell`."""
        health = health_of(instance)
        if health != instance.health:
            self.log(
                instance,
                "health",
                health=InstanceMessage.Health.Name(health),
                was=InstanceMessage.Health.Name(instance.health),
            )
            instance.health = health
            self._note_probe(instance)
            tell = True
        if tell:
            self._changed(instance)

    def _note_probe(self, instance: Instance) -> None:
        """Say in its conditions what its health check got, for as long as that fails."""
        probe = instance.run.probe if instance.run is not None else None
        failing = instance.state == InstanceMessage.RUNNING and probe is not None and probe.fails
        if failing and probe is not None:
            text = f"Its health check fails. GET {probe.check.path}: {probe.last_failure}."
            instance.set_condition(PROBE_FAILING, True, "HealthCheckFailed", text, self._wall())
        else:
            instance.clear_condition(PROBE_FAILING, "HealthCheckPassed", "", self._wall())

    def shut(self, instance: Instance, door: Callable[[], None]) -> None:
        """Set the door of an instance that serves no more, after what waits at it went to one that does."""
        successor = self._serving(instance)
        # One that has failed, too, may be handing its own over to this one still.
        if (
            successor is None
            or successor is instance
            or successor.state in (InstanceMessage.FAILED, InstanceMessage.STOPPED)
        ):
            door()
            return
        instance.gate.forward(successor.gate)
        # The successor may go while this one is still here: then this door has to speak for itself.
        self._loop.call_later(_FORWARD_SECONDS, self._close_behind, instance, instance.state, door)

    def _close_behind(self, instance: Instance, state: int, door: Callable[[], None]) -> None:
        if instance.state == state:
            door()

    def log(self, instance: Instance, action: str, level: int = logging.INFO, **facts: object) -> None:
        """Log one event of an instance."""
        identity = {
            "action": f"instance.{action}",
            "instance": instance.name,
            "epoch": instance.epoch,
            "generation": instance.generation,
        }
        log.log(level, action, extra={**identity, "facts": facts})


def health_of(instance: Instance) -> InstanceMessage.Health.ValueType:
    """Return an instance's health: its probe's verdict while it runs, lowered by known defects."""
    if instance.state == InstanceMessage.FAILED:
        return InstanceMessage.Health.UNHEALTHY
    if instance.state != InstanceMessage.RUNNING or instance.run is None:
        return InstanceMessage.Health.UNKNOWN
    probe = instance.run.probe
    health = InstanceMessage.Health.HEALTHY if probe is None else probe.health
    if health == InstanceMessage.Health.HEALTHY and any(
        map(instance.has_condition, (BLOCKED_LOOP, DEMOTED, LEAKED))
    ):
        return InstanceMessage.Health.DEGRADED
    return health

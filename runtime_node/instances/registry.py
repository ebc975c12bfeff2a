"""Tells everybody of each change of an instance: the router, the watchers of the node, logs and metrics.

Also where an instance leaves: after its app's data is removed, if that was asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance as InstanceMessage
from runtime_node.http.gate import Gate
from runtime_node.http.limits import GateLimits
from runtime_node.instances.feed import InstanceFeed
from runtime_node.instances.forwards import Move
from runtime_node.instances.purges import Purges
from runtime_node.instances.record import LEAKED, Instance, error_message
from runtime_node.instances.routes import Routes, serving
from runtime_node.instances.table import InstanceTable
from services.rpc.errors import SupervisorError


class InstanceListener(Protocol):
    """Who hears of each change of an instance: logs, health, metrics."""

    def changed(self, instance: Instance) -> None:
        """An instance is new, or its state, health or conditions have changed."""
        ...

    def gone(self, instance: Instance) -> None:
        """An instance has ended and is not here any more."""
        ...


class InstanceRegistry:
    """What happens to an instance is told here, once, on the control loop."""

    def __init__(
        self,
        table: InstanceTable,
        feed: InstanceFeed,
        routes: Routes,
        purges: Purges,
        listener: InstanceListener,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._table = table
        self._feed = feed
        self._routes = routes
        self._purges = purges
        self._listener = listener
        self._wall = wall
        self._unpurged: set[Instance] = set()
        """Instances that have ended and stay until their app's data can be removed."""

    def add(self, instance: Instance) -> None:
        """Take in an instance that was accepted."""
        self._table.add(instance)
        self._purges.forget(instance.app, instance.uid)
        self._forget_unpurged(instance.app, instance.uid)

    def changed(self, instance: Instance) -> None:
        """An instance changed: its route and its watchers have to know."""
        running = self._table.running
        if instance.state == InstanceMessage.RUNNING:
            running[instance.name] = instance
        elif running.pop(instance.name, None) is not None:
            self._feed.unmeasured(instance.name)
        self._routes.update(instance.app, self._table.of_app(instance.app))
        self._feed.changed(instance)
        self._listener.changed(instance)

    def serving(self, instance: Instance) -> Instance | None:
        """Return which instance of the same app its requests go to now."""
        return serving(self._table.of_app(instance.app))

    def moved(self, move: Move, limits: GateLimits | None) -> Gate:
        """An app has left this node: forward its requests; return the gate that does."""
        return self._routes.moved(move, self._table.of_app, limits)

    def sweep(self) -> None:
        """End the forwards whose time is over; called every second."""
        self._routes.sweep(self._table.of_app)

    async def gone(self, instance: Instance) -> None:
        """An instance has ended: carry out a purge that waited for it, forget it, tell the watchers.

        One whose app's data cannot be removed stays, and says so, until it is stopped again.
        """
        fault = await self.purge(instance.app, instance.uid, but=instance)
        if fault is None or self._table.draining:
            self._forget(instance)
            return
        self._unpurged.add(instance)
        instance.past().last_error = error_message(fault, self._wall())
        self.changed(instance)

    def has_ended(self, instance: Instance) -> bool:
        """Return whether an instance is here only because its app's data could not be removed."""
        return instance in self._unpurged

    async def purge(self, app: str, uid: str, but: Instance | None = None) -> SupervisorError | None:
        """Carry out a purge that was asked for, unless an instance other than `but` has the data."""
        others = (other for other in self._table.of_app(app) if other is not but)
        if any(other.uid == uid and other not in self._unpurged for other in others):
            return None
        fault = await self._purges.carry_out(app, uid)
        if fault is None and not self._purges.wants(app, uid):
            self._forget_unpurged(app, uid)
        return fault

    def forget_all_unpurged(self) -> None:
        """Let go of what has ended: the node shuts down."""
        for instance in list(self._unpurged):
            self._forget(instance)

    def _forget_unpurged(self, app: str, uid: str) -> None:
        for instance in [one for one in self._unpurged if (one.app, one.uid) == (app, uid)]:
            self._forget(instance)

    def _forget(self, instance: Instance) -> None:
        self._unpurged.discard(instance)
        if not self._table.remove(instance):
            return
        self._routes.update(instance.app, self._table.of_app(instance.app))
        self._listener.gone(instance)
        why = None
        if self._table.draining:
            shutdown = SupervisorError("NODE_DRAINING", "It ended because its node shut down.")
            why = error_message(shutdown, self._wall())
        elif instance.history is not None and instance.has_condition(LEAKED):
            text = instance.history.conditions[LEAKED].message
            why = error_message(SupervisorError("APP_LEAKED", text), self._wall())
        self._feed.gone(instance, why)

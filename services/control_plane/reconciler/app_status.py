"""The status of an app that has one replica, part by part, from its placement and its instances. Pure."""

from __future__ import annotations

from appsupervisor.catalog.v1.app_catalog_pb2 import App, DataMove
from appsupervisor.runtime.v1.runtime_environment_pb2 import (
    Condition,
    Instance,
    InstanceError,
    InstanceSpec,
)
from services.control_plane.operations.database_moves import is_on_way, is_stopped_for, is_unfinished
from services.control_plane.placement.assignment import ENDING, Assignment
from services.control_plane.placement.data_travel import travel_of
from services.control_plane.placement.failover import waits_for
from services.control_plane.placement.snapshot import READY, NodeView, Snapshot, is_ready
from services.control_plane.rules.conditions import DATABASE_READY, get_condition, set_condition
from services.control_plane.rules.sentences import sentences
from services.control_plane.store.records import AppRecord, PlacementRecord, Version, home_of
from services.spec.availability import effective_availability, effective_failover, keeps_data_on_node


def version_of(instance: Instance) -> Version:
    """Return the version that an instance runs."""
    return Version(instance.generation, instance.epoch)


class AppStatus:
    """Sets the parts of a status that follow from each other."""

    def __init__(
        self, app: AppRecord, assigned: Assignment, seen: Snapshot, status: App, home: NodeView | None
    ) -> None:
        self._app = app
        self._assigned = assigned
        self._seen = seen
        self._status = status
        self._home = home
        self._serving = max(
            (it for it in status.instances if is_ready(it)),
            key=lambda it: (it.epoch, it.generation),
            default=None,
        )

    def set(self, now: int) -> None:
        """Set state, health, conditions and whether work goes on."""
        status = self._status
        reason, message, holds = self._state()
        silent = self._silent()
        if silent and not self._at_rest():
            status.health, holds, reason = Instance.Health.UNKNOWN, Condition.UNKNOWN, "NODE_UNREACHABLE"
            message = self._of_silence(silent)
        set_condition(status.conditions, "Ready", holds, reason, message, now)
        status.ready_replicas = self._count_ready() if holds == Condition.MET else 0
        self._set_scheduled(now)
        self._set_updated(now)
        if status.data_move.state == DataMove.COPYING and travel_of(self._assigned.placements) is None:
            status.data_move.state = DataMove.CALLED_OFF  # something else is wanted by now
        settled = self._is_settled() and not is_on_way(status)
        if settled:
            status.observed_generation = self._app.generation
        status.reconciling = is_unfinished(status) or (not settled and not self._is_final())

    def _count_ready(self) -> int:
        return 1

    def _of_silence(self, node: str) -> str:
        """Say what is known of an app whose node is not heard, and what will become of it."""
        if node in self._seen.alone and not self._app.deleting:
            return (
                f"{node} cannot be heard. It was the only node of its environment and may serve the app on, "
                "so no other is given it. The app waits for it; RecoverApp, with accept_data_loss, starts "
                "it on another node."
            )
        if not self._seen.is_lost(node) or self._app.deleting:
            return f"{node} cannot be heard; nothing is known of what runs there."
        spec = self._app.spec
        consistent = effective_availability(spec) == InstanceSpec.CONSISTENT
        answers = "It answers nobody for the app." if consistent else "It may serve the app all the same."
        if effective_failover(spec) == App.AUTOMATIC:
            waits = self._assigned.unplaced
        else:
            data = ", with accept_data_loss," if keeps_data_on_node(spec) else ""
            waits = f"The app waits for it; RecoverApp{data} starts it on another node."
        return sentences(f"{node} is lost: it cannot be heard, and its lease has run out", answers, waits)

    def _state(self) -> tuple[str, str, Condition.Status.ValueType]:
        """Set state and health; return the reason, the message and the status of condition `Ready`."""
        app, status, ready = self._app, self._status, self._serving
        was_stopped = status.state == Instance.STOPPED
        status.health = Instance.Health.UNKNOWN
        if app.deleting:
            status.state = Instance.DELETING
            return *self._hindrance("Deleting"), Condition.UNMET
        if app.spec.desired_state == App.STOPPED:
            # What was seen stopped stays so while its node cannot be heard: nothing starts it.
            gone = all(instance.state == Instance.STOPPED for instance in status.instances)
            stopped = gone and (self._is_heard() or was_stopped)
            status.state = Instance.STOPPED if stopped else Instance.STOPPING
            return "Stopped" if stopped else "Stopping", "", Condition.UNMET
        if not self._assigned.staying:
            status.state = Instance.PENDING
            if self._assigned.unplaced_reason == "DATA_LOST":
                status.state, status.health = Instance.FAILED, Instance.Health.UNHEALTHY
            return self._assigned.unplaced_reason, self._assigned.unplaced, Condition.UNMET
        if ready is not None:
            status.state, status.health = ready.state, ready.health
            return "Serving" if ready.state == Instance.RUNNING else "Dormant", "", Condition.MET
        return *self._not_ready(), Condition.UNMET

    def _not_ready(self) -> tuple[str, str]:
        status = self._status
        wanted = self._to_be_shown()
        if wanted is None or wanted.state == Instance.STOPPING:
            status.state = Instance.PENDING
            return self._hindrance("Starting")
        if wanted.state == Instance.STOPPED:
            status.state = Instance.STOPPED
            return "Finished", "It ended by itself without an error, and its restart policy leaves it so."
        if wanted.state == Instance.FAILED:
            status.state, status.health = Instance.FAILED, Instance.Health.UNHEALTHY
            return _failure(wanted)
        status.state = wanted.state
        return "Starting", ""

    def _hindrance(self, otherwise: str) -> tuple[str, str]:
        """Return what keeps the app's nodes from doing what they were told, or them from being told."""
        if is_stopped_for(self._app):
            move = self._status.database_move
            where = f"from {move.source_server} to {move.target_server}"
            return "DatabaseMoving", f"It is stopped while its database is copied {where}."
        database = get_condition(self._status.conditions, DATABASE_READY)
        if database is not None and database.status == Condition.UNMET:
            return database.reason, database.message
        for instance in self._status.instances:
            if instance.state == Instance.STOPPING and instance.last_error.reason == "DATA_NOT_REMOVED":
                return instance.last_error.reason, instance.last_error.message
        wanted = self._assigned.wanted
        if wanted is not None and (other := waits_for(wanted, self._seen)):
            if other not in self._seen.alone:
                return "NODE_UNREACHABLE", (
                    f"{other} cannot be heard and may serve the app until its lease runs out; it starts on "
                    f"{wanted.node} after that."
                )
            return "ServedAlone", (
                f"{other} was the only node of its environment and may serve the app, so nothing is started "
                f"on {wanted.node} before {other} has heard that it is no longer alone."
            )
        hindrances = (view.hindrance for view in self._views() if view.heard and view.hindrance)
        return next(hindrances, (otherwise, ""))

    def _to_be_shown(self) -> Instance | None:
        """Return the instance that is to run, and tells of an app that does not serve."""
        return self._shown(self._assigned.wanted)

    def _shown(self, placement: PlacementRecord | None) -> Instance | None:
        if placement is None:
            return None
        return next((it for it in self._status.instances if it.name == placement.instance), None)

    def _views(self) -> list[NodeView]:
        nodes = dict.fromkeys(placement.node for placement in self._assigned.placements)
        return [self._seen.nodes[name] for name in nodes if name in self._seen.nodes]

    def _is_heard(self) -> bool:
        nodes = {it.node for it in self._assigned.staying}
        return all(self._seen.heard(node) is not None for node in nodes)

    def _silent(self) -> str:
        """Return the name of the app's node if it isn't heard; while it is deleted, of any that isn't."""
        views = self._views() if self._app.deleting else [self._home] if self._home else []
        return next((view.node.name for view in views if not view.heard), "")

    def _at_rest(self) -> bool:
        return bool(self._status.state == Instance.STOPPED) and not self._app.deleting

    def _alone(self) -> bool:
        """Tell whether nothing is left of other placements than the one that is to be."""
        staying = self._assigned.staying
        return len(staying) <= 1 and all(it.role not in ENDING for it in staying)

    def _is_settled(self) -> bool:
        app, serving = self._app, self._serving
        if app.deleting or self._status.retained_data:
            return False
        if app.spec.desired_state == App.STOPPED:
            return bool(self._status.state == Instance.STOPPED) and self._alone()
        one = len(self._status.instances) == 1 and self._alone()
        return serving is not None and one and version_of(serving) == app.target

    def _is_final(self) -> bool:
        """Tell whether nothing more will be done until somebody changes something."""
        app, status = self._app, self._status
        if app.deleting or status.retained_data or travel_of(self._assigned.placements) is not None:
            return False
        if app.failed == app.target and status.state in READY:
            return len(status.instances) == 1 and self._alone()
        # What served before may stand beside what failed, if only as the place to go back to.
        ending = any(it.role in ENDING for it in self._assigned.staying)
        return (
            status.state in (Instance.FAILED, Instance.STOPPED) and not ending and len(status.instances) <= 1
        )

    def _set_scheduled(self, now: int) -> None:
        if self._assigned.staying:
            where = f"On {home_of(self._assigned.staying)}."
            set_condition(self._status.conditions, "Scheduled", Condition.MET, "Placed", where, now)
        elif self._assigned.unplaced:
            why, reason = self._assigned.unplaced, self._assigned.unplaced_reason
            set_condition(self._status.conditions, "Scheduled", Condition.UNMET, reason, why, now)

    def _set_updated(self, now: int) -> None:
        app, status, current = self._app, self._status, self._assigned.current
        if app.failed is not None and app.failed == app.target:
            # One that was well is no culprit: it was called off.
            culprit = next((it for it in status.instances if _is_culprit(it, app.failed)), None)
            known = next((c for c in status.conditions if c.type == "Updated"), None)
            if culprit is not None or known is None or known.status != Condition.UNMET:
                error = culprit.last_error if culprit is not None else InstanceError()
                restarted = current is not None and current.generation == app.failed.generation
                before = "instance" if restarted else "version"
                message = sentences(
                    error.message or f"The new {before} did not start",
                    f"The {before} before it goes on serving",
                )
                reason = error.reason or "APP_STARTUP_FAILED"
                set_condition(status.conditions, "Updated", Condition.UNMET, reason, message, now)
        elif current is not None and current.version == app.target:
            set_condition(status.conditions, "Updated", Condition.MET, "Current", "", now)


def _is_culprit(instance: Instance, failed: Version) -> bool:
    return version_of(instance) == failed and bool(instance.last_error.reason)


def _failure(instance: Instance) -> tuple[str, str]:
    """Return why an instance is failed: that it is left so, where it is, and what it failed of."""
    error = instance.last_error
    loop = next((c for c in instance.conditions if c.type == "CrashLoop" and c.status == Condition.MET), None)
    if loop is not None:
        return loop.reason, sentences(loop.message, f"The last time: {error.message or 'it failed'}")
    return error.reason or "APP_STARTUP_FAILED", error.message or "It failed."

"""The status of an app that has several replicas: what all of them are together. Pure."""

from __future__ import annotations

from appsupervisor.catalog.v1.app_catalog_pb2 import App, Canary
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition, Instance
from services.control_plane.placement import canary
from services.control_plane.placement.assignment import ENDING, Assignment
from services.control_plane.placement.scale import is_at, wanted_replicas
from services.control_plane.placement.snapshot import NodeView, Snapshot, is_ready
from services.control_plane.reconciler.app_status import AppStatus
from services.control_plane.rules.conditions import get_condition, set_condition
from services.control_plane.rules.sentences import sentences
from services.control_plane.store.records import AppRecord

_TELLING = {Instance.STARTING: 0, Instance.PENDING: 1, Instance.STOPPING: 2, Instance.FAILED: 3}
"""Which instance tells of an app that does not serve: one that may yet, before one that has failed."""

_AT_REST = (Instance.RUNNING, Instance.IDLE, Instance.FAILED, Instance.STOPPED)


class ReplicaStatus(AppStatus):
    """Sets the parts of a status that follow from each other."""

    def __init__(
        self, app: AppRecord, assigned: Assignment, seen: Snapshot, status: App, home: NodeView | None
    ) -> None:
        super().__init__(app, assigned, seen, status, home)
        self._wanted = wanted_replicas(app)
        self._count = self._wanted + assigned.one_more
        self._kept = [it for it in assigned.by_replica().values() if it.wanted is not None]
        ready = (self._ready_of(it) for it in self._kept)
        self._ready = [it for it in ready if it is not None]

    def set(self, now: int) -> None:
        """Set state, health, conditions and whether work goes on."""
        super().set(now)
        self._set_canary(now)
        self._set_replicas(now)

    def _ready_of(self, replica: Assignment) -> Instance | None:
        """Return a replica's instance that serves, or would, as its node tells."""
        for placement in (replica.current, replica.incoming):
            if placement is not None and self._seen.heard(placement.node):
                instance = self._seen.instance(placement)
                if is_ready(instance):
                    return instance
        return None

    def _count_ready(self) -> int:
        return len(self._ready)

    def _state(self) -> tuple[str, str, Condition.Status.ValueType]:
        app, status = self._app, self._status
        if app.deleting or app.spec.desired_state == App.STOPPED or not self._assigned.staying:
            return super()._state()
        if not self._ready:
            status.health = Instance.Health.UNKNOWN
            return *self._not_ready(), Condition.UNMET
        runs = any(it.state == Instance.RUNNING for it in self._ready)
        status.state = Instance.RUNNING if runs else Instance.IDLE
        status.health = self._health()
        message = "" if len(self._ready) >= self._count else self._told()
        return "Serving" if runs else "Dormant", message, Condition.MET

    def _health(self) -> Instance.Health.ValueType:
        """Return how well the replicas are together: one that is not well makes the app DEGRADED."""
        found = {it.health for it in self._ready if it.state == Instance.RUNNING}
        # An app that has all its replicas is well, also if none can be had for a version that is to be tried.
        unplaced = bool(self._assigned.unplaced) and len(self._kept) < self._wanted
        missing = unplaced or any(self._is_missing(it) for it in self._kept)
        if found == {Instance.Health.UNHEALTHY}:
            return Instance.Health.UNHEALTHY
        if missing or found & {Instance.Health.UNHEALTHY, Instance.Health.DEGRADED}:
            return Instance.Health.DEGRADED
        return Instance.Health.HEALTHY if found == {Instance.Health.HEALTHY} else Instance.Health.UNKNOWN

    def _is_missing(self, replica: Assignment) -> bool:
        """Tell whether a replica does not serve, and is not merely on its way."""
        wanted = replica.wanted
        if wanted is None or self._ready_of(replica) is not None:
            return False
        shown = self._shown(wanted)
        failed = shown is not None and shown.state == Instance.FAILED
        known = wanted.node in self._seen.nodes or shown is not None  # else it has just been placed there
        return failed or (known and self._seen.heard(wanted.node) is None)

    def _to_be_shown(self) -> Instance | None:
        shown = [self._shown(it.wanted) for it in self._kept]
        if None in shown:
            return None
        return min(filter(None, shown), key=lambda it: _TELLING.get(it.state, 4), default=None)

    def _silent(self) -> str:
        if self._app.deleting:
            return super()._silent()
        if self._ready:
            return ""
        nodes = (it.wanted.node for it in self._kept if it.wanted is not None)
        return next((it for it in nodes if it in self._seen.nodes and not self._seen.heard(it)), "")

    def _alone(self) -> bool:
        return all(len(it.placements) == 1 for it in self._assigned.by_replica().values()) and not any(
            it.role in ENDING for it in self._assigned.staying
        )

    def _is_done(self, replica: Assignment) -> bool:
        return is_at(replica.current, self._app.target)

    def _is_settled(self) -> bool:
        app = self._app
        if app.deleting or self._status.retained_data:
            return False
        if app.spec.desired_state == App.STOPPED:
            return bool(self._status.state == Instance.STOPPED) and self._alone()
        full = len(self._ready) == len(self._kept) == len(self._status.instances) == self._count
        return full and self._alone() and all(map(self._is_done, self._kept))

    def _is_final(self) -> bool:
        app = self._app
        if app.deleting or any(it.role in ENDING for it in self._assigned.staying):
            return False
        if len(self._kept) != self._count or not all(map(self._is_at_rest, self._kept)):
            return False
        if app.failed == app.target:
            # All have gone back, or those that have been started anew are as good as the others. Where what
            # was to bring one back has failed itself, what it was to replace stands beside it.
            return len({it.wanted.generation for it in self._kept if it.wanted is not None}) <= 1
        return app.spec.rollout.paused or all(self._is_done(it) or it.current is None for it in self._kept)

    def _is_at_rest(self, replica: Assignment) -> bool:
        """Tell whether nothing more happens to a replica by itself."""
        shown = self._shown(replica.wanted)
        if shown is None or shown.state not in _AT_REST:
            return False
        takes_over = replica.incoming is not None and is_ready(shown)
        return not takes_over

    def _set_scheduled(self, now: int) -> None:
        conditions = self._status.conditions
        if self._assigned.unplaced:
            reason, why = self._assigned.unplaced_reason, self._assigned.unplaced
            set_condition(conditions, "Scheduled", Condition.UNMET, reason, why, now)
        elif self._assigned.staying:
            nodes = [it.wanted.node for it in self._kept if it.wanted is not None]
            where = f"On {', '.join(nodes)}." if nodes else "It is ending."
            set_condition(conditions, "Scheduled", Condition.MET, "Placed", where, now)

    def _set_updated(self, now: int) -> None:
        conditions, failure = self._status.conditions, self._assigned.failure
        known = get_condition(conditions, "Updated")
        if failure is not None:
            set_condition(conditions, "Updated", Condition.UNMET, *failure, now)
        elif self._app.failed == self._app.target:
            if known is None or known.status != Condition.UNMET:
                super()._set_updated(now)
        elif self._kept and all(map(self._is_done, self._kept)):
            set_condition(conditions, "Updated", Condition.MET, "Current", "", now)

    def _set_canary(self, now: int) -> None:
        app, assigned = self._app, self._assigned
        if app.deleting or not (app.status.HasField("canary") or app.spec.rollout.HasField("canary")):
            return
        found = canary.observed(app, assigned.placements, assigned.failure, self._seen, now)
        if found.state:
            self._status.canary.CopyFrom(found)

    def _set_replicas(self, now: int) -> None:
        """Tell how many are ready, and how far a rollout is."""
        conditions = self._status.conditions
        if self._app.deleting or self._app.spec.desired_state == App.STOPPED:
            set_condition(conditions, "Replicas", Condition.UNMET, "Stopped", "", now)
            return
        full = len(self._ready) == self._count
        holds, reason = (Condition.MET, "Complete") if full else (Condition.UNMET, "Incomplete")
        set_condition(conditions, "Replicas", holds, reason, self._told(), now)

    def _told(self) -> str:
        done = sum(map(self._is_done, self._kept))
        old = any(it.current is not None and not self._is_done(it) for it in self._kept)
        rolling = old and self._app.failed != self._app.target
        trial = rolling and self._status.canary.state == Canary.ANALYZING
        beside = self._assigned.one_more
        return sentences(
            f"{len(self._ready)} of {self._count} are ready",
            f"{done} of {self._count} have been replaced" if rolling and not beside else "",
            "The new version is tried on a share of the requests first" if trial and not beside else "",
            "The new version is tried beside it on a share of the requests first" if trial and beside else "",
            "The rollout is paused" if rolling and self._app.spec.rollout.paused else "",
        )

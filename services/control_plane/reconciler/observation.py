"""What is: an app's status from what its node tells. Pure.

`observe` also notes which version serves and which was given up, so that a failed update goes on
serving the old version, also after a restart of the node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition, Instance, InstanceError
from services.control_plane.rules.conditions import set_condition
from services.control_plane.store.records import AppRecord, Version

READY = frozenset({Instance.RUNNING, Instance.IDLE})


@dataclass(frozen=True, slots=True)
class View:
    """What can be seen of an app's node: the app's instances there, by resource name.

    `reachable` is false once the node was not heard for its time limit; the instances are then the
    last ones told. `node` is None while the app has no node.
    """

    node: Node | None
    reachable: bool
    instances: Mapping[str, Instance]
    unplaced_reason: str = ""
    """Why the app has no node: one sentence."""
    hindrance: tuple[str, str] | None = None
    """Why its last start was not accepted, for now: a reason and a sentence."""


def version_of(instance: Instance) -> Version:
    """Return the version that an instance runs."""
    return Version(instance.generation, instance.epoch)


def own_instances(record: AppRecord, view: View) -> dict[str, Instance]:
    """Return the instances of this very app: those of another uid belong to one that had its name."""
    return {name: i for name, i in view.instances.items() if i.app_uid in ("", record.uid)}


def is_ready(instance: Instance | None) -> bool:
    """Tell whether an instance serves, or would with the first request."""
    return instance is not None and instance.state in READY


def wanted_version(record: AppRecord) -> Version:
    """Return the version that is to run: the target, or the one served before it was given up."""
    if record.failed == record.target and record.served is not None:
        return record.served
    return record.target


def wanted_spec(record: AppRecord) -> App:
    """Return the spec of the wanted version."""
    if record.served_spec is not None and wanted_version(record) != record.target:
        return record.served_spec
    return record.spec


def instance_name(record: AppRecord, version: Version) -> str:
    """Return the resource name of the instance that runs a version."""
    return f"{record.name}/instances/{version.instance_id}"


def observe(record: AppRecord, view: View, now: int) -> AppRecord:
    """Return the app with what has been observed: versions served and given up, and its status."""
    mine = own_instances(record, view)
    if view.reachable:
        record = _advance(record, mine)
    status = App()
    status.CopyFrom(record.status)
    status.instances.clear()
    for name in sorted(mine):
        shown = status.instances.add()
        shown.CopyFrom(mine[name])
        shown.node = view.node.name if view.node else ""
        shown.ClearField("figures")
        if not view.reachable:
            shown.health = Instance.Health.UNKNOWN
    status.uri = _uri(record, view.node)
    _set_state(record, view, mine, status, now)
    if status == record.status:
        return record
    return replace(record, status=status)


def awaits_start(record: AppRecord, view: View) -> bool:
    """Tell whether an app that is to run has nothing on its node, for all that is known yet."""
    wanted = record.spec.desired_state != App.STOPPED and not record.deleting and record.failed is None
    seen = bool(view.instances) or view.hindrance is not None
    return wanted and view.reachable and not seen


def _advance(record: AppRecord, mine: Mapping[str, Instance]) -> AppRecord:
    """Note the newest ready version as served, and a failed target beside it as given up."""
    ready = [version_of(i) for i in mine.values() if is_ready(i)]
    if record.target in ready:
        if record.served != record.target or record.served_spec is not None:
            record = replace(record, served=record.target, served_spec=None, failed=None)
        return record
    if record.served is None and ready:  # it was ready only after the next version was wanted
        record = replace(record, served=max(ready, key=lambda v: (v.epoch, v.generation)))
    if record.served is None or record.served == record.target:
        return record
    if record.failed == record.target:
        if not has_served_spec(record) and instance_name(record, record.served) not in mine:
            return replace(record, failed=None)  # it is gone and cannot be run again
        return record
    target = mine.get(instance_name(record, record.target))
    failed = target is not None and target.state == Instance.FAILED
    if failed and (record.served in ready or record.served_spec is not None):
        return replace(record, failed=record.target)
    return record


def has_served_spec(record: AppRecord) -> bool:
    """Tell whether the spec of the version served is known: its own, or the current one."""
    if record.served is None:
        return False
    return record.served_spec is not None or record.served.generation == record.target.generation


def under_new_epoch(record: AppRecord, known: int) -> AppRecord:
    """Return the app with its wanted version moved to an epoch above `known`, the node's highest."""
    epoch = max(known, record.target.epoch) + 1
    target = replace(record.target, epoch=epoch)
    if wanted_version(record) == record.target or record.served is None:
        return replace(record, target=target)
    return replace(record, target=target, failed=target, served=replace(record.served, epoch=epoch))


def _set_state(record: AppRecord, view: View, mine: Mapping[str, Instance], status: App, now: int) -> None:
    wanted = mine.get(instance_name(record, wanted_version(record)))
    ready = _serving(mine)
    was_stopped = status.state == Instance.STOPPED
    status.health = Instance.Health.UNKNOWN
    reason, message, holds = "", "", Condition.UNMET
    if record.deleting:
        status.state, reason = Instance.DELETING, "Deleting"
    elif record.spec.desired_state == App.STOPPED:
        # What was seen stopped stays so while its node cannot be heard: nothing starts it.
        gone = all(instance.state == Instance.STOPPED for instance in mine.values())
        stopped = gone and (view.reachable or not record.node or was_stopped)
        status.state = Instance.STOPPED if stopped else Instance.STOPPING
        reason = "Stopped" if stopped else "Stopping"
    elif view.node is None:
        status.state, reason = Instance.PENDING, "NO_NODE_AVAILABLE"
        message = view.unplaced_reason
    elif ready is not None:
        status.state, status.health, holds = ready.state, ready.health, Condition.MET
        reason = "Serving" if ready.state == Instance.RUNNING else "Dormant"
    elif wanted is None or wanted.state == Instance.STOPPING:
        status.state = Instance.PENDING
        reason, message = view.hindrance or ("Starting", "")
    elif wanted.state == Instance.STOPPED:
        status.state, reason = Instance.STOPPED, "Finished"
        message = "It ended by itself without an error, and its restart policy leaves it so."
    elif wanted.state == Instance.FAILED:
        status.state, status.health = Instance.FAILED, Instance.Health.UNHEALTHY
        reason, message = _failure(wanted)
    else:
        status.state, reason = wanted.state, "Starting"
    if view.node is not None and not view.reachable and not _at_rest(record, status):
        status.health, holds = Instance.Health.UNKNOWN, Condition.UNKNOWN
        reason = "NODE_UNREACHABLE"
        message = f"{view.node.name} cannot be heard; nothing is known of what runs there."
    set_condition(status.conditions, "Ready", holds, reason, message, now)
    _set_scheduled(view, status, now)
    _set_updated(record, mine, status, now)
    settled = _is_settled(record, status, ready)
    if settled:
        status.observed_generation = record.generation
    status.reconciling = not settled and not _is_final(record, status)


def _failure(instance: Instance) -> tuple[str, str]:
    """Return why an instance is failed: that it is left so, where it is, and what it failed of."""
    error = instance.last_error
    loop = next((c for c in instance.conditions if c.type == "CrashLoop" and c.status == Condition.MET), None)
    if loop is not None:
        return loop.reason, f"{loop.message} The last time: {error.message or 'it failed.'}"
    return error.reason or "APP_STARTUP_FAILED", error.message or "It failed."


def _serving(mine: Mapping[str, Instance]) -> Instance | None:
    """Return the ready instance of the newest version."""
    ready = [i for i in mine.values() if is_ready(i)]
    return max(ready, key=lambda i: (i.epoch, i.generation), default=None)


def _at_rest(record: AppRecord, status: App) -> bool:
    return bool(status.state == Instance.STOPPED) and not record.deleting


def _is_settled(record: AppRecord, status: App, serving: Instance | None) -> bool:
    if record.deleting:
        return False
    if record.spec.desired_state == App.STOPPED:
        return bool(status.state == Instance.STOPPED)
    alone = len(status.instances) == 1
    return serving is not None and alone and version_of(serving) == record.target


def _is_final(record: AppRecord, status: App) -> bool:
    """Tell whether nothing more will be done until somebody changes something."""
    if record.deleting:
        return False
    gave_up = record.failed == record.target and status.state in READY and len(status.instances) == 1
    return gave_up or status.state in (Instance.FAILED, Instance.STOPPED)


def _set_scheduled(view: View, status: App, now: int) -> None:
    if view.node is not None:
        set_condition(status.conditions, "Scheduled", Condition.MET, "Placed", f"On {view.node.name}.", now)
    elif status.state == Instance.PENDING:
        set_condition(
            status.conditions,
            "Scheduled",
            Condition.UNMET,
            "NO_NODE_AVAILABLE",
            view.unplaced_reason,
            now,
        )


def _set_updated(record: AppRecord, mine: Mapping[str, Instance], status: App, now: int) -> None:
    if record.failed is not None and record.failed == record.target:
        culprit = mine.get(instance_name(record, record.failed))
        known = next((c for c in status.conditions if c.type == "Updated"), None)
        if culprit is not None or known is None or known.status != Condition.UNMET:
            error = culprit.last_error if culprit is not None else InstanceError()
            message = error.message or "The new version did not start."
            set_condition(
                status.conditions,
                "Updated",
                Condition.UNMET,
                error.reason or "APP_STARTUP_FAILED",
                f"{message} The version before it goes on serving.",
                now,
            )
    elif record.served == record.target:
        set_condition(status.conditions, "Updated", Condition.MET, "Current", "", now)


def _uri(record: AppRecord, node: Node | None) -> str:
    if node is None:
        return ""
    app_id = record.name.removeprefix("apps/")
    host = f"{app_id}.{node.base_domain or 'localhost'}"
    port = node.http_address.rpartition(":")[2]
    return f"http://{host}/" if port == "80" else f"http://{host}:{port}/"

"""Works out an app's status from its placements and from what their nodes tell. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance
from services.control_plane.placement.assignment import Assignment
from services.control_plane.placement.scale import is_several, wanted_replicas, with_newest_epoch
from services.control_plane.placement.snapshot import NodeView, Snapshot, is_own, is_ready
from services.control_plane.reconciler.app_status import AppStatus
from services.control_plane.reconciler.replica_status import ReplicaStatus
from services.control_plane.store.records import AppRecord, home_of
from services.spec.availability import explained_availability


def observe(app: AppRecord, assigned: Assignment, seen: Snapshot, now: int) -> AppRecord:
    """Return the app with the status that its placements and their nodes give it, as of now (µs)."""
    target = assigned.target or app.target
    if (app.failed, app.target) != (assigned.failed, target):
        app = replace(app, failed=assigned.failed, target=target)
    app = with_newest_epoch(app, assigned.newest_epoch)
    status = App()
    status.CopyFrom(app.status)
    told = dict(_told(app, assigned, seen))
    status.instances.clear()
    for name in sorted(told):
        instance, view = told[name]
        shown = status.instances.add()
        shown.CopyFrom(instance)
        if view is not None:
            shown.node = view.node.name
            shown.ClearField("figures")
            if not view.heard:
                shown.health = Instance.Health.UNKNOWN
    home = _home(app, assigned, seen)
    if home is not None:
        status.uri = _uri(app, home.node)
    status.target_replicas = wanted_replicas(app) if app.spec.HasField("autoscale") else 0
    nodes = {placement.node for placement in assigned.staying}
    status.effective_availability, status.availability_reason = explained_availability(
        app.spec, alone=bool(nodes) and nodes <= seen.alone
    )
    kind = ReplicaStatus if is_several(app) else AppStatus
    kind(app, assigned, seen, status, home).set(now)
    if status == app.status:
        return app
    return replace(app, status=status)


def _told(
    app: AppRecord, assigned: Assignment, seen: Snapshot
) -> Iterator[tuple[str, tuple[Instance, NodeView | None]]]:
    """Yield the app's instances on the nodes that it has placements on, each with the node that is seen."""
    known = {placement.node for placement in assigned.staying}
    for instance in app.status.instances:
        if instance.node in known and instance.node not in seen.nodes:
            yield instance.name, (instance, None)
    for name in known & seen.nodes.keys():
        view = seen.nodes[name]
        for instance in view.instances.values():
            if is_own(instance, app.uid):
                yield instance.name, (instance, view)


def _uri(app: AppRecord, node: Node) -> str:
    app_id = app.name.removeprefix("apps/")
    host = f"{app_id}.{node.base_domain or 'localhost'}"
    port = node.http_address.rpartition(":")[2]
    return f"http://{host}/" if port == "80" else f"http://{host}:{port}/"


def _home(app: AppRecord, assigned: Assignment, seen: Snapshot) -> NodeView | None:
    """Return the node that an app is told to be on: of several, one that is ready, and not on trial."""
    staying = assigned.staying
    ready = [it for it in staying if seen.heard(it.node) and is_ready(seen.instance(it))]
    ready = [it for it in ready if it.node not in app.status.canary.nodes] or ready
    several = len({it.replica for it in staying}) > 1
    return seen.nodes.get(home_of(ready if ready and several else staying))

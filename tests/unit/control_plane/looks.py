"""Apps, placements and snapshots of nodes for the tests of what is decided, observed and planned."""

from __future__ import annotations

from typing import Any

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.control_plane.placement.assignment import assign, pinned
from services.control_plane.placement.choice import Candidate
from services.control_plane.placement.snapshot import NodeView, Sight, Snapshot
from services.control_plane.reconciler.observation import observe
from services.control_plane.reconciler.plan import Plan, plan
from services.control_plane.store.records import AppRecord, PlacementRecord, Role, Version

N, M = "environments/default/nodes/n", "environments/default/nodes/m"
IN, CUR, OUT, LOST = Role.INCOMING, Role.CURRENT, Role.OUTGOING, Role.LOST
V11, V21, V12, V22, V31 = Version(1, 1), Version(2, 1), Version(1, 2), Version(2, 2), Version(3, 1)
RUNNING, IDLE, STARTING, FAILED = (
    rt.Instance.RUNNING,
    rt.Instance.IDLE,
    rt.Instance.STARTING,
    rt.Instance.FAILED,
)


def record(target: Version = V11, *, desired: Any = pb.App.RUNNING, **fields: Any) -> AppRecord:
    spec = pb.App(name="apps/a", entrypoint=f"v{target.generation}:app", desired_state=desired)
    spec.environment = "environments/default"
    return AppRecord(
        "apps/a",
        "mine",
        spec,
        generation=target.generation,
        target=target,
        create_time=1,
        update_time=1,
        **{"status": pb.App(), **fields},
    )


def placed(version: Version, role: Role, node: str = N, **fields: Any) -> PlacementRecord:
    spec = pinned(pb.App(entrypoint=f"v{version.generation}:app"))
    return PlacementRecord("apps/a", "mine", 0, version.generation, version.epoch, node, role, spec, **fields)


def instance(version: Version, state: Any, uid: str = "mine", reason: str = "") -> rt.Instance:
    made = rt.Instance(
        name=f"apps/a/instances/{version.instance_id}",
        app_uid=uid,
        generation=version.generation,
        epoch=version.epoch,
        state=state,
        health=rt.Instance.Health.HEALTHY if state == RUNNING else rt.Instance.Health.UNKNOWN,
    )
    if reason:
        made.last_error.reason, made.last_error.message = reason, "It broke."
    return made


def node(name: str = N) -> Node:
    return Node(name=name, http_address="h:8080", base_domain="apps.example")


def heard(*instances: rt.Instance, at: str = N, **fields: Any) -> Snapshot:
    return Snapshot({at: NodeView(node(at), Sight.HEARD, {it.name: it for it in instances}, **fields)})


def silent(*instances: rt.Instance, at: str = N) -> Snapshot:
    return Snapshot({at: NodeView(node(at), Sight.SILENT, {it.name: it for it in instances})})


def free(*names: str) -> Snapshot:
    return Snapshot({}, tuple(Candidate(name, True, 0, 0) for name in names))


def told(*instances: rt.Instance, at: str = N) -> pb.App:
    """The status of an app whose instances were stored as these."""
    status = pb.App()
    for it in instances:
        status.instances.add().CopyFrom(it)
        status.instances[-1].node = at
    return status


def roles(app: AppRecord, placements: list[PlacementRecord], seen: Snapshot) -> dict[str, str]:
    """What is decided, as `{instance: role at node}`."""
    return {
        it.instance_id: f"{it.role.name} at {it.node.rpartition('/')[2]}"
        for it in assign(app, placements, seen, 5).placements
    }


def after(app: AppRecord, placements: list[PlacementRecord], seen: Snapshot) -> AppRecord:
    """The app once it has been decided on and observed."""
    return observe(app, assign(app, placements, seen, 5), seen, 5)


def planned(app: AppRecord, placements: list[PlacementRecord], seen: Snapshot) -> Plan:
    """What is to be done once it has been decided on."""
    return plan(app, assign(app, placements, seen, 5), seen, 5)

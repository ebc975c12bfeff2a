"""A fleet that is full from its beginning: apps in the catalog as passes leave them, and on simulated nodes.

Made without a control plane, in the time of a few commits. Passes find nothing to be done: the status is what
the reconciler's own functions make of it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.fleet.v1.fleet_pb2 import AppDefaults, Node
from appsupervisor.runtime.v1.runtime_environment_pb2 import (
    Condition,
    Database,
    Instance,
    InstanceCode,
    InstanceSpec,
)
from services.control_plane.catalog.changes import checked_spec
from services.control_plane.placement.assignment import assign, pinned
from services.control_plane.placement.snapshot import NodeView, Sight, Snapshot
from services.control_plane.reconciler.observation import observe
from services.control_plane.store.interface import Transaction
from services.control_plane.store.records import AppRecord, PlacementRecord, Role, Version
from services.control_plane.store.sql_store import open_store
from tests.fakes.runtime_node import FakeNode

ENVIRONMENT = "environments/default"
ENTRYPOINT = "notes:create_app"
NOWHERE = Database(no_database=Database.NoDatabase())
"""What apps have that may go anywhere."""
CHUNK = 1_000
SINCE = 1_700_000_000
"""When all of it began, in seconds."""


def node_name(number: int) -> str:
    return f"{ENVIRONMENT}/nodes/node-{number:04d}"


def incarnation(number: int) -> str:
    return f"life-{number:04d}"


def app_id(number: int) -> str:
    return f"app-{number:06d}"


def on_node(number: int, nodes: int, apps: int) -> Iterator[tuple[InstanceSpec, Instance]]:
    """Yield what runs on a node: its spec, and what is told of it."""
    for app in range(number, apps, nodes):
        name = f"apps/{app_id(app)}/instances/{Version(1, 1).instance_id}"
        spec = InstanceSpec(name=name, app_uid=_uid(app), generation=1, epoch=1, entrypoint=ENTRYPOINT)
        spec.database.CopyFrom(NOWHERE)
        yield spec, _instance(app, name, number)


def fill(url: str, nodes: int, apps: int) -> None:
    """Put the apps into a catalog in which the nodes are."""
    store = open_store(url)
    known = {record.name: record.node for record in store.mirror.nodes.values()}
    made: dict[int, tuple[AppRecord, PlacementRecord]] = {}
    for first in range(0, apps, CHUNK):

        def put(tx: Transaction, first: int = first) -> None:
            for app in range(first, min(first + CHUNK, apps)):
                number = app % nodes
                if number not in made:
                    made[number] = _placed(number, known[node_name(number)], number)
                record, placement = _renamed(*made[number], number, app)
                tx.put_app(record)
                tx.put_placement(placement)

        store.write(put).result(60)
    store.close()


def host(node: FakeNode, number: int, nodes: int, apps: int) -> None:
    """Have a simulated node run what it is to."""
    for spec, instance in on_node(number, nodes, apps):
        node.host(spec, instance)


def _uid(app: int) -> str:
    return str(uuid.UUID(int=app, version=4))


def _instance(app: int, name: str, number: int) -> Instance:
    found = Instance(
        name=name, app_uid=_uid(app), node=node_name(number), incarnation=incarnation(number), generation=1,
        epoch=1, state=Instance.RUNNING, health=Instance.Health.HEALTHY, isolation=InstanceSpec.SHARED,
        code=InstanceCode(digest="0" * 64),
    )  # fmt: skip
    ready = Condition(type="Ready", status=Condition.MET, reason="Started")
    for time in (found.create_time, found.ready_time, found.code.modify_time, ready.last_transition_time):
        time.FromSeconds(SINCE)
    found.conditions.append(ready)
    return found


def _placed(app: int, node: Node, number: int) -> tuple[AppRecord, PlacementRecord]:
    name, now = f"apps/{app_id(app)}", SINCE * 1_000_000
    asked = catalog.App(entrypoint=ENTRYPOINT, database=NOWHERE)
    spec = checked_spec(asked, name, [], AppDefaults())
    record = AppRecord(name, _uid(app), spec, catalog.App(), 1, Version(1, 1), now, now)
    placement = PlacementRecord(
        name, record.uid, 0, 1, 1, node.name, Role.CURRENT, pinned(spec), "Seeded.", since=now
    )
    instance = _instance(app, f"{name}/instances/{placement.instance_id}", number)
    seen = Snapshot({node.name: NodeView(node, Sight.HEARD, {instance.name: instance})})
    while (observed := observe(record, assign(record, [placement], seen, now), seen, now)) is not record:
        record = observed
    assert not record.status.reconciling
    return record, placement


def _renamed(
    record: AppRecord, placement: PlacementRecord, old: int, new: int
) -> tuple[AppRecord, PlacementRecord]:
    """Return what was made of one app for another one on its node, in a fifth of the time."""
    name, uid = f"apps/{app_id(new)}", _uid(new)
    spec, status = (
        catalog.App.FromString(_with(_with(it.SerializeToString(), app_id(old), app_id(new)), _uid(old), uid))
        for it in (record.spec, record.status)
    )
    other = AppRecord(
        name, uid, spec, status, record.generation, record.target, record.create_time, record.update_time
    )
    return other, replace(placement, app=name, app_uid=uid)


def _with(message: bytes, old: str, new: str) -> bytes:
    """Return a message with another id, or uid, of the same length."""
    assert len(old) == len(new)
    return message.replace(old.encode(), new.encode())

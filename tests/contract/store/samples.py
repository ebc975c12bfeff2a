"""Records for the store's tests, and ways to look at a catalog as plain values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection
from sqlmodel import select

from appsupervisor.catalog.v1.app_catalog_pb2 import App, AppEvent, OperationMetadata
from appsupervisor.catalog.v1.certificates_pb2 import Certificate
from appsupervisor.catalog.v1.retained_data_pb2 import RetainedData
from appsupervisor.fleet.v1.fleet_pb2 import DatabaseServer, Environment, Node
from services.control_plane.store.interface import Transaction
from services.control_plane.store.mirror import Mirror
from services.control_plane.store.records import (
    AppRecord,
    BatchRecord,
    CertificateRecord,
    DatabaseServerRecord,
    EnvironmentRecord,
    NodeRecord,
    OperationRecord,
    PlacementRecord,
    RequestRecord,
    RetainedDataRecord,
    Role,
    Version,
)
from services.control_plane.store.sql.tables import ChangeRow, MetaRow
from services.rpc.feed import ChangeFeed
from tests.eventually import WITHIN

DEFAULT = "environments/default"
WAIT = WITHIN
"""Seconds after which a test gives up on an answer."""


def app(
    name: str,
    *,
    uid: str = "",
    domains: tuple[str, ...] = (),
    environment: str = DEFAULT,
    generation: int = 1,
) -> AppRecord:
    return AppRecord(
        name=name,
        uid=uid or f"uid-of-{name}",
        spec=App(name=name, entrypoint="notes.app:create_app", environment=environment, domains=domains),
        status=App(),
        generation=generation,
        target=Version(generation, 1),
        create_time=1,
        update_time=generation,
    )


def environment(name: str) -> EnvironmentRecord:
    return EnvironmentRecord(Environment(name=name, uid=f"uid-of-{name}"))


def database_server(name: str) -> DatabaseServerRecord:
    return DatabaseServerRecord(DatabaseServer(name=name), "postgresql://admin:secret@db/apps", b"\0key\xff")


def certificate(name: str) -> CertificateRecord:
    return CertificateRecord(Certificate(name=name, domains=["a.example"]), "secret key")


def node(name: str, address: str = "127.0.0.1:7401") -> NodeRecord:
    return NodeRecord(Node(name=name, address=address))


def placement(
    of: str, *, epoch: int = 1, node: str = f"{DEFAULT}/nodes/n", role: Role = Role.CURRENT
) -> PlacementRecord:
    return PlacementRecord(
        app=of,
        app_uid=f"uid-of-{of}",
        replica=0,
        generation=1,
        epoch=epoch,
        node=node,
        role=role,
        spec=App(entrypoint="notes.app:create_app").SerializeToString(),
    )


def retained(
    uid: str = "uid-1", of: str = "apps/gone", node: str = f"{DEFAULT}/nodes/n"
) -> RetainedDataRecord:
    name = f"{node}/retainedData/{uid}"
    return RetainedDataRecord(
        RetainedData(name=name, uid=uid, app_uid=uid, app=of, state=RetainedData.RETAINED)
    )


def operation(name: str, of: str, *, done: bool = False, expire_time: int = 0) -> OperationRecord:
    return OperationRecord(
        name=name,
        app=of,
        app_uid=f"uid-of-{of}",
        verb="create",
        goal=Version(1, 1),
        metadata=OperationMetadata(target=of, verb="create"),
        create_time=1,
        deadline=2,
        done=done,
        response=App(name=of) if done else None,
        expire_time=expire_time,
    )


def event(message: str) -> AppEvent:
    return AppEvent(type="Created", message=message)


def request(request_id: str, expire_time: int, digest: str = "digest") -> RequestRecord:
    return RequestRecord(request_id, digest, b"response", expire_time)


def put(*records: Any) -> Callable[[Transaction], int]:
    """A command that puts records of any kind and returns its revision."""

    def command(tx: Transaction) -> int:
        for record in records:
            match record:
                case AppRecord():
                    tx.put_app(record)
                case EnvironmentRecord():
                    tx.put_environment(record)
                case DatabaseServerRecord():
                    tx.put_database_server(record)
                case CertificateRecord():
                    tx.put_certificate(record)
                case NodeRecord():
                    tx.put_node(record)
                case PlacementRecord():
                    tx.put_placement(record)
                case RetainedDataRecord():
                    tx.put_retained(record)
                case BatchRecord():
                    tx.put_batch(record)
                case OperationRecord():
                    tx.put_operation(record)
                case RequestRecord():
                    tx.put_request(record)
        return tx.revision

    return command


def raised(app_record: AppRecord | None) -> AppRecord:
    """The next generation of an app."""
    assert app_record is not None
    return replace(app_record, generation=app_record.generation + 1)


def bare(record: Any) -> Any:
    """A record without what the store sets."""
    own = {"revision": 0, "history": ""} if isinstance(record, AppRecord) else {"revision": 0}
    return replace(record, **own)


def contents(feed: ChangeFeed[Any]) -> dict[str, tuple[int, Any]]:
    """What a feed holds: revision and value by key."""
    return {entry.key: (entry.revision, entry.value) for entry in feed.page("", 1_000_000)}


def placements(mirror: Mirror) -> dict[str, tuple[int, PlacementRecord]]:
    """All placements that a mirror holds: revision and record by key."""
    apps = {key.partition("/placements/")[0] for key in mirror.keys("placements")}
    return {it.name: (it.revision, it) for app in apps for it in mirror.placements_of(app)}


def snapshot(mirror: Mirror) -> dict[str, dict[str, tuple[int, Any]]]:
    """All of a mirror's contents, by kind."""
    return {
        "database_server": contents(mirror.database_servers),
        "environment": contents(mirror.environments),
        "certificate": contents(mirror.certificates),
        "node": contents(mirror.nodes),
        "app": contents(mirror.apps),
        "placement": placements(mirror),
        "retained_data": contents(mirror.retained),
        "operation": contents(mirror.operations),
        "batch": contents(mirror.batches),
    }


def check_change_log(connection: Connection, mirror: Mirror) -> None:
    """The change log, the rows as loaded into the mirror, and the catalog's revision agree."""
    newest: dict[tuple[str, str], tuple[int, bool]] = {}
    changes = connection.execute(
        select(ChangeRow.revision, ChangeRow.kind, ChangeRow.key, ChangeRow.deleted)
    ).all()
    for revision, kind, key, deleted in sorted(changes, key=lambda row: row[0]):
        newest[kind, key] = (revision, deleted)
    living = {key: revision for key, (revision, deleted) in newest.items() if not deleted}
    assert living == {
        (kind, key): revision
        for kind, entries in snapshot(mirror).items()
        for key, (revision, _) in entries.items()
    }
    for kind, entries in snapshot(mirror).items():
        for key, (revision, record) in entries.items():
            assert record.revision == revision, (kind, key)
    stored = connection.execute(select(MetaRow.revision)).scalar_one()
    assert stored == mirror.apps.revision
    assert stored >= max((row[0] for row in changes), default=0)

"""Whose a database is, by the store: one server at every moment, whatever was cut off and comes too late."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from appsupervisor.catalog.v1.app_catalog_pb2 import App, DatabaseMove, UpdateAppRequest
from appsupervisor.fleet.v1.fleet_pb2 import DatabaseServer
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance
from services.control_plane.catalog import changes
from services.control_plane.operations import operations
from services.control_plane.placement.swap import pinned, spec_of
from services.control_plane.reconciler import database_moves
from services.control_plane.reconciler.database_moves import Way
from services.control_plane.rules.app_defaults import normalize_app
from services.control_plane.store.interface import CatalogStore, Transaction
from services.control_plane.store.records import (
    MOVE_DATABASE,
    AppRecord,
    DatabaseServerRecord,
    OperationRecord,
    PlacementRecord,
    Role,
    Version,
)
from services.control_plane.store.sql_store import open_store
from services.rpc.errors import SupervisorError
from services.rpc.pipeline.call import Caller

ONE, TWO, THREE = (f"databaseServers/{name}" for name in ("one", "two", "three"))
NODE = "environments/default/nodes/n1"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CatalogStore]:
    store = open_store(f"sqlite:///{tmp_path}/a.db")
    yield store
    store.close()


def created(store: CatalogStore, replicas: int = 1) -> AppRecord:
    """Store an app that serves, with its database on the first of three servers."""
    spec = App(name="apps/shop", entrypoint="shop:app", environment="environments/default")
    spec.desired_state, spec.replicas = App.RUNNING, replicas
    spec.database.postgres.server, spec.database.postgres.mode = ONE, 1
    full = normalize_app(spec)
    status = App(state=Instance.RUNNING, observed_generation=1, newest_epoch=replicas if replicas > 1 else 0)

    def put(tx: Transaction) -> AppRecord:
        for name in (ONE, TWO, THREE):
            tx.put_database_server(DatabaseServerRecord(DatabaseServer(name=name, max_apps=9), "url", b"key"))
        record = tx.put_app(AppRecord(spec.name, "uid-1", full, status, 1, Version(1, 1), 1, 1))
        for number in range(replicas):
            tx.put_placement(
                PlacementRecord(
                    app=spec.name, app_uid="uid-1", replica=number, generation=1, epoch=number + 1, node=NODE,
                    role=Role.CURRENT, spec=pinned(spec), why="", has_data=False, since=1,
                )
            )  # fmt: skip
        return record

    return store.write(put).result()


def asked(store: CatalogStore, server: str = TWO) -> OperationRecord:
    """Ask for the app's database to go to a server."""
    request = UpdateAppRequest(app=App(name="apps/shop"))
    request.app.database.postgres.server = server
    request.update_mask.paths.append("database.postgres.server")

    def run(tx: Transaction) -> OperationRecord:
        record = tx.app("apps/shop")
        assert record is not None
        return changes.update(tx, record, request, Caller("me", 10.0))

    return store.write(run).result()


def app(store: CatalogStore) -> AppRecord:
    record = store.mirror.apps.get("apps/shop")
    assert record is not None
    return record


def tell(store: CatalogStore, what: Any, way: Way | None = None, **more: Any) -> Any:
    named = {"name": "apps/shop", "uid": "uid-1", "way": way or Way.of(app(store))}
    return store.write(partial(what, **named, **more)).result()


def copying(store: CatalogStore) -> OperationRecord:
    operation = asked(store)
    tell(store, database_moves.checked, total_bytes=100)
    assert app(store).status.database_move.state == DatabaseMove.COPYING
    return operation


def ended(store: CatalogStore, operation: OperationRecord) -> OperationRecord:
    known = store.mirror.operations.get(operation.name)
    assert known is not None
    return known


def roles(store: CatalogStore) -> list[tuple[str, int, str]]:
    found = store.mirror.placements_of("apps/shop")
    return sorted((it.role.name, it.epoch, spec_of(it).database.postgres.server) for it in found)


def test_the_server_changes_in_the_transaction_that_begins_the_app_anew(store: CatalogStore) -> None:
    created(store)
    operation = copying(store)
    assert operation.verb == MOVE_DATABASE
    assert app(store).database_server == ONE
    tell(store, database_moves.progressed, copied_bytes=50)
    progress = ended(store, operation).metadata
    assert (progress.step, progress.progress_percent) == ("copying database", 45)
    assert tell(store, database_moves.arrived, copied_bytes=90)
    record = app(store)
    assert (record.database_server, record.target, record.generation) == (TWO, Version(1, 2), 2)
    assert roles(store) == [("CURRENT", 2, TWO), ("OUTGOING", 1, ONE)]
    assert record.status.database_move.leftover_server == ONE
    assert not ended(store, operation).done
    tell(store, database_moves.confirmed)
    assert ended(store, operation).error is None
    assert ended(store, operation).done
    assert app(store).status.database_move.leftover_server == ONE  # until it is dropped


def test_of_several_replicas_each_begins_under_an_epoch_of_its_own(store: CatalogStore) -> None:
    created(store, replicas=2)
    copying(store)
    assert tell(store, database_moves.arrived, copied_bytes=90)
    assert roles(store) == [
        ("CURRENT", 3, TWO), ("CURRENT", 4, TWO), ("OUTGOING", 1, ONE), ("OUTGOING", 2, ONE),
    ]  # fmt: skip
    assert app(store).status.newest_epoch == 4


def test_a_version_that_was_to_come_comes_after_the_one_that_serves(store: CatalogStore) -> None:
    record = created(store)
    copying(store)

    def updated(tx: Transaction) -> None:
        now = tx.app(record.name)
        assert now is not None
        tx.put_app(replace(now, target=Version(2, 1), generation=2))

    store.write(updated).result()
    assert tell(store, database_moves.arrived, copied_bytes=90)
    # Both are told from the other, and from all that ran before.
    assert roles(store) == [("CURRENT", 2, TWO), ("OUTGOING", 1, ONE)]
    assert app(store).target == Version(2, 3)


def test_what_comes_too_late_changes_nothing(store: CatalogStore) -> None:
    created(store)
    operation = copying(store)
    late = Way.of(app(store))
    cancelled = SupervisorError("DATABASE_NOT_MOVED", "It broke off.")
    tell(store, database_moves.called_off, why=cancelled)
    error = ended(store, operation).error
    assert error is not None
    assert error.message == "It broke off."
    assert not tell(store, database_moves.arrived, late, copied_bytes=90)
    asked(store)
    tell(store, database_moves.checked, total_bytes=100)
    # The copy of the first try, which a leader that has slept wakes with, is none of the second.
    assert Way.of(app(store)) != late
    assert not tell(store, database_moves.arrived, late, copied_bytes=90)
    tell(store, database_moves.called_off, late, why=cancelled)
    assert (app(store).database_server, app(store).status.database_move.state) == (ONE, DatabaseMove.COPYING)


def test_a_move_to_a_server_that_is_forgotten_does_not_arrive(store: CatalogStore) -> None:
    created(store)
    copying(store)
    store.write(lambda tx: tx.delete_database_server(TWO)).result()
    assert not tell(store, database_moves.arrived, copied_bytes=90)
    assert app(store).database_server == ONE


def test_a_second_move_waits_for_the_first_and_for_what_that_has_left(store: CatalogStore) -> None:
    created(store)
    first = copying(store)
    assert asked(store).name != first.name  # the same once more
    with pytest.raises(SupervisorError, match="it moves to databaseServers/two") as refused:
        asked(store, THREE)
    assert refused.value.reason == "DATABASE_NOT_MOVED"
    tell(store, database_moves.arrived, copied_bytes=90)
    tell(store, database_moves.confirmed)
    with pytest.raises(SupervisorError, match="not dropped yet"):
        asked(store, THREE)
    store.write(partial(database_moves.dropped, name="apps/shop", uid="uid-1", server=ONE)).result()
    assert asked(store, THREE).verb == MOVE_DATABASE


def test_a_move_is_given_up_at_its_deadline_unless_it_has_arrived(store: CatalogStore) -> None:
    created(store)
    operation = copying(store)

    def overdue(tx: Transaction) -> None:
        known = tx.operation(operation.name)
        assert known is not None
        tx.put_operation(replace(known, deadline=tx.now - 1))
        operations.expire(tx, known.name)

    store.write(overdue).result()
    assert app(store).status.database_move.state == DatabaseMove.CALLED_OFF
    error = ended(store, operation).error
    assert error is not None
    assert "OPERATION_DEADLINE_EXCEEDED" in str(error)
    second = copying(store)
    tell(store, database_moves.arrived, copied_bytes=90)
    operation = second
    store.write(overdue).result()
    assert app(store).status.database_move.state == DatabaseMove.ARRIVED
    assert app(store).database_server == TWO

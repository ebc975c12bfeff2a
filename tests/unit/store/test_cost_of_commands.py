"""What commands cost, counted: those of a batch share its statements, what stays is not packed again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appsupervisor.catalog.v1.app_catalog_pb2 import App, AppEvent
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance
from services.control_plane.store.app_entries import AppEntry
from services.control_plane.store.interface import Transaction
from services.control_plane.store.packed_app import PackedApp
from services.control_plane.store.records import RequestRecord
from services.control_plane.store.sql.sqlite import InTurn
from services.control_plane.store.sql_store import SqlCatalogStore, open_store
from tests.contract.store.samples import WAIT, app, operation, put

TOGETHER = 32


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlCatalogStore]:
    opened = open_store(f"sqlite:///{tmp_path}/catalog.db")
    yield opened
    opened.close()


def create(number: int) -> Callable[[Transaction], None]:
    def command(tx: Transaction) -> None:
        assert tx.request(f"request-{number}") is None
        record = tx.put_app(app(f"apps/a{number}"))
        tx.put_operation(operation(f"operations/{number}", record.name))
        tx.add_event(record.name, AppEvent(type="Created"))
        tx.put_request(RequestRecord(f"request-{number}", "digest", b"", tx.now + 1_000_000))

    return command


def packed(store: SqlCatalogStore, name: str) -> PackedApp:
    entry = store.mirror.apps.entry(name)
    assert isinstance(entry, AppEntry)
    assert entry.packed is not None
    return entry.packed


def test_commands_that_arrive_together_cost_as_many_statements_as_one(
    store: SqlCatalogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write(put(app("apps/first"))).result(WAIT)  # its connection is made by now
    counts: list[int] = []
    run = InTurn.run

    def counting(self: InTurn, connection: Any, steps: Any) -> Any:
        counts.append(len(steps))
        return run(self, connection, steps)

    monkeypatch.setattr(InTurn, "run", counting)
    store.write(create(0), request_id="request-0").result(WAIT)
    alone = sum(counts)
    taken, go = threading.Event(), threading.Event()

    def hold(tx: Transaction) -> None:
        taken.set()
        assert go.wait(WAIT)

    held = store.write(hold)
    assert taken.wait(WAIT)
    before, counts[:] = store.written(), []
    numbers = range(1, TOGETHER + 1)
    futures = [store.write(create(number), request_id=f"request-{number}") for number in numbers]
    go.set()
    for future in (held, *futures):
        future.result(WAIT)
    assert [now - then for now, then in zip(store.written(), before, strict=True)] == [2, TOGETHER + 1]
    assert sum(counts) == alone


def test_a_spec_that_stays_is_not_packed_again(store: SqlCatalogStore) -> None:
    store.write(put(app("apps/a"))).result(WAIT)
    before = packed(store, "apps/a")

    def runs(tx: Transaction) -> None:
        record = tx.app("apps/a")
        assert record is not None
        tx.put_app(replace(record, status=App(state=Instance.RUNNING)))

    store.write(runs).result(WAIT)
    after = packed(store, "apps/a")
    assert after.spec is before.spec
    assert after.state == Instance.RUNNING


def test_a_spec_that_changes_is_seen_in_every_index(store: SqlCatalogStore) -> None:
    store.write(put(app("apps/a"))).result(WAIT)

    def label(tx: Transaction) -> None:
        record = tx.app("apps/a")
        assert record is not None
        spec = App()
        spec.CopyFrom(record.spec)
        spec.labels["tier"] = "gold"
        spec.exclusive = True
        tx.put_app(replace(record, spec=spec, generation=2))

    store.write(label).result(WAIT)
    assert packed(store, "apps/a").labels == ("tier=gold",)
    assert packed(store, "apps/a").exclusive
    record = store.mirror.apps.get("apps/a")
    assert record is not None
    assert record.public.labels["tier"] == "gold"

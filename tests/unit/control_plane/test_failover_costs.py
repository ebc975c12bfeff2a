"""What it takes of the control plane to have a lost node's apps serve elsewhere, counted for each app."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.control_plane.databases.app_databases import AppDatabases, Provided
from services.control_plane.nodes.link import NodeLink
from services.control_plane.reconciler.app_reconciler import AppReconciler
from services.control_plane.store.interface import CatalogStore
from services.control_plane.store.records import AppRecord, DatabaseServerRecord
from services.control_plane.store.sql_store import open_store
from tests.unit.control_plane.test_failover import lost
from tests.unit.control_plane.test_moves import CLOCK, OTHER, Two, run

SERVER = "databaseServers/main"
APPS = [f"apps/a{number}" for number in range(12)]


class Databases(AppDatabases):
    """Grants at once, and counts what is asked of a server."""

    def __init__(self) -> None:
        self.asked: Counter[tuple[str, str]] = Counter()
        self._granted: dict[str, set[int]] = {}
        self.spares: Any = None

    async def prepare(self, app: AppRecord, epoch: int, keep: Any, *, must_exist: bool) -> Provided:
        self.asked["prepare", app.name] += 1
        self._granted[app.name] = {epoch, *keep}
        return Provided(f"postgresql://e{epoch}@h/d", 1)

    def is_settled(self, app: AppRecord, keep: Any) -> bool:
        return self._granted.get(app.name, {0}) <= set(keep)

    async def settle(self, app: AppRecord, keep: Any) -> None:
        self.asked["settle", app.name] += 1
        self._granted[app.name] = set(keep)

    async def close(self) -> None:
        pass


class Counts:
    """Passes, and what they write, by app."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes: Counter[str] = Counter()
        self.writes: Counter[str] = Counter()
        reconcile, write = AppReconciler.reconcile, AppReconciler._write

        async def passing(reconciler: AppReconciler, app: str) -> Any:
            self.passes[app] += 1
            return await reconcile(reconciler, app)

        async def writing(reconciler: AppReconciler, command: Any) -> Any:
            self.writes[command.keywords["name"]] += 1
            return await write(reconciler, command)

        monkeypatch.setattr(AppReconciler, "reconcile", passing)
        monkeypatch.setattr(AppReconciler, "_write", writing)

    def clear(self) -> None:
        self.passes.clear()
        self.writes.clear()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CatalogStore]:
    store = open_store(f"sqlite:///{tmp_path}/a.db", clock=CLOCK, elapsed=CLOCK)
    yield store
    store.close()


def most(counted: Counter[str]) -> int:
    return max((counted[app] for app in APPS), default=0)


def test_an_app_of_a_lost_node_takes_few_passes_and_one_grant_of_its_database(
    store: CatalogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = DatabaseServerRecord(
        fleet.DatabaseServer(name=SERVER, max_apps=100, app_connections=1), "postgresql://h/d", b"key"
    )
    store.write(lambda tx: tx.put_database_server(server)).result(60)
    databases, counts = Databases(), Counts(monkeypatch)

    async def test(two: Two) -> None:
        monkeypatch.setattr(two.first.controller, "_databases", databases)
        database = rt.Database(postgres=rt.Database.Postgres(server=SERVER))
        for app in APPS:
            await two.create(app.removeprefix("apps/"), database=database)
        await two.second_joins()
        counts.clear()
        databases.asked.clear()
        await lost(two)
        await two.first.until(lambda: all(two.where(it) == OTHER and two.is_settled(it) for it in APPS))
        await asyncio.sleep(1)
        # That its node is silent, where it goes, and that it serves there.
        assert most(counts.writes) <= 3
        assert most(counts.passes) <= 4
        # The old login is shut out by the transaction that lets the new one in.
        assert databases.asked == {("prepare", app): 1 for app in APPS}
        assert sorted(it.name.partition("/instances/")[0] for it in two.second.started) == sorted(APPS)

    run(store, test)


def test_apps_that_had_requests_to_serve_are_started_elsewhere_first(
    store: CatalogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = {"apps/a9": 3, "apps/a11": 5}
    monkeypatch.setattr(NodeLink, "in_flight", lambda _, app: busy.get(app, 0))

    async def test(two: Two) -> None:
        dormant = APPS[:3]
        for app in APPS:
            activation = rt.InstanceSpec.ON_REQUEST if app in dormant else rt.InstanceSpec.EAGER
            await two.create(app.removeprefix("apps/"), activation=activation)
        await two.second_joins()
        await lost(two)
        await two.first.until(lambda: all(two.where(it) == OTHER and two.is_settled(it) for it in APPS))
        order = [it.name.partition("/instances/")[0] for it in two.second.started]
        assert order[:2] == ["apps/a11", "apps/a9"]
        assert sorted(order[-3:]) == sorted(dormant)

    run(store, test)

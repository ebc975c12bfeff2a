"""Apps that no node can take: what they cost is told by the room for them, not by how many they are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from services.control_plane.controller.controller import SWEEP_RETELLS, SWEEP_SECONDS
from services.control_plane.placement.choice import Candidate, Wish
from services.control_plane.placement.room import room_for
from services.control_plane.reconciler.app_reconciler import AppReconciler
from services.control_plane.store.app_entries import AppEntry
from services.control_plane.store.interface import CatalogStore, Transaction
from services.control_plane.store.records import AppRecord, Version
from services.control_plane.store.sql_store import open_store
from tests.unit.control_plane.test_moves import CLOCK, Two, run
from tests.unit.control_plane.world import ME, NODE

ENVIRONMENT = "environments/default"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CatalogStore]:
    store = open_store(f"sqlite:///{tmp_path}/a.db", clock=CLOCK, elapsed=CLOCK)
    yield store
    store.close()


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the apps that had a pass, as they have it."""
    seen: list[str] = []
    reconcile = AppReconciler.reconcile

    async def counted(self: AppReconciler, app: str) -> Any:
        seen.append(app)
        return await reconcile(self, app)

    monkeypatch.setattr(AppReconciler, "reconcile", counted)
    return seen


async def create_exclusive(two: Two, count: int) -> None:
    """Create apps that are to be alone on their node each, and wait until one is."""
    for number in range(count):
        app = pb.App(entrypoint="good:app", exclusive=True)
        app.database.no_database.SetInParent()
        app.labels["tenant"] = str(number)
        request = pb.CreateAppRequest(app=app, app_id=f"app-{number:03d}")
        await two.first.commands.create(request, ME)
    await two.first.until(lambda: len(two.running()) == 1)


async def delete_what_runs(two: Two) -> None:
    (instance,) = two.first.node.instances()
    app = instance.partition("/instances/")[0]
    await two.first.commands.delete(pb.DeleteAppRequest(name=app), ME)
    await two.first.until(lambda: two.first.app(app) is None and len(two.running()) == 1)


@pytest.mark.parametrize("count", [30, 90])
def test_many_that_wait_cost_no_more_than_few(store: CatalogStore, passes: list[str], count: int) -> None:
    async def test(two: Two) -> None:
        await create_exclusive(two, count)
        await asyncio.sleep(5)  # all have been told that they wait
        passes.clear()
        await asyncio.sleep(20 * SWEEP_SECONDS)
        assert len(passes) <= 21 * SWEEP_RETELLS
        assert len(set(passes)) > SWEEP_RETELLS, "each has its turn"
        passes.clear()
        await delete_what_runs(two)
        assert len(passes) <= 4 * SWEEP_RETELLS, "one leaves, and not all are looked at"

    run(store, test)


def test_a_node_that_can_be_given_more_is_told_to_no_more_than_it_takes(
    store: CatalogStore, passes: list[str]
) -> None:
    async def test(two: Two) -> None:
        await create_exclusive(two, 40)
        await asyncio.sleep(5)
        passes.clear()
        for _ in range(10):
            for cordon in (fleet.CordonNodeRequest, fleet.UncordonNodeRequest):
                command = two.nodes.cordon if cordon is fleet.CordonNodeRequest else two.nodes.uncordon
                await command(cordon(name=NODE), ME)
        await two.second_joins()
        await two.first.until(lambda: len(two.running()) == 2)
        assert len(passes) <= 6 * SWEEP_RETELLS

    run(store, test)


def test_a_leader_begins_without_a_look_into_what_is_settled(
    store: CatalogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    value = AppEntry.value

    def counted(entry: AppEntry) -> Any:
        read.append(entry.key)
        return value.__get__(entry)

    def put(tx: Transaction) -> None:
        for number in range(50):
            name = f"apps/app-{number:03d}"
            status = pb.App(reconciling=number == 7)
            spec = pb.App(name=name, environment=ENVIRONMENT)
            tx.put_app(AppRecord(name, f"uid-{number}", spec, status, 1, Version(1, 1), 1, 1))

    async def test(two: Two) -> None:
        await two.first.controller.close()
        store.write(put).result(60)
        monkeypatch.setattr(AppEntry, "value", property(counted))
        await two.first.controller.start()
        assert set(read) == {"apps/app-007"}

    run(store, test)


def test_room_is_counted_by_what_bounds_it() -> None:
    wish = Wish(ENVIRONMENT)
    full, free = (Candidate(f"{ENVIRONMENT}/nodes/{n}", True, n, 5) for n in (5, 2))
    assert room_for(wish, [full], 100) == 0
    assert room_for(wish, [full, free], 100) == 3
    assert room_for(wish, [full, free], 2) == 2
    assert room_for(wish, [free._replace(heard=False)], 100) == 0
    large = Wish(ENVIRONMENT, memory_bytes=400)
    assert room_for(large, [free._replace(memory_bytes=1000, reserved_bytes=100)], 100) == 2
    alone = Wish(ENVIRONMENT, exclusive=True)
    assert room_for(alone, [free, free._replace(apps=0)], 100) == 1

"""How many passes there are, and over which apps: as many as there is news, whatever else there is."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.control_plane.controller.controller import SWEEP_LOOKS, SWEEP_SECONDS
from services.control_plane.controller.resync import Resync
from services.control_plane.store.interface import CatalogStore
from services.control_plane.store.sql_store import open_store
from tests.unit.control_plane.test_moves import CLOCK, Two, run
from tests.unit.control_plane.test_waiting import passes
from tests.unit.control_plane.world import ME

__all__ = ("passes",)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CatalogStore]:
    store = open_store(f"sqlite:///{tmp_path}/a.db", clock=CLOCK, elapsed=CLOCK)
    yield store
    store.close()


async def change(two: Two, app: str) -> None:
    request = pb.UpdateAppRequest(app=pb.App(name=app, env={"A": "1"}))
    request.update_mask.paths.append("env")
    await two.first.commands.update(request, ME)


def test_a_leader_and_a_returning_node_have_each_app_looked_at_once(
    store: CatalogStore, passes: list[str]
) -> None:
    async def test(two: Two) -> None:
        apps = [f"shop-{number}" for number in range(4)]
        for app in apps:
            await two.create(app)
        once = Counter(f"apps/{app}" for app in apps)
        await asyncio.sleep(2)
        passes.clear()
        await two.first.restart_controller()
        await asyncio.sleep(2)
        assert Counter(passes) == once
        passes.clear()
        two.first.cut = True
        await asyncio.sleep(3)
        two.first.cut = False
        await two.first.until(lambda: two.first.controller.is_heard(two.first.name))
        await asyncio.sleep(2)
        assert Counter(passes) == once

    run(store, test)


def test_apps_that_are_as_they_are_stored_cost_a_returning_node_and_a_leader_no_pass(
    store: CatalogStore, passes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Resync, "take", lambda self, most: [])  # what has its turn in its own time

    async def test(two: Two) -> None:
        await two.second_joins()
        await two.first.until(lambda: not any(it.node.serves_alone for it in store.mirror.nodes.values()))
        apps = [f"apps/shop-{number}" for number in range(8)]
        for app in apps:
            await two.create(app.removeprefix("apps/"))
        await asyncio.sleep(2)
        passes.clear()
        revision = store.mirror.apps.revision
        await two.first.restart_controller()
        await asyncio.sleep(2)
        assert (passes, store.mirror.apps.revision) == ([], revision)
        passes.clear()
        two.first.cut = True
        await asyncio.sleep(1)
        unwell = next(iter(two.first.node.instances()))
        two.first.node.set_health(unwell, rt.Instance.Health.UNHEALTHY)
        two.first.cut = False
        await two.first.until(lambda: two.first.controller.is_heard(two.first.name))
        await asyncio.sleep(2)
        assert set(passes) == {unwell.partition("/instances/")[0]}, "what is news is looked at"

    run(store, test)


def test_what_is_at_rest_is_looked_at_once_all_the_same_in_its_own_time(
    store: CatalogStore, passes: list[str]
) -> None:
    async def test(two: Two) -> None:
        await two.second_joins()
        apps = Counter(f"apps/shop-{number}" for number in range(SWEEP_LOOKS + 5))
        for app in apps:
            await two.create(app.removeprefix("apps/"))
        await asyncio.sleep(2)
        passes.clear()
        await two.first.restart_controller()
        await asyncio.sleep(1.5 * SWEEP_SECONDS)
        assert len(passes) == SWEEP_LOOKS
        await asyncio.sleep(5 * SWEEP_SECONDS)
        assert Counter(passes) == apps

    run(store, test)


@pytest.mark.parametrize("others", [0, 30])
def test_a_change_has_the_same_passes_whatever_else_there_is(
    store: CatalogStore, passes: list[str], others: int
) -> None:
    async def test(two: Two) -> None:
        for app in ("shop", *(f"other-{number}" for number in range(others))):
            await two.create(app)
        await asyncio.sleep(2)
        passes.clear()
        await change(two, "apps/shop")
        await two.first.until(lambda: two.app().observed_generation == 2)
        await asyncio.sleep(2)
        assert set(passes) == {"apps/shop"}
        assert len(passes) <= 5

    run(store, test)

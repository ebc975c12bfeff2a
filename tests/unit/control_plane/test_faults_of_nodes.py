"""Single faults that random histories hit seldom, in virtual time: each as it was found."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.control_plane.controller import controller
from services.control_plane.store.interface import CatalogStore
from services.control_plane.store.sql_store import open_store
from tests.unit.control_plane.world import ME, World
from tests.virtual_time import run_in_virtual_time

STOPPING = rt.Instance.STOPPING
DROP = pb.DeleteAppRequest(name="apps/shop", data_policy=pb.DeleteAppRequest.DROP)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CatalogStore]:
    store = open_store(f"sqlite:///{tmp_path}/a.db")
    yield store
    store.close()


@pytest.fixture
def other_store(tmp_path: Path) -> Iterator[CatalogStore]:
    store = open_store(f"sqlite:///{tmp_path}/b.db")
    yield store
    store.close()


def run(store: CatalogStore, test: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        world = World(store, random.Random(1))
        await world.start()
        try:
            await test(world)
        finally:
            await world.close()

    run_in_virtual_time(main())


async def create(world: World, entrypoint: str = "good:app") -> None:
    request = pb.CreateAppRequest(app=pb.App(entrypoint=entrypoint), app_id="shop")
    await world.commands.create(request, ME)


def is_running(world: World) -> bool:
    app = world.app("apps/shop")
    return app is not None and app.state == rt.Instance.RUNNING and not app.reconciling


def test_data_is_gone_before_its_app_also_if_its_start_was_not_seen_and_the_node_dies(
    store: CatalogStore,
) -> None:
    async def test(world: World) -> None:
        await world.until(lambda: world.controller.is_heard(world.name))
        world.lost_answers, world.withheld = 1.0, True  # the start arrives, and nothing tells of it
        await create(world, "slow:app")
        await world.until(lambda: world.disk.data)
        world.lost_answers = 0.0
        await world.commands.delete(DROP, ME)
        await world.until(lambda: any(it.state == STOPPING for it in world.node.instances().values()))
        await asyncio.sleep(0.1)  # its end is asked for, and takes a second
        await world.restart_node()
        world.withheld = False
        await world.until(lambda: world.app("apps/shop") is None)
        assert world.disk.data == set()

    run(store, test)


def test_an_app_whose_data_cannot_be_removed_is_deleted_until_it_can(store: CatalogStore) -> None:
    async def test(world: World) -> None:
        await create(world)
        await world.until(lambda: is_running(world))
        uid = store.mirror.apps.get("apps/shop").uid  # type: ignore[union-attr]
        world.disk.stuck[uid] = "Its directory is a symbolic link."
        await world.commands.delete(DROP, ME)
        calls = world.calls
        await asyncio.sleep(600)
        assert world.calls - calls < 100
        app = world.app("apps/shop")
        assert app is not None
        assert app.state == rt.Instance.DELETING
        (ready,) = (it for it in app.conditions if it.type == "Ready")
        assert (ready.reason, ready.message) == ("DATA_NOT_REMOVED", "Its directory is a symbolic link.")
        await world.restart_node()
        await asyncio.sleep(60)
        assert world.app("apps/shop") is not None
        del world.disk.stuck[uid]
        await world.until(lambda: world.app("apps/shop") is None)
        assert world.disk.data == set()

    run(store, test)


def test_a_controller_that_ends_and_begins_again_touches_nothing_that_runs(store: CatalogStore) -> None:
    async def test(world: World) -> None:
        await create(world)
        await world.until(lambda: is_running(world))
        calls, revision = world.calls, store.mirror.apps.revision
        await world.controller.close()
        await world.controller.close()
        assert not world.controller.is_heard(world.name)
        stop = pb.StopAppRequest(name="apps/shop")
        await world.controller.start()
        await asyncio.sleep(10)
        # The node was written when it was heard again.
        assert world.calls == calls
        assert store.mirror.apps.get("apps/shop").revision <= revision  # type: ignore[union-attr]
        await world.controller.close()
        await world.commands.stop(stop, ME)  # nobody leads: it is only wanted
        await asyncio.sleep(10)
        assert world.node.instances()
        await world.controller.start()
        await world.until(lambda: not world.node.instances())

    run(store, test)


def test_two_control_planes_that_share_a_node_do_not_fight_over_a_name_without_pauses(
    store: CatalogStore, other_store: CatalogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An hour has many seconds, and each sweep looks into both databases.
    monkeypatch.setattr(controller, "SWEEP_SECONDS", 5.0)

    async def test(world: World) -> None:
        other = World(other_store, random.Random(2), disk=world.disk)
        other.node = world.node
        await other.start()
        try:
            for one in (world, other):
                await create(one)
            await asyncio.sleep(600)
            first = world.calls + other.calls
            assert len(world.started) + len(other.started) < 100
            await asyncio.sleep(1200)
            assert world.calls + other.calls - first < 120
            # What somebody asks for is tried at once all the same.
            tried = len(world.started)
            await world.commands.restart(pb.RestartAppRequest(name="apps/shop"), ME)
            await asyncio.sleep(1)
            assert len(world.started) > tried
        finally:
            await other.close()

    run(store, test)

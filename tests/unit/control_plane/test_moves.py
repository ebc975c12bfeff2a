"""Moves, drains and deleted nodes, by the whole controller over two fake nodes in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.control_plane.fleet import drains
from services.control_plane.fleet.node_commands import NodeCommands
from services.control_plane.placement.snapshot import is_ready
from services.control_plane.reconciler.plan import SWITCH_SECONDS
from services.control_plane.rules.conditions import get_condition
from services.control_plane.store.interface import CatalogStore
from services.control_plane.store.records import Role, current_of
from services.control_plane.store.sql_store import open_store
from tests.fakes.runtime_node import Behaviour, Disk
from tests.unit.control_plane.world import ME, NODE, SLOW, World
from tests.virtual_time import VirtualClock, run_in_virtual_time

OTHER, THIRD = (f"environments/default/nodes/fake-{number}" for number in (2, 3))
PICKY = "picky:app"
"""Starts on the first node, fails on the second."""

RUNNING = rt.Instance.RUNNING


CLOCK = VirtualClock()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CatalogStore]:
    store = open_store(f"sqlite:///{tmp_path}/a.db", clock=CLOCK, elapsed=CLOCK)
    yield store
    store.close()


class Two:
    """Two nodes, an app on the first of them, and who commands."""

    def __init__(self, store: Any) -> None:
        self.first = World(store, random.Random(1))
        fails = {PICKY: Behaviour(fails=("APP_FACTORY_FAILED", "not here"))}
        self.second = World(store, random.Random(2), OTHER, Disk(), fails)
        self.nodes = NodeCommands(self.first.store, store.mirror.is_heard)  # type: ignore[arg-type]

    async def start(self) -> None:
        await self.first.start()
        await self.first.until(lambda: self.state(NODE) == fleet.Node.READY)

    async def second_joins(self) -> None:
        await self.first.join(self.second)
        await self.first.until(lambda: self.state(OTHER) == fleet.Node.READY)

    def state(self, node: str) -> Any:
        record = self.first.store.mirror.nodes.get(node)
        return record.node.state if record is not None else None

    async def create(self, app_id: str = "shop", entrypoint: str = "good:app", **fields: Any) -> None:
        fields.setdefault("database", rt.Database(no_database=rt.Database.NoDatabase()))
        app = pb.App(entrypoint=entrypoint, **fields)
        await self.first.commands.create(pb.CreateAppRequest(app=app, app_id=app_id), ME)
        await self.first.until(lambda: self.is_settled(f"apps/{app_id}"))

    def is_settled(self, name: str = "apps/shop") -> bool:
        app = self.first.app(name)
        return app is not None and not app.reconciling

    async def move(self, node: str = "") -> str:
        return (await self.first.commands.move(pb.MoveAppRequest(name="apps/shop", node=node), ME)).name

    async def ended(self, operation: str) -> Any:
        feed = self.first.store.mirror.operations
        await self.first.until(lambda: feed.get(operation).done)
        return feed.get(operation)

    def app(self, name: str = "apps/shop") -> pb.App:
        app = self.first.app(name)
        assert app is not None
        return app

    def where(self, name: str = "apps/shop") -> str:
        """Return the node that the app serves on; fails if there is not exactly one."""
        placements = self.first.store.mirror.placements_of(name)
        assert [it.role for it in placements].count(Role.CURRENT) == 1
        current = current_of(placements)
        assert current is not None
        return current.node

    def events(self, name: str = "apps/shop") -> list[pb.AppEvent]:
        """Return the app's timeline, newest first."""
        return self.first.store.events(name, 50)  # type: ignore[no-any-return]

    def running(self) -> list[str]:
        """Return the nodes with an instance that serves."""
        return [
            site.name for site in self.first.sites() for it in site.node.instances().values() if is_ready(it)
        ]


def run(store: CatalogStore, test: Callable[[Two], Awaitable[None]]) -> None:
    async def main() -> None:
        two = Two(store)
        await two.start()
        try:
            await test(two)
        finally:
            await two.first.close()

    run_in_virtual_time(main(), CLOCK)


@pytest.mark.parametrize("entrypoint", ["good:app", SLOW])
def test_wherever_the_uri_leads_there_is_an_instance_that_serves(
    store: CatalogStore, entrypoint: str
) -> None:
    async def test(two: Two) -> None:
        await two.create(entrypoint=entrypoint)
        await two.second_joins()
        operation = await two.move()
        switched = both = 0
        while not two.first.store.mirror.operations.get(operation).done:
            assert two.where() in two.running()
            switched += two.where() == OTHER
            both += len(two.running()) == 2
            await asyncio.sleep(0.05)
        assert (await two.ended(operation)).error is None
        assert 0.05 * switched >= SWITCH_SECONDS - 0.2, "those who hold the old address have time to hear"
        assert 0.05 * both >= SWITCH_SECONDS - 0.2
        await two.first.until(two.is_settled)
        assert (two.where(), two.running()) == (OTHER, [OTHER])
        assert two.first.node.instances() == {}
        (placement,) = two.first.store.mirror.placements_of("apps/shop")
        assert (placement.epoch, placement.generation) == (2, 1)
        (told,) = (it for it in two.events() if it.type == "Moved")
        assert told.message == f"From {NODE} to {OTHER}."
        assert "fewest apps" in placement.why

    run(store, test)


def test_nodes_that_forward_are_told_at_once_and_again_when_the_app_moves_on(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        third = World(store, random.Random(3), THIRD, Disk())
        sites = (two.first, two.second, third)
        two.second.node.forwards = third.node.forwards = True
        await two.create()
        await two.second_joins()
        await two.first.join(third)
        await two.first.until(lambda: two.state(THIRD) == fleet.Node.READY)

        def lead() -> list[str]:
            """Return the node that each one forwards to, as it knows."""
            return [next((node for _, node in it.node.forwarding.values()), "") for it in sites]

        now = asyncio.get_running_loop().time
        await two.ended(await two.move(OTHER))
        assert lead() == [OTHER, "", ""]
        began = now()
        await two.ended(await two.move(THIRD))
        assert now() - began < SWITCH_SECONDS, "nothing serves on where it is forwarded"
        assert lead() == [THIRD, THIRD, ""]
        await two.ended(await two.move(NODE))
        assert lead()[1:] == [NODE, NODE]

    run(store, test)


def test_who_leads_anew_learns_who_forwards_and_tells_them_when_the_app_moves_on(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        third = World(store, random.Random(3), THIRD, Disk())
        for site in (two.first, two.second, third):
            site.node.forwards = True
        await two.create()
        await two.second_joins()
        await two.first.join(third)
        await two.first.until(lambda: two.state(THIRD) == fleet.Node.READY)
        await two.ended(await two.move(OTHER))
        await two.first.restart_controller()
        await two.ended(await two.move(THIRD))
        assert [node for _, node in two.first.node.forwarding.values()] == [THIRD]

    run(store, test)


def test_nodes_that_forward_to_a_node_that_dies_are_told_where_the_app_is_next(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        await two.create(failover=pb.App.AUTOMATIC)
        await two.second_joins()
        await two.ended(await two.move(OTHER))
        third = World(store, random.Random(3), THIRD, Disk())
        await two.first.join(third)
        await two.nodes.cordon(fleet.CordonNodeRequest(name=NODE), ME)
        await two.first.until(lambda: two.state(THIRD) == fleet.Node.READY)
        two.second.cut = True
        await two.first.until(lambda: two.where() == THIRD and two.is_settled())
        assert [node for _, node in two.first.node.forwarding.values()] == [THIRD]

    run(store, test)


def test_a_move_that_is_done_tells_of_nothing_that_is_gone(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        await two.create()
        await two.second_joins()
        operation = await two.move()
        await two.first.until(lambda: two.where() == OTHER)
        two.first.withheld = True  # that it is gone is told by the answer to a stop, not by the stream
        ended = await two.ended(operation)
        assert [it.node for it in ended.response.instances] == [OTHER]

    run(store, test)


def test_a_move_that_fails_to_start_leaves_the_app_where_it_was(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        await two.create(entrypoint=PICKY)
        await two.second_joins()
        ended = await two.ended(await two.move(OTHER))
        assert ended.error is not None
        assert "not here" in ended.error.message
        await two.first.until(two.is_settled)
        assert (two.where(), two.running(), two.app().state) == (NODE, [NODE], RUNNING)
        assert two.second.node.instances() == {}
        assert "MoveFailed" in {it.type for it in two.events()}
        # The next life of the node brings back what served, not what was tried.
        await two.first.restart_node()
        await two.first.until(lambda: two.running() == [NODE])
        assert two.where() == NODE

    run(store, test)


def test_an_app_whose_update_failed_is_moved_as_it_serves(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        await two.create()
        update = pb.UpdateAppRequest(app=pb.App(name="apps/shop", entrypoint="bad:app"))
        update.update_mask.paths.append("entrypoint")
        await two.first.commands.update(update, ME)
        await two.first.until(two.is_settled)
        await two.second_joins()
        assert (await two.ended(await two.move())).error is None
        await two.first.until(two.is_settled)
        assert (two.where(), two.running()) == (OTHER, [OTHER])
        (placement,) = two.first.store.mirror.placements_of("apps/shop")
        assert placement.generation == 1
        updated = get_condition(two.app().conditions, "Updated")
        assert updated is not None
        assert (updated.status, updated.reason) == (rt.Condition.UNMET, "APP_FACTORY_FAILED")

    run(store, test)


def test_a_target_that_falls_silent_costs_nothing_but_the_move(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        await two.create(entrypoint=SLOW)
        await two.second_joins()
        operation = await two.move()
        two.second.cut = True
        ended = await two.ended(operation)
        assert ended.error is not None
        assert NODE in two.running()
        assert two.where() == NODE
        two.second.cut = False
        await two.first.until(lambda: two.running() == [NODE] and two.is_settled())
        assert two.where() == NODE

    run(store, test)


def test_a_move_off_a_node_that_falls_silent_ends_when_it_serves(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        await two.create()
        await two.second_joins()
        operation = await two.move()
        await two.first.until(lambda: two.where() == OTHER)
        two.first.cut = True
        assert (await two.ended(operation)).error is None
        assert two.where() == OTHER
        two.first.cut = False
        await two.first.until(lambda: two.running() == [OTHER] and two.is_settled())

    run(store, test)


@pytest.mark.parametrize("after", [0, 0.005, 0.02, 0.1, 1.0, 2.5, 4.0, 5.5])
@pytest.mark.parametrize("victim", ["control plane", "source", "target"])
def test_whatever_dies_in_the_middle_one_placement_is_left(
    store: CatalogStore, victim: str, after: float
) -> None:
    async def test(two: Two) -> None:
        await two.create(entrypoint=SLOW)
        await two.second_joins()
        operation = await two.move()
        await asyncio.sleep(after)
        if victim == "control plane":
            await two.first.restart_controller()
        elif victim == "source":
            await two.first.restart_node()
        else:
            await two.second.restart_node()
        await two.ended(operation)
        await two.first.until(lambda: two.is_settled() and len(two.running()) == 1)
        assert [two.where()] == two.running()
        assert len(two.first.store.mirror.placements_of("apps/shop")) == 1

    run(store, test)


def test_a_stopped_app_moves_without_starting(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        await two.create(desired_state=pb.App.STOPPED)
        await two.first.commands.start(pb.StartAppRequest(name="apps/shop"), ME)
        await two.first.until(lambda: two.running() == [NODE])
        await two.first.commands.stop(pb.StopAppRequest(name="apps/shop"), ME)
        await two.first.until(lambda: two.app().state == rt.Instance.STOPPED and two.is_settled())
        await two.second_joins()
        assert (await two.ended(await two.move())).error is None
        assert (two.where(), two.second.started, two.app().state) == (OTHER, [], rt.Instance.STOPPED)
        await two.first.commands.start(pb.StartAppRequest(name="apps/shop"), ME)
        await two.first.until(lambda: two.running() == [OTHER])

    run(store, test)


@pytest.mark.parametrize("kind", ["dormant", "failed", "external", "sqlite that never ran"])
def test_an_app_moves_in_whatever_state_it_is(store: CatalogStore, kind: str) -> None:
    async def test(two: Two) -> None:
        external = rt.Database(external=rt.Database.External(secret_key="URL"))
        match kind:
            case "dormant":
                await two.create(activation=rt.InstanceSpec.ON_REQUEST)
            case "failed":
                await two.create(entrypoint="bad:app", restart_policy=rt.RestartPolicy(max_restarts=0))
            case "external":
                await two.create(database=external, secret_env={"URL": "sqlite://"})
            case _:
                sqlite = rt.Database(sqlite=rt.Database.Sqlite())
                await two.create(database=sqlite, desired_state=pb.App.STOPPED)
        await two.second_joins()
        ended = await two.ended(await two.move(OTHER))
        await two.first.until(two.is_settled)
        placements = two.first.store.mirror.placements_of("apps/shop")
        assert [it.node for it in placements] == [OTHER]
        assert two.first.node.instances() == {}
        if kind == "failed":
            assert "it is bad" in ended.error.message
            return
        assert ended.error is None
        states = {"dormant": rt.Instance.IDLE, "external": RUNNING}
        assert two.app().state == states.get(kind, rt.Instance.STOPPED)

    run(store, test)


# Drains and deleted nodes


def test_a_drain_empties_a_node_a_few_at_a_time_and_takes_data_along(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        apps = [f"a{n}" for n in range(drains.WIDTH + 3)]
        for app_id in apps:
            await two.create(app_id, SLOW)
        await two.create("wiki", database=rt.Database(sqlite=rt.Database.Sqlite()))
        await two.second_joins()
        operation = (await two.nodes.drain(fleet.DrainNodeRequest(name=NODE), ME)).name
        most = 0
        while not two.first.store.mirror.operations.get(operation).done:
            placed = [it for app in apps for it in two.first.store.mirror.placements_of(f"apps/{app}")]
            most = max(most, sum(it.role is Role.INCOMING for it in placed))
            for app in apps:
                assert two.where(f"apps/{app}")
            await asyncio.sleep(0.05)
        assert 1 < most <= drains.WIDTH
        assert (await two.ended(operation)).error is None
        assert {two.where(f"apps/{app}") for app in [*apps, "wiki"]} == {OTHER}
        assert list(two.first.node.instances()) == []
        assert two.app("apps/wiki").uid not in two.first.disk.data
        await two.create("late")
        assert two.where("apps/late") == OTHER, "the node stays cordoned"

    run(store, test)


def test_a_drain_tries_twice_and_goes_on_under_the_next_leader(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        await two.create(entrypoint=PICKY)
        await two.create("good")
        operation = (await two.nodes.drain(fleet.DrainNodeRequest(name=NODE), ME)).name
        await asyncio.sleep(5)
        assert not two.first.store.mirror.operations.get(operation).done, "there is nowhere to go yet"
        await two.first.restart_controller()
        await two.second_joins()
        ended = await two.ended(operation)
        assert "not here" in ended.error.message
        assert two.where() == NODE
        assert two.where("apps/good") == OTHER
        tried = [it for it in two.second.started if it.name.startswith("apps/shop/")]
        assert len({it.name for it in tried}) == 2

    run(store, test)


def test_apps_of_a_deleted_node_go_on_elsewhere_and_those_whose_data_is_lost_say_so(
    store: CatalogStore,
) -> None:
    async def test(two: Two) -> None:
        await two.create()
        await two.create("wiki", database=rt.Database(sqlite=rt.Database.Sqlite()))
        await two.second_joins()
        two.first.cut = True
        await two.first.until(lambda: two.state(NODE) == fleet.Node.UNREACHABLE)
        await two.nodes.delete(fleet.DeleteNodeRequest(name=NODE, force=True), ME)
        await two.first.until(lambda: two.running().count(OTHER) == 1 and two.is_settled())
        (placement,) = two.first.store.mirror.placements_of("apps/shop")
        assert (placement.node, placement.epoch) == (OTHER, 2), "above what may run on the old node still"
        await two.first.until(lambda: two.app("apps/wiki").state == rt.Instance.FAILED)
        wiki = two.app("apps/wiki")
        ready = get_condition(wiki.conditions, "Ready")
        assert ready is not None
        assert (ready.reason, wiki.reconciling) == ("DATA_LOST", False)
        start = await two.first.commands.start(pb.StartAppRequest(name="apps/wiki"), ME)
        assert "accept_data_loss" in (await two.ended(start.name)).error.message
        # Its node comes back with the data, under its name.
        two.first.cut = False
        await two.first.register()
        await two.first.until(lambda: two.app("apps/wiki").state == RUNNING and two.is_settled("apps/wiki"))
        assert two.where("apps/wiki") == NODE
        assert two.where() == OTHER
        assert [name.split("/")[1] for name in two.first.node.instances()] == ["wiki"]

    run(store, test)


def test_data_that_is_lost_is_given_up_by_a_word_alone(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        await two.create("wiki", database=rt.Database(sqlite=rt.Database.Sqlite()))
        await two.second_joins()
        two.first.cut = True
        await two.first.until(lambda: two.state(NODE) == fleet.Node.UNREACHABLE)
        await two.nodes.delete(fleet.DeleteNodeRequest(name=NODE, force=True), ME)
        await two.first.until(lambda: two.app("apps/wiki").state == rt.Instance.FAILED)
        request = pb.StartAppRequest(name="apps/wiki", accept_data_loss=True)
        start = await two.first.commands.start(request, ME)
        assert (await two.ended(start.name)).error is None
        assert two.where("apps/wiki") == OTHER
        await two.first.until(lambda: two.is_settled("apps/wiki"))
        assert len(two.first.store.mirror.placements_of("apps/wiki")) == 1

    run(store, test)

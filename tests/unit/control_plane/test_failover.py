"""Apps of lost nodes, by the whole controller over fake nodes in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.control_plane.fleet.views import shown_environment
from services.control_plane.reconciler import transactions
from services.control_plane.rules.conditions import get_condition
from services.control_plane.store.interface import CatalogStore
from services.control_plane.store.records import NodeRecord, Role
from services.control_plane.store.sql_store import open_store
from services.rpc.errors import SupervisorError
from tests.fakes.runtime_node import Disk
from tests.unit.control_plane.test_moves import CLOCK as VIRTUAL
from tests.unit.control_plane.test_moves import OTHER, Two, run
from tests.unit.control_plane.world import ME, NODE, World

Node = fleet.Node
SQLITE = rt.Database(sqlite=rt.Database.Sqlite())
ENVIRONMENT = "environments/default"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CatalogStore]:
    store = open_store(f"sqlite:///{tmp_path}/a.db", clock=VIRTUAL, elapsed=VIRTUAL)
    yield store
    store.close()


def lease(two: Two, node: str = NODE) -> int:
    return two.first.store.mirror.nodes.get(node).node.lease_state


async def lost(two: Two, node: str = NODE) -> None:
    """Cut a node off, and wait until it is called lost."""
    next(site for site in two.first.sites() if site.name == node).cut = True
    await two.first.until(lambda: lease(two, node) == Node.EXPIRED)


def test_a_node_that_was_heard_since_it_was_judged_is_not_called_lost(store: CatalogStore) -> None:
    node = Node(name=NODE, incarnation="a", lease_state=Node.GRANTED)
    store.write(lambda tx: tx.put_node(NodeRecord(node))).result(60)
    judged = store.mirror.nodes.get(NODE)
    assert judged is not None
    told = rt.RuntimeStatus(incarnation="a", version="2", lease=rt.Lease())
    store.write(lambda tx: transactions.node_heard(tx, node, told)).result(60)
    store.write(lambda tx: transactions.lease_ran_out(tx, judged, Node.EXPIRED)).result(60)
    heard = store.mirror.nodes.get(NODE)
    assert heard is not None
    assert heard.node.lease_state == Node.GRANTED
    store.write(lambda tx: transactions.lease_ran_out(tx, heard, Node.EXPIRED)).result(60)
    lost = store.mirror.nodes.get(NODE)
    assert lost is not None
    assert lost.node.lease_state == Node.EXPIRED


def now() -> float:
    return asyncio.get_running_loop().time()


def ready_of(two: Two, name: str = "apps/shop") -> rt.Condition:
    found = get_condition(two.app(name).conditions, "Ready")
    assert found is not None
    return found


def roles(two: Two, name: str = "apps/shop") -> dict[str, str]:
    return {it.node: it.role.name for it in two.first.store.mirror.placements_of(name)}


def test_a_node_that_is_heard_holds_its_lease_and_one_that_is_not_is_lost_after_it(
    store: CatalogStore,
) -> None:
    async def test(two: Two) -> None:
        await two.first.until(lambda: two.first.node.lease.held)
        assert lease(two) == Node.GRANTED
        await asyncio.sleep(60)
        assert two.first.node.lease.held
        assert 25 < two.first.node.renewals < 45
        began = now()
        await lost(two)
        assert not two.first.node.lease.held, "the node stops first"
        assert 4 < now() - began < 7
        two.first.cut = False
        await two.first.until(lambda: lease(two) == Node.GRANTED)
        await two.first.until(lambda: two.first.node.lease.held)

    run(store, test)


def test_an_app_without_data_on_its_node_goes_elsewhere_under_a_new_epoch(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        await two.create()
        await two.second_joins()
        began = now()
        await lost(two)
        await two.first.until(lambda: two.where() == OTHER and two.is_settled())
        assert now() - began < 8
        app = two.app()
        assert (app.state, app.health) == (rt.Instance.RUNNING, rt.Instance.Health.HEALTHY)
        assert [(it.node, it.epoch) for it in app.instances] == [(OTHER, 2)]
        assert roles(two) == {NODE: "LOST", OTHER: "CURRENT"}
        # It lives, cut off as it is; it comes back, keeps nothing of the app, and may be given others.
        assert len(two.first.node.instances()) == 1
        two.first.cut = False
        await two.first.until(lambda: not two.first.node.instances())
        await two.first.until(lambda: roles(two) == {OTHER: "CURRENT"})
        assert two.where() == OTHER
        await two.first.until(lambda: two.first.node.lease.held)

    run(store, test)


def test_an_app_with_its_data_on_its_node_waits_for_it_and_says_so(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        await two.create("wiki", database=SQLITE)
        await two.second_joins()
        await lost(two)
        name = "apps/wiki"
        await two.first.until(lambda: "is lost" in ready_of(two, name).message)
        ready = ready_of(two, name)
        assert (ready.status, ready.reason) == (rt.Condition.UNKNOWN, "NODE_UNREACHABLE")
        assert "RecoverApp, with accept_data_loss, starts it on another node" in ready.message
        assert two.app(name).state == rt.Instance.RUNNING
        await asyncio.sleep(60)
        assert two.second.node.instances() == {}
        two.first.cut = False
        await two.first.until(lambda: ready_of(two, name).status == rt.Condition.MET)
        assert [spec.name for spec in two.first.started] == [f"{name}/instances/g1-e1"]

    run(store, test)


def test_recovery_gives_the_data_up_only_if_that_is_accepted(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        await two.create("wiki", database=SQLITE)
        await two.second_joins()
        name, recover = "apps/wiki", two.first.commands.recover
        with pytest.raises(SupervisorError) as early:
            await recover(pb.RecoverAppRequest(name=name, accept_data_loss=True), ME)
        assert early.value.reason == "NODE_NOT_LOST"
        await lost(two)
        with pytest.raises(SupervisorError) as refused:
            await recover(pb.RecoverAppRequest(name=name), ME)
        assert refused.value.reason == "DATA_MISSING"
        operation = await recover(pb.RecoverAppRequest(name=name, accept_data_loss=True), ME)
        assert (await two.ended(operation.name)).error is None
        assert two.where(name) == OTHER
        two.first.cut = False
        await two.first.until(lambda: not two.first.node.instances())
        assert two.where(name) == OTHER
        await two.first.commands.stop(pb.StopAppRequest(name=name), ME)
        with pytest.raises(SupervisorError) as stopped:
            await recover(pb.RecoverAppRequest(name=name), ME)
        assert stopped.value.reason == "APP_STOPPED"

    run(store, test)


def test_failover_by_hand_is_a_choice_for_every_app(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        await two.create(failover=pb.App.MANUAL)
        await two.second_joins()
        await lost(two)
        await asyncio.sleep(30)
        assert roles(two) == {NODE: "CURRENT"}
        operation = await two.first.commands.recover(pb.RecoverAppRequest(name="apps/shop"), ME)
        assert (await two.ended(operation.name)).error is None
        assert two.where() == OTHER

    run(store, test)


def test_where_nobody_else_can_take_it_an_app_waits_and_goes_once_somebody_can(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        await two.create()
        await lost(two)
        await asyncio.sleep(10)
        assert roles(two) == {NODE: "CURRENT"}
        assert "nobody else can take it" in ready_of(two).message
        await two.second_joins()
        await two.first.until(lambda: two.where() == OTHER and two.is_settled())

    run(store, test)


def test_what_is_commanded_while_its_node_is_lost_is_applied(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        await two.create()
        await two.create("still")
        await two.second_joins()
        two.first.cut = True
        commands = two.first.commands
        update = pb.UpdateAppRequest(app=pb.App(name="apps/shop", env={"A": "1"}))
        update.update_mask.paths.append("env")
        updated = await commands.update(update, ME)
        stopped = await commands.stop(pb.StopAppRequest(name="apps/still"), ME)
        await two.first.until(lambda: lease(two) == Node.EXPIRED)
        assert (await two.ended(updated.name)).error is None
        assert (two.where(), two.app().observed_generation) == (OTHER, 2)
        two.first.cut = False
        assert (await two.ended(stopped.name)).error is None
        await two.first.until(lambda: not two.first.node.instances())
        assert len(two.second.node.instances()) == 1

    run(store, test)


def test_a_new_life_of_a_lost_node_begins_without_what_went_elsewhere(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        await two.create()
        await two.create("wiki", database=SQLITE)
        await two.second_joins()
        await lost(two)
        await two.first.until(lambda: two.where() == OTHER and two.is_settled())
        two.first.cut = False
        await two.first.restart_node()
        await two.first.until(lambda: two.first.node.lease.held)
        await two.first.until(lambda: len(two.first.node.instances()) == 1)
        assert [name.split("/")[1] for name in two.first.node.instances()] == ["wiki"]
        await two.first.until(lambda: roles(two) == {OTHER: "CURRENT"})

    run(store, test)


def test_a_new_leader_waits_a_whole_lease_and_knows_who_was_lost_before(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        await two.create()
        await two.second_joins()
        two.first.cut = True
        await asyncio.sleep(3)
        began = now()
        await two.first.restart_controller()
        await two.first.until(lambda: lease(two) == Node.EXPIRED)
        assert now() - began > 6
        await two.first.until(lambda: two.where() == OTHER and two.is_settled())
        # What was lost is lost under the next leader at once.
        await two.first.restart_controller()
        await asyncio.sleep(0.5)
        assert lease(two) == Node.EXPIRED
        assert lease(two, OTHER) == Node.GRANTED

    run(store, test)


def test_when_most_nodes_are_lost_at_once_failover_is_held_and_the_environment_says_so(
    store: CatalogStore,
) -> None:
    async def test(two: Two) -> None:
        await two.create()
        others = [World(store, random.Random(n), f"{ENVIRONMENT}/nodes/fake-{n}", Disk()) for n in (3, 4, 5)]
        await two.second_joins()
        for other in others:
            await two.first.join(other)
            await two.first.until(lambda name=other.name: two.state(name) == Node.READY)
        cut = (two.first, *others[:2])
        for site in cut:
            site.cut = True
        await two.first.until(lambda: lease(two) == Node.ON_HOLD)
        await asyncio.sleep(30)
        assert [lease(two, site.name) for site in cut] == [Node.ON_HOLD] * 3
        assert roles(two) == {NODE: "CURRENT"}
        condition = held(two)
        assert (condition.type, condition.status) == ("FailoverHeld", rt.Condition.MET)
        # By hand it goes all the same.
        operation = await two.first.commands.recover(pb.RecoverAppRequest(name="apps/shop"), ME)
        assert (await two.ended(operation.name)).error is None
        assert two.where() != NODE
        # They come back one after the other, and whose turn it is not yet is not lost for that.
        others[0].cut = others[1].cut = False
        seen: list[int] = []

        def are_back() -> bool:
            states = [lease(two, other.name) for other in others[:2]]
            seen.extend(states)
            return states == [Node.GRANTED] * 2

        await two.first.until(are_back)
        assert Node.EXPIRED not in seen
        await two.first.until(lambda: lease(two) == Node.EXPIRED)
        assert held(two) is None

    run(store, test)


def held(two: Two) -> Any:
    mirror = two.first.store.mirror
    shown = shown_environment(mirror, mirror.environments.get(ENVIRONMENT), 5)
    return next(iter(shown.conditions), None)


def test_a_node_of_a_version_without_leases_is_never_lost(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        await two.create()
        await two.second_joins()
        whole = two.first.node.status

        def status() -> rt.RuntimeStatus:
            told = whole()
            told.ClearField("lease")
            return told

        two.first.node.status = status  # type: ignore[method-assign]
        await two.first.restart_controller()
        await two.first.until(lambda: lease(two) == Node.LEASE_STATE_UNSPECIFIED)
        two.first.cut = True
        await two.first.until(lambda: two.state(NODE) == Node.UNREACHABLE)
        await asyncio.sleep(30)
        assert lease(two) == Node.LEASE_STATE_UNSPECIFIED
        assert [it.role for it in store.mirror.placements_of("apps/shop")] == [Role.CURRENT]

    run(store, test)


def test_a_node_that_may_still_answer_for_an_app_alone_cannot_be_deleted(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        await two.create(availability=rt.InstanceSpec.CONSISTENT)
        await two.second_joins()
        two.first.cut = True
        await two.first.until(lambda: two.state(NODE) == Node.UNREACHABLE)
        request = fleet.DeleteNodeRequest(name=NODE)
        with pytest.raises(SupervisorError) as refused:
            await two.nodes.delete(request, ME)
        assert refused.value.reason == "NODE_ALIVE"
        await two.first.until(lambda: lease(two) == Node.EXPIRED)
        await two.nodes.delete(request, ME)
        await two.first.until(lambda: two.where() == OTHER and two.is_settled())

    run(store, test)


def test_a_move_whose_new_node_is_lost_says_so_and_the_app_serves_where_it_was(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        await two.create()
        await two.second_joins()
        operation = await two.move(OTHER)
        two.second.cut = True
        error = (await two.ended(operation)).error
        assert error is not None
        assert "was lost before apps/shop had moved there" in error.message
        await two.first.until(lambda: two.is_settled() and two.where() == NODE)

    run(store, test)

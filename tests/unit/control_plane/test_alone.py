"""Apps with an outside database on the only node of an environment, by the whole controller over fake nodes
in virtual time: they need no lease there, and nobody has them before it has heard that it is not alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.control_plane.rules.conditions import get_condition
from services.control_plane.store.interface import CatalogStore
from services.control_plane.store.sql_store import open_store
from services.rpc.errors import SupervisorError
from tests.unit.control_plane.test_moves import CLOCK as VIRTUAL
from tests.unit.control_plane.test_moves import OTHER, Two, run
from tests.unit.control_plane.world import ME, NODE

SHOP = "apps/shop"
OUTSIDE = rt.Database(external=rt.Database.External(secret_key="DATABASE"))
AVAILABLE, CONSISTENT = rt.InstanceSpec.AVAILABLE, rt.InstanceSpec.CONSISTENT


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CatalogStore]:
    store = open_store(f"sqlite:///{tmp_path}/a.db", clock=VIRTUAL, elapsed=VIRTUAL)
    yield store
    store.close()


async def created(two: Two, **fields: object) -> None:
    await two.create(database=OUTSIDE, secret_env={"DATABASE": "postgresql://outside/db"}, **fields)


def stored(two: Two, node: str = NODE) -> fleet.Node:
    record = two.first.store.mirror.nodes.get(node)
    assert record is not None
    return record.node


def effective(two: Two) -> tuple[int, int]:
    app = two.app()
    return app.effective_availability, app.availability_reason


async def lost_and_joined(two: Two) -> None:
    """Cut the only node off until its lease has run out, and let another one come."""
    await two.first.until(lambda: two.first.node.lease.alone)
    two.first.cut = True
    await two.second_joins()
    await two.first.until(lambda: stored(two).lease_state == fleet.Node.EXPIRED)


def test_the_only_node_needs_no_lease_until_another_one_comes_and_the_app_says_why(
    store: CatalogStore,
) -> None:
    async def test(two: Two) -> None:
        await created(two)
        await two.first.until(lambda: effective(two) == (AVAILABLE, pb.App.ONLY_NODE))
        await two.first.until(lambda: two.first.node.lease.alone and stored(two).serves_alone)
        await two.second_joins()
        await two.first.until(lambda: not stored(two).serves_alone)
        assert not two.first.node.lease.alone
        await two.first.until(lambda: effective(two) == (CONSISTENT, pb.App.DATABASE_SHARED))
        assert not stored(two, OTHER).serves_alone
        # From now on the ordinary rule holds.
        two.first.cut = True
        await two.first.until(lambda: two.where() == OTHER and two.is_settled())
        assert not two.first.node.lease.held

    run(store, test)


def test_what_a_node_that_was_alone_may_serve_waits_for_it(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        await created(two)
        await two.create("calm")
        await lost_and_joined(two)
        await two.first.until(lambda: two.where("apps/calm") == OTHER)
        await asyncio.sleep(60)
        assert two.first.node.lease.alone
        assert not two.first.node.lease.held
        assert two.where() == NODE
        assert [it.app_uid for it in two.second.node.instances().values()] == [two.app("apps/calm").uid]
        ready = get_condition(two.app().conditions, "Ready")
        assert ready is not None
        assert "RecoverApp, with accept_data_loss, starts it on another node" in ready.message
        assert effective(two) == (AVAILABLE, pb.App.ONLY_NODE)
        two.first.cut = False
        await two.first.until(lambda: not stored(two).serves_alone and two.first.node.lease.held)
        assert two.where() == NODE
        two.first.cut = True
        await two.first.until(lambda: two.where() == OTHER and two.is_settled())

    run(store, test)


def test_a_person_may_give_it_up(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        await created(two)
        await lost_and_joined(two)
        with pytest.raises(SupervisorError) as alive:
            await two.nodes.delete(fleet.DeleteNodeRequest(name=NODE), ME)
        assert (alive.value.reason, alive.value.metadata["app"]) == ("NODE_ALIVE", SHOP)
        recover = two.first.commands.recover
        with pytest.raises(SupervisorError) as refused:
            await recover(pb.RecoverAppRequest(name=SHOP), ME)
        assert refused.value.reason == "NODE_NOT_LOST"
        assert refused.value.metadata["serves_alone"] == "true"
        operation = await recover(pb.RecoverAppRequest(name=SHOP, accept_data_loss=True), ME)
        assert (await two.ended(operation.name)).error is None
        assert two.where() == OTHER
        # What comes back gives its copy up with its first lease.
        two.first.cut = False
        await two.first.until(lambda: not two.first.node.instances() and not two.first.node.lease.alone)
        assert two.where() == OTHER

    run(store, test)


def test_a_node_that_is_gone_is_deleted_by_force(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        await created(two)
        await lost_and_joined(two)
        await two.nodes.delete(fleet.DeleteNodeRequest(name=NODE, force=True), ME)
        await two.first.until(lambda: two.where() == OTHER and two.is_settled())

    run(store, test)


def test_a_move_waits_until_the_node_has_heard_that_it_is_not_alone(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        await created(two)
        await lost_and_joined(two)
        operation = await two.move(OTHER)
        await asyncio.sleep(60)
        assert two.second.node.instances() == {}
        two.first.cut = False
        assert (await two.ended(operation)).error is None
        assert two.where() == OTHER
        await two.first.until(lambda: not two.first.node.instances())

    run(store, test)


def test_what_runs_decides_and_not_what_the_app_is_to_be(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        await created(two)
        await lost_and_joined(two)
        app = pb.App(name=SHOP, availability=CONSISTENT)
        await two.first.commands.update(
            pb.UpdateAppRequest(app=app, update_mask={"paths": ["availability"]}), ME
        )
        await asyncio.sleep(60)
        assert two.second.node.instances() == {}
        two.first.cut = False
        await two.first.until(lambda: two.is_settled() and effective(two) == (CONSISTENT, pb.App.ASKED_FOR))
        assert two.where() == NODE

    run(store, test)


def test_a_node_that_is_left_alone_serves_alone_again(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        await created(two)
        await two.second_joins()
        await two.first.until(lambda: not stored(two).serves_alone)
        two.second.cut = True
        await two.first.until(lambda: stored(two, OTHER).lease_state == fleet.Node.EXPIRED)
        await two.nodes.delete(fleet.DeleteNodeRequest(name=OTHER), ME)
        await two.first.until(lambda: stored(two).serves_alone and two.first.node.lease.alone)
        await two.first.until(lambda: effective(two) == (AVAILABLE, pb.App.ONLY_NODE))

    run(store, test)


def test_nothing_consistent_starts_elsewhere_while_a_node_that_is_not_heard_may_hold_its_lease(
    store: CatalogStore,
) -> None:
    async def test(two: Two) -> None:
        await created(two)
        await two.second_joins()
        await two.first.until(lambda: effective(two) == (CONSISTENT, pb.App.DATABASE_SHARED))
        two.first.cut = True
        await two.first.until(lambda: not two.first.controller.is_heard(NODE))
        assert two.first.node.lease.held
        operation = await two.move(OTHER)
        await two.first.until(lambda: bool(two.second.node.instances()))
        assert not two.first.node.lease.held
        assert (await two.ended(operation)).error is None
        assert two.where() == OTHER

    run(store, test)

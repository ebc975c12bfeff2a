"""Moves of apps that keep their data on their node, over two fake nodes in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.longrunning import operations_pb2

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.fleet.v1.fleet_pb2 import Node, RegisterNodeRequest
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.control_plane.operations.service import OperationService
from services.control_plane.placement.data_travel import data_home
from services.control_plane.store.interface import CatalogStore
from services.control_plane.store.records import Role
from services.control_plane.store.sql_store import open_store
from services.rpc.errors import SupervisorError
from tests.fakes.runtime_node import Behaviour
from tests.unit.control_plane.test_moves import CLOCK, OTHER, PICKY, Two, run
from tests.unit.control_plane.world import ME, NODE, SLOW, World

SQLITE = rt.Database(sqlite=rt.Database.Sqlite())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CatalogStore]:
    store = open_store(f"sqlite:///{tmp_path}/a.db", clock=CLOCK, elapsed=CLOCK)
    yield store
    store.close()


async def begun(two: Two, entrypoint: str = "good:app", **fields: Any) -> str:
    """Have an app with data on the first node be on its way to the other; return the operation."""
    await two.create(entrypoint=entrypoint, database=SQLITE, **fields)
    await two.second_joins()
    return await two.move(OTHER)


def owners(two: Two) -> list[str]:
    """Return the nodes that own the app's data, as the catalog tells it."""
    placements = two.first.store.mirror.placements_of("apps/shop")
    return sorted({it.node for it in placements if it.has_data and it.role is not Role.LOST})


def ran(two: Two) -> list[str]:
    """Return what is in the app's data, at its owner."""
    home = data_home(two.first.store.mirror.placements_of("apps/shop"))
    assert home is not None
    site = next(it for it in two.first.sites() if it.name == home.node)
    return site.disk.ran[two.app().uid]


def kept(two: Two) -> list[str]:
    """Return the nodes with anything of the app on their disks."""
    uid = two.app().uid
    return [site.name for site in two.first.sites() if uid in site.disk.data | site.disk.left]


def test_an_app_is_moved_with_its_data_and_one_node_has_it_then(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        ended = await two.ended(await begun(two))
        assert ended.error is None
        await two.first.until(two.is_settled)
        assert (two.where(), two.running(), owners(two)) == (OTHER, [OTHER], [OTHER])
        assert ran(two) == ["fake-1 e1", "fake-2 e2"]
        assert kept(two) == [OTHER]
        told = ended.metadata.data_move
        assert (told.state, told.source_node, told.target_node) == (pb.DataMove.DONE, NODE, OTHER)
        assert (told.total_bytes, told.HasField("hold_duration")) == (4096, True)
        assert {"Moved", "DataMoved"} <= {it.type for it in two.events()}

    run(store, test)


def test_there_and_back_again_all_that_was_written_is_there(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        assert (await two.ended(await begun(two))).error is None
        assert (await two.ended(await two.move(NODE))).error is None
        await two.first.until(two.is_settled)
        assert (two.where(), owners(two), kept(two)) == (NODE, [NODE], [NODE])
        assert [it.split()[0] for it in ran(two)] == ["fake-1", "fake-2", "fake-1"]

    run(store, test)


def test_at_no_moment_two_nodes_own_the_data_or_run_on_it(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        operation = await begun(two, SLOW)
        while not two.first.store.mirror.operations.get(operation).done:
            assert len(owners(two)) == 1
            assert len(two.running()) <= 1
            await asyncio.sleep(0.05)
        assert (await two.ended(operation)).error is None

    run(store, test)


def test_a_stopped_app_takes_its_data_along_and_stays_stopped(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        await two.create(database=SQLITE)
        await two.second_joins()
        await two.first.commands.stop(pb.StopAppRequest(name="apps/shop"), ME)
        await two.first.until(lambda: two.app().state == rt.Instance.STOPPED)
        assert (await two.ended(await two.move(OTHER))).error is None
        await two.first.until(two.is_settled)
        assert (two.where(), owners(two), two.running(), kept(two)) == (OTHER, [OTHER], [], [OTHER])
        await two.first.commands.start(pb.StartAppRequest(name="apps/shop"), ME)
        await two.first.until(lambda: two.running() == [OTHER])
        assert ran(two)[0] == "fake-1 e1"

    run(store, test)


def test_a_dormant_app_that_never_ran_goes_without_any(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        ended = await two.ended(await begun(two, activation=rt.InstanceSpec.ON_REQUEST))
        assert ended.error is None
        assert two.where() == OTHER

    run(store, test)


@pytest.mark.parametrize("step", ["freeze", "rest"])
def test_a_write_stop_that_fails_leaves_the_app_where_it_was(store: CatalogStore, step: str) -> None:
    async def test(two: Two) -> None:
        site = two.first if step == "freeze" else two.second
        site.node.transfers.breaks.append(step)
        ended = await two.ended(await begun(two))
        assert ended.error is not None
        assert f"The {step} failed." in ended.error.message
        await two.first.until(two.is_settled)
        assert (two.where(), two.running(), owners(two)) == (NODE, [NODE], [NODE])
        await two.first.until(lambda: kept(two) == [NODE])
        assert two.app().data_move.state == pb.DataMove.CALLED_OFF
        # And a later move goes through.
        assert (await two.ended(await two.move(OTHER))).error is None
        assert {it.split()[0] for it in ran(two)} == {"fake-1", "fake-2"}

    run(store, test)


def test_an_app_that_does_not_start_there_comes_back_with_its_data(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        ended = await two.ended(await begun(two, PICKY))
        assert ended.error is not None
        assert "not here" in ended.error.message
        await two.first.until(lambda: two.is_settled() and two.running() == [NODE])
        assert (two.where(), owners(two)) == (NODE, [NODE])
        assert ran(two)[:2] == ["fake-1 e1", "fake-2 e2"], "what was written there came back, too"
        await two.first.until(lambda: kept(two) == [NODE])
        assert "MoveFailed" in {it.type for it in two.events()}

    run(store, test)


def test_code_that_the_target_cannot_import_is_found_out_before_the_app_is_stopped(
    store: CatalogStore,
) -> None:
    async def test(two: Two) -> None:
        operation = await begun(two)
        site = next(it for it in two.first.sites() if it.name == OTHER)
        site.node.behaviours["good:app"] = Behaviour(fails=("ENTRYPOINT_MODULE_NOT_FOUND", "no module good"))
        ended = await two.ended(operation)
        assert ended.error is not None
        assert "no module good" in ended.error.message
        await two.first.until(lambda: two.is_settled() and kept(two) == [NODE])
        assert (two.where(), ran(two)) == (NODE, ["fake-1 e1"]), "it was never stopped"

    run(store, test)


def test_a_target_that_is_silent_costs_the_move_alone(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        two.second.node.transfers.copy_seconds = 1e6
        operation = await begun(two)
        await two.first.until(lambda: two.app().data_move.copied_bytes > 0)
        two.second.cut = True
        ended = await two.ended(operation)
        assert ended.error is not None
        assert NODE in two.running()
        assert owners(two) == [NODE]
        two.second.cut = False
        await two.first.until(lambda: two.is_settled() and kept(two) == [NODE])

    run(store, test)


def test_a_copy_that_stands_still_is_given_up(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        two.second.node.transfers.copy_seconds = 1e6
        ended = await two.ended(await begun(two))
        assert ended.error is not None
        assert two.app().data_move.state == pb.DataMove.CALLED_OFF
        assert (two.running(), owners(two)) == ([NODE], [NODE])

    run(store, test)


@pytest.mark.parametrize("whose", ["source", "target"])
def test_a_node_that_is_killed_while_it_copies_begins_again(store: CatalogStore, whose: str) -> None:
    async def test(two: Two) -> None:
        two.second.node.transfers.copy_seconds = 2.0
        operation = await begun(two)
        await two.first.until(lambda: two.app().data_move.copied_bytes > 0)
        site = two.first if whose == "source" else two.second
        await site.node.kill()
        site.ended.set()
        site._life()
        site.node.address = f"127.0.0.1:{site.port}"
        await two.first.fleet.register_node(registration(site), ME)
        assert (await two.ended(operation)).error is None
        await two.first.until(two.is_settled)
        assert (two.where(), owners(two), kept(two)) == (OTHER, [OTHER], [OTHER])
        assert ran(two)[0] == "fake-1 e1"

    run(store, test)


def test_a_move_that_is_cancelled_while_it_copies_leaves_nothing_behind(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        two.second.node.transfers.copy_seconds = 1e6
        operation = await begun(two)
        await two.first.until(lambda: two.app().data_move.copied_bytes > 0)
        operations = OperationService(two.first.store)  # type: ignore[arg-type]
        await operations.cancel(operations_pb2.CancelOperationRequest(name=operation), ME)
        await two.first.until(two.is_settled)
        assert (two.where(), two.running(), owners(two), kept(two)) == (NODE, [NODE], [NODE], [NODE])
        assert two.app().data_move.state == pb.DataMove.CALLED_OFF

    run(store, test)


def test_a_move_whose_data_has_gone_is_not_cancelled_and_says_so(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        operation = await begun(two)
        go = two.second.node.hold("good:app")
        await two.first.until(lambda: owners(two) == [OTHER])
        operations = OperationService(two.first.store)  # type: ignore[arg-type]
        with pytest.raises(SupervisorError) as refused:
            await operations.cancel(operations_pb2.CancelOperationRequest(name=operation), ME)
        assert refused.value.reason == "OPERATION_NOT_CANCELLABLE"
        assert f"the app's data to {OTHER}" in refused.value.message
        go.set()
        assert (await two.ended(operation)).error is None
        assert two.where() == OTHER

    run(store, test)


def test_an_update_in_the_middle_replaces_the_move(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        two.second.node.transfers.copy_seconds = 1e6
        operation = await begun(two)
        await two.first.until(lambda: two.app().data_move.copied_bytes > 0)
        update = pb.UpdateAppRequest(app=pb.App(name="apps/shop", entrypoint="other:app"))
        update.update_mask.paths.append("entrypoint")
        await two.first.commands.update(update, ME)
        assert (await two.ended(operation)).error is not None
        await two.first.until(two.is_settled)
        assert (two.where(), owners(two), kept(two)) == (NODE, [NODE], [NODE])
        assert two.app().data_move.state == pb.DataMove.CALLED_OFF

    run(store, test)


def test_whenever_another_leads_the_move_goes_on_or_is_taken_back(store: CatalogStore) -> None:
    async def test(two: Two) -> None:
        operation = await begun(two)
        chance = random.Random(7)
        while not two.first.store.mirror.operations.get(operation).done:
            await asyncio.sleep(chance.uniform(0.01, 0.4))
            assert len(owners(two)) == 1
            await two.first.restart_controller()
        await two.first.until(lambda: two.is_settled() and len(kept(two)) == 1)
        assert kept(two) == owners(two) == two.running() == [two.where()]
        assert ran(two)[0] == "fake-1 e1"

    run(store, test)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_gets_lost_one_node_owns_all_that_was_written(store: CatalogStore, seed: int) -> None:
    async def test(two: Two) -> None:
        operation = await begun(two, SLOW if seed % 2 else "good:app")
        chance = random.Random(seed)
        for site in two.first.sites():
            site.lost_requests = site.lost_answers = 0.1
            site.node.transfers.breaks.extend(chance.sample(["freeze", "rest", "copy"], chance.randint(0, 1)))
        seen = 0
        for _ in range(40):
            await asyncio.sleep(chance.uniform(0.05, 1.0))
            assert len(owners(two)) == 1
            assert len(ran(two)) >= seen, "what was written is gone"
            seen = len(ran(two))
            if chance.random() < 0.1:
                await two.first.restart_controller()
        for site in two.first.sites():
            site.lost_requests = site.lost_answers = 0.0
        await two.ended(operation)
        await two.first.until(lambda: two.is_settled() and len(kept(two)) == 1)
        assert kept(two) == owners(two) == two.running() == [two.where()]
        assert ran(two)[0] == "fake-1 e1"

    run(store, test)


def registration(site: World) -> RegisterNodeRequest:
    environment, _, node = site.name.partition("/nodes/")
    request = RegisterNodeRequest(parent=environment, node_id=node)
    request.node.CopyFrom(
        Node(
            address=site.node.address, http_address="127.0.0.1:80", incarnation=site.node.incarnation,
            uid=site.disk.uid,
        )
    )  # fmt: skip
    return request

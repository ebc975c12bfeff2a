"""What an operator commands: of nodes, of environments, and where apps go: what it stores and refuses."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.longrunning.operations_pb2 import CancelOperationRequest, GetOperationRequest, Operation

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.control_plane.fleet import drains
from services.control_plane.fleet.node_watch import watch_nodes
from services.control_plane.operations import operations
from services.control_plane.reconciler import transactions
from services.control_plane.rules.conditions import get_condition
from services.control_plane.store.records import PlacementRecord, Role
from tests.eventually import WITHIN
from tests.unit.control_plane.conftest import Refused, Server
from tests.unit.control_plane.test_servicers import create

S = grpc.StatusCode
ONE, TWO = "environments/default/nodes/n1", "environments/default/nodes/n2"
NO_DATABASE = rt.Database(no_database=rt.Database.NoDatabase())


def register(server: Server, node_id: str = "n1", *, ready: bool = True, **fields: Any) -> fleet.Node:
    """Register a node, and have it heard as the leader stores it."""
    told = fleet.Node(
        address=f"10.0.0.1:{10 + int(node_id[1:])}", http_address="10.0.0.1:80", incarnation="i1", **fields
    )
    request = fleet.RegisterNodeRequest(parent="environments/default", node_id=node_id, node=told)
    node = server("RegisterNode", request).node
    status = rt.RuntimeStatus(incarnation="i1")
    if ready:
        server.store.write(lambda tx: transactions.node_heard(tx, node, status)).result(WITHIN)
    return node


def place(server: Server, app_id: str = "shop", node: str = ONE, *, state: Any = None, **fields: Any) -> None:
    """Have an app run on a node, as the reconciler stores it."""
    record = server.store.mirror.apps.get(f"apps/{app_id}")
    assert record is not None
    placement = PlacementRecord(record.name, record.uid, 0, 1, 1, node, Role.CURRENT, b"", **fields)
    status = pb.App(state=rt.Instance.RUNNING if state is None else state, observed_generation=1)

    def run(tx: Any) -> None:
        tx.put_placement(placement)
        after = tx.put_app(replace(record, status=status))
        operations.settle(tx, after)

    server.store.write(run).result(WITHIN)


def where(server: Server, app_id: str = "shop") -> dict[str, str]:
    return {
        f"{it.instance_id} on {it.node.rpartition('/')[2]}": it.role.name
        for it in server.store.mirror.placements_of(f"apps/{app_id}")
    }


def get(server: Server, name: str = ONE) -> fleet.Node:
    return server("GetNode", fleet.GetNodeRequest(name=name))


def test_a_cordon_is_kept_by_the_node_whatever_its_process_does(server: Server, refused: Refused) -> None:
    register(server)
    before = get(server)
    assert (before.cordoned, before.schedulable) == (False, True)
    only = fleet.CordonNodeRequest(name=ONE, validate_only=True)
    assert server("CordonNode", only).cordoned
    assert not get(server).cordoned
    error = refused("CordonNode", fleet.CordonNodeRequest(name=ONE, etag='"old"'))
    assert (error.code, error.info.reason) == (S.ABORTED, "ETAG_MISMATCH")
    request = fleet.CordonNodeRequest(name=ONE, etag=before.etag, request_id="once")
    cordoned = server("CordonNode", request)
    assert (cordoned.cordoned, cordoned.schedulable) == (True, False)
    assert cordoned.etag != before.etag
    assert server("CordonNode", request) == cordoned
    assert server("CordonNode", fleet.CordonNodeRequest(name=ONE)).etag == cordoned.etag
    register(server, labels={"zone": "b"})
    assert (get(server).cordoned, get(server).etag) == (True, cordoned.etag)
    assert server("UncordonNode", fleet.UncordonNodeRequest(name=ONE)).schedulable
    assert get(server).schedulable


@pytest.mark.parametrize("method", ["CordonNode", "UncordonNode", "DrainNode", "DeleteNode"])
def test_a_node_that_is_not_there_is_not_found(refused: Refused, method: str) -> None:
    kind = getattr(fleet, f"{method}Request")
    assert refused(method, kind(name=ONE)).info.reason == "NODE_NOT_FOUND"
    assert refused(method, kind(name="n1")).fields == {"name"}


def test_a_node_registers_nothing_that_is_the_operators(server: Server) -> None:
    node = register(server, cordoned=True, schedulable=True, etag='"mine"', reserved_memory_bytes=5)
    assert (node.cordoned, node.reserved_memory_bytes) == (False, 0)
    assert node.etag == get(server).etag != '"mine"'


def test_an_environment_is_updated_by_its_mask(server: Server, refused: Refused) -> None:
    request = fleet.CreateEnvironmentRequest(environment_id="prod", environment=fleet.Environment())
    request.environment.labels["tier"] = "gold"
    made = server("CreateEnvironment", request)

    def update(*paths: str, **fields: Any) -> fleet.Environment:
        wanted = fleet.UpdateEnvironmentRequest(environment=fleet.Environment(name=made.name, **fields))
        wanted.update_mask.paths.extend(paths)
        return server("UpdateEnvironment", wanted)

    assert update(display_name="Production").labels == {"tier": "gold"}
    changed = update("labels.zone", labels={"zone": "a", "other": "no"})
    assert (dict(changed.labels), changed.display_name) == ({"tier": "gold", "zone": "a"}, "Production")
    assert changed.etag != made.etag
    assert update("display_name", display_name="Production").etag == changed.etag
    cleared = update("*")
    assert (dict(cleared.labels), cleared.display_name) == ({}, "")
    assert server("GetEnvironment", fleet.GetEnvironmentRequest(name=made.name)) == cleared
    wrong = fleet.UpdateEnvironmentRequest(environment=fleet.Environment(name=made.name))
    wrong.update_mask.paths.extend(["labels.a", "colour", "display_name.x"])
    assert refused("UpdateEnvironment", wrong).fields == {"update_mask.paths[1]", "update_mask.paths[2]"}
    old = fleet.UpdateEnvironmentRequest(environment=fleet.Environment(name=made.name, etag=made.etag))
    assert refused("UpdateEnvironment", old).info.reason == "ETAG_MISMATCH"
    missing = fleet.UpdateEnvironmentRequest(environment=fleet.Environment(name="environments/none"))
    assert refused("UpdateEnvironment", missing).info.reason == "ENVIRONMENT_NOT_FOUND"


def test_a_cordoned_environment_makes_its_nodes_unschedulable_and_watchers_hear_of_it(server: Server) -> None:
    register(server)
    before = server.store.mirror.nodes.revision
    environment = fleet.Environment(name="environments/default", cordoned=True)
    server("UpdateEnvironment", fleet.UpdateEnvironmentRequest(environment=environment))
    assert not get(server).schedulable
    assert [entry.key for entry in server.store.mirror.nodes.since(before)] == [ONE]


def test_an_environment_is_deleted_with_its_apps_if_forced(server: Server, refused: Refused) -> None:
    server("CreateEnvironment", fleet.CreateEnvironmentRequest(environment_id="old"))
    for app_id in ("a", "b"):
        server("CreateApp", create(app_id, environment="environments/old"))
    (operation,) = server.store.mirror.open_operations("apps/a")
    assert refused(
        "DeleteEnvironment", fleet.DeleteEnvironmentRequest(name="environments/old")
    ).info.reason == ("ENVIRONMENT_NOT_EMPTY")
    forced = fleet.DeleteEnvironmentRequest(name="environments/old", force=True, validate_only=True)
    server("DeleteEnvironment", forced)
    assert server.store.mirror.apps.get("apps/a") is not None
    before = server.store.mirror.apps.revision
    forced.validate_only = False
    server("DeleteEnvironment", forced)
    assert refused("GetApp", pb.GetAppRequest(name="apps/a")).info.reason == "APP_NOT_FOUND"
    removed = server.store.mirror.apps.since(before)
    assert len({entry.revision for entry in removed}) == 2, "a watch can resume between any two"
    ended = server("GetOperation", GetOperationRequest(name=operation.name))
    assert ended.error.code == S.ABORTED.value[0]


def test_a_node_that_is_heard_or_holds_data_is_not_deleted_unless_forced(
    server: Server, refused: Refused, heard: set[str]
) -> None:
    register(server)
    server("CreateApp", create())
    place(server, has_data=True)
    heard.add(ONE)
    error = refused("DeleteNode", fleet.DeleteNodeRequest(name=ONE, force=True))
    assert (error.code, error.info.reason) == (S.FAILED_PRECONDITION, "NODE_ALIVE")
    heard.clear()
    error = refused("DeleteNode", fleet.DeleteNodeRequest(name=ONE))
    assert error.info.reason == "DATA_ON_NODE"
    assert {"apps": "1", "app": "apps/shop"}.items() <= dict(error.info.metadata).items()
    server("DeleteNode", fleet.DeleteNodeRequest(name=ONE, force=True, validate_only=True))
    assert get(server).name == ONE
    request = fleet.DeleteNodeRequest(name=ONE, force=True, request_id="once")
    server("DeleteNode", request)
    server("DeleteNode", request)
    assert refused("GetNode", fleet.GetNodeRequest(name=ONE)).info.reason == "NODE_NOT_FOUND"


# Moves


def moved(server: Server, app_id: str = "shop", **fields: Any) -> tuple[Operation, pb.OperationMetadata]:
    operation = server("MoveApp", pb.MoveAppRequest(name=f"apps/{app_id}", **fields))
    about = pb.OperationMetadata()
    assert operation.metadata.Unpack(about)
    return operation, about


def test_a_move_brings_a_new_placement_in_and_leaves_the_one_before_serving(server: Server) -> None:
    register(server)
    register(server, "n2")
    server("CreateApp", create(database=NO_DATABASE))
    place(server)
    only, about = moved(server, validate_only=True)
    assert (only.done, about.node) == (True, TWO)
    assert where(server) == {"g1-e1 on n1": "CURRENT"}
    operation, about = moved(server, request_id="once")
    assert (operation.done, about.verb, about.node) == (False, "move", TWO)
    assert where(server) == {"g1-e1 on n1": "CURRENT", "g1-e2 on n2": "INCOMING"}
    assert moved(server, request_id="once")[0] == operation
    app = server("GetApp", pb.GetAppRequest(name="apps/shop"))
    assert (app.state, app.reconciling) == (rt.Instance.RUNNING, True)
    events = server("ListAppEvents", pb.ListAppEventsRequest(parent="apps/shop")).app_events
    assert (events[0].type, events[0].operation) == ("MoveRequested", operation.name)


def test_a_cancelled_move_is_taken_back_and_the_next_one_has_another_epoch(server: Server) -> None:
    register(server)
    register(server, "n2")
    server("CreateApp", create(database=NO_DATABASE))
    place(server)
    operation, _ = moved(server)
    server("CancelOperation", CancelOperationRequest(name=operation.name))
    assert where(server) == {"g1-e1 on n1": "CURRENT", "g1-e2 on n2": "OUTGOING"}
    updated = get_condition(server("GetApp", pb.GetAppRequest(name="apps/shop")).conditions, "Updated")
    assert updated is not None
    assert (updated.status, updated.reason) == (rt.Condition.UNMET, "OPERATION_CANCELLED")
    moved(server)
    assert where(server)["g1-e3 on n2"] == "INCOMING"


def test_a_move_that_is_late_is_taken_back(server: Server) -> None:
    register(server)
    register(server, "n2")
    server("CreateApp", create(database=NO_DATABASE))
    place(server)
    operation, _ = moved(server)
    record = server.store.mirror.operations.get(operation.name)
    assert record is not None
    server.store.write(lambda tx: tx.put_operation(replace(record, deadline=tx.now))).result(WITHIN)
    server.store.write(lambda tx: operations.expire(tx, operation.name)).result(WITHIN)
    ended = server("GetOperation", GetOperationRequest(name=operation.name))
    assert ended.error.code == S.DEADLINE_EXCEEDED.value[0]
    assert where(server)["g1-e2 on n2"] == "OUTGOING"


def test_a_move_is_refused_with_what_would_have_to_change(server: Server, refused: Refused) -> None:
    register(server)
    server("CreateApp", create(database=NO_DATABASE))
    server("CreateApp", create("wiki"))
    place(server)
    place(server, "wiki", has_data=True)
    move = pb.MoveAppRequest(name="apps/wiki")
    error = refused("MoveApp", move)
    assert (error.code, error.info.reason) == (S.FAILED_PRECONDITION, "DATA_ON_NODE")
    assert error.info.metadata["node"] == ONE
    move = pb.MoveAppRequest(name="apps/shop")
    error = refused("MoveApp", move)
    assert (error.code, error.info.reason) == (S.FAILED_PRECONDITION, "NO_NODE_AVAILABLE")
    move.node = TWO
    assert refused("MoveApp", move).info.reason == "NODE_NOT_FOUND"
    register(server, "n2")
    server("CordonNode", fleet.CordonNodeRequest(name=TWO))
    error = refused("MoveApp", move)
    assert (error.info.reason, error.info.metadata["obstacle"]) == ("NODE_NOT_ELIGIBLE", "NODE_CORDONED")
    move.node = ONE
    assert server("MoveApp", move).done, "it is there"
    move.node = "environments/prod/nodes/n1"
    assert refused("MoveApp", move).fields == {"node"}
    assert refused("MoveApp", pb.MoveAppRequest(name="apps/none")).info.reason == "APP_NOT_FOUND"


def test_a_stopped_app_is_moved_without_being_started(server: Server) -> None:
    register(server)
    register(server, "n2")
    server("CreateApp", create(database=NO_DATABASE, desired_state=pb.App.STOPPED))
    place(server, state=rt.Instance.STOPPED)
    operation, _ = moved(server)
    assert where(server) == {"g1-e1 on n1": "OUTGOING", "g1-e2 on n2": "CURRENT"}
    assert not operation.done


def test_a_stop_and_a_later_move_replace_a_move(server: Server) -> None:
    for node_id in ("n1", "n2", "n3"):
        register(server, node_id)
    server("CreateApp", create(database=NO_DATABASE))
    place(server)
    first, _ = moved(server, node=TWO)
    second, _ = moved(server, node="environments/default/nodes/n3")
    assert where(server) == {
        "g1-e1 on n1": "CURRENT",
        "g1-e2 on n2": "OUTGOING",
        "g1-e3 on n3": "INCOMING",
    }
    server("StopApp", pb.StopAppRequest(name="apps/shop"))
    for operation in (first, second):
        ended = server("GetOperation", GetOperationRequest(name=operation.name))
        assert ended.error.code == S.ABORTED.value[0]


# Drains


def drained(server: Server, **fields: Any) -> tuple[Operation, fleet.DrainNodeMetadata]:
    operation = server("DrainNode", fleet.DrainNodeRequest(name=ONE, **fields))
    return operation, told(operation)


def told(operation: Operation) -> fleet.DrainNodeMetadata:
    about = fleet.DrainNodeMetadata()
    assert operation.metadata.Unpack(about)
    return about


def step(server: Server, operation: Operation, spent: tuple[str, ...] = ()) -> Operation:
    mirror = server.store.mirror
    server.store.write(lambda tx: drains.advance(tx, mirror, operation.name, spent)).result(WITHIN)
    return server("GetOperation", GetOperationRequest(name=operation.name))


def test_a_drain_of_an_empty_node_is_done_and_leaves_it_cordoned(server: Server) -> None:
    register(server)
    operation, about = drained(server)
    assert (operation.done, about.step, about.app_count) == (True, "done", 0)
    node = fleet.Node()
    assert operation.response.Unpack(node)
    assert (node.name, node.cordoned, get(server).cordoned) == (ONE, True, True)


def test_a_drain_moves_a_few_apps_at_a_time_and_names_what_cannot_go(server: Server) -> None:
    register(server)
    register(server, "n2")
    apps = [f"a{n:02}" for n in range(drains.WIDTH + 2)]
    for app_id in apps:
        server("CreateApp", create(app_id, database=NO_DATABASE))
        place(server, app_id)
    server("CreateApp", create("wiki"))
    place(server, "wiki", has_data=True)
    spent = ("apps/wiki",)
    operation, about = drained(server)
    assert (about.app_count, about.left_count) == (len(apps) + 1, len(apps) + 1)
    assert drained(server)[0] == operation, "it is under way"
    about = told(step(server, operation, spent))
    results = {it.app: it for it in about.app_results}
    stuck = results["apps/wiki"]
    assert stuck.state == fleet.DrainNodeMetadata.AppResult.STUCK
    assert about.app_results[0] == stuck, "what needs somebody comes first"
    states = [results[f"apps/{app_id}"].state for app_id in apps]
    moving, waiting = fleet.DrainNodeMetadata.AppResult.MOVING, fleet.DrainNodeMetadata.AppResult.WAITING
    assert states == [moving] * drains.WIDTH + [waiting] * 2
    assert told(step(server, operation, spent)) == about, "nothing has changed"
    for app_id in apps[: drains.WIDTH]:
        arrive(server, app_id)
    about = told(step(server, operation, spent))
    assert (about.left_count, about.progress_percent) == (3, 100 * drains.WIDTH // (len(apps) + 1))
    assert [it.state for it in about.app_results[1:]] == [moving, moving]
    for app_id in apps[drains.WIDTH :]:
        arrive(server, app_id)
    ended = step(server, operation, spent)
    assert ended.error.code == S.FAILED_PRECONDITION.value[0]
    assert "apps/wiki" in ended.error.message
    assert told(ended).left_count == 1


def test_a_drain_takes_data_along_where_there_is_another_node(server: Server) -> None:
    register(server)
    server("CreateApp", create("wiki"))
    place(server, "wiki", has_data=True)
    ended = step(server, drained(server)[0])
    (stuck,) = told(ended).app_results
    assert (stuck.state, stuck.reason) == (fleet.DrainNodeMetadata.AppResult.STUCK, "DATA_ON_NODE")
    assert "no other node" in ended.error.message
    register(server, "n2")
    operation, _ = drained(server)
    (moving,) = told(step(server, operation)).app_results
    assert moving.state == fleet.DrainNodeMetadata.AppResult.MOVING
    assert where(server, "wiki") == {"g1-e1 on n1": "CURRENT", "g1-e2 on n2": "INCOMING"}


def arrive(server: Server, app_id: str) -> None:
    """Have a move be over."""
    placements = server.store.mirror.placements_of(f"apps/{app_id}")

    def run(tx: Any) -> None:
        for it in placements:
            if it.node == ONE:
                tx.delete_placement(it)
            else:
                tx.put_placement(replace(it, role=Role.CURRENT))

    server.store.write(run).result(WITHIN)


def test_a_drain_waits_for_a_node_and_leaves_what_will_not_start_elsewhere(server: Server) -> None:
    register(server)
    server("CreateApp", create(database=NO_DATABASE))
    place(server)
    operation, _ = drained(server)
    (waits,) = told(step(server, operation)).app_results
    assert (waits.state, waits.reason) == (fleet.DrainNodeMetadata.AppResult.WAITING, "NO_NODE_AVAILABLE")
    ended = step(server, operation, spent=("apps/shop",))
    assert ended.done
    assert told(ended).app_results[0].state == fleet.DrainNodeMetadata.AppResult.STUCK


def test_a_drain_ends_when_it_is_cancelled_uncordoned_or_late(server: Server, refused: Refused) -> None:
    register(server)
    server("CreateApp", create(database=NO_DATABASE))
    place(server)
    first, _ = drained(server)
    server("CancelOperation", CancelOperationRequest(name=first.name))
    second, _ = drained(server, timeout={"seconds": 1})
    assert second.name != first.name
    server("UncordonNode", fleet.UncordonNodeRequest(name=ONE))
    ended = [server("GetOperation", GetOperationRequest(name=it.name)) for it in (first, second)]
    assert [told(it).step for it in ended] == ["cancelled", "superseded"]
    third, _ = drained(server, timeout={"seconds": 1})
    step(server, third)
    record = server.store.mirror.operations.get(third.name)
    assert record is not None
    server.store.write(lambda tx: tx.put_operation(replace(record, deadline=tx.now))).result(WITHIN)
    server.store.write(lambda tx: operations.expire(tx, third.name)).result(WITHIN)
    late = server("GetOperation", GetOperationRequest(name=third.name))
    assert late.error.code == S.DEADLINE_EXCEEDED.value[0]
    assert "apps/shop" in late.error.message
    assert refused("DrainNode", fleet.DrainNodeRequest(name=ONE, timeout={"nanos": 5})).fields == {"timeout"}


# WatchNodes


def test_a_watch_of_nodes_tells_all_then_changes_and_resumes_after_any_message(server: Server) -> None:
    register(server, modules=["blog"])
    server("CreateEnvironment", fleet.CreateEnvironmentRequest(environment_id="prod"))
    kinds = fleet.WatchNodesResponse

    async def read(count: int, **fields: Any) -> list[fleet.WatchNodesResponse]:
        request = fleet.WatchNodesRequest(parent="environments/default", **fields)
        messages = watch_nodes(server.store, request)
        return [await asyncio.wait_for(anext(messages), WITHIN) for _ in range(count)]

    def watch(count: int, **fields: Any) -> list[fleet.WatchNodesResponse]:
        return server.loop.run_until_complete(read(count, **fields))

    first, synced = watch(2)
    known = get(server)
    assert known.modules == ["blog"]
    known.ClearField("modules")  # long, and not told with each change of a node
    assert (first.type, first.node, first.resume_token) == (kinds.UPSERT, known, "")
    assert synced.type == kinds.SYNCED
    elsewhere = fleet.RegisterNodeRequest(parent="environments/prod", node_id="n1")
    elsewhere.node.CopyFrom(fleet.Node(address="10.0.0.9:1", http_address="10.0.0.9:2", incarnation="i"))
    server("RegisterNode", elsewhere)
    server("CordonNode", fleet.CordonNodeRequest(name=ONE))
    cordoned, again = watch(2, resume_token=synced.resume_token)
    assert (cordoned.type, cordoned.node.cordoned, again.type) == (kinds.UPSERT, True, kinds.SYNCED)
    register(server, "n2")
    (told_again, *_rest) = watch(2, resume_token=cordoned.resume_token)
    assert told_again.node.name in (ONE, TWO), (
        "what changed at one moment may be told again; nothing is missed"
    )
    server("DeleteNode", fleet.DeleteNodeRequest(name=TWO))
    removed = watch(1, resume_token=again.resume_token)[0]
    assert (removed.type, removed.node) == (kinds.REMOVE, fleet.Node(name=TWO))

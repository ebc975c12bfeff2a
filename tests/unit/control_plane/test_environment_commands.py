"""What is commanded about all apps of an environment: evening them out, and stopping them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import grpc
from google.longrunning.operations_pb2 import CancelOperationRequest, GetOperationRequest, Operation

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition, Database
from services.control_plane.fleet import rebalances
from services.control_plane.fleet.relocations import WIDTH
from services.control_plane.operations import operations
from services.control_plane.rules.conditions import set_condition
from services.control_plane.store.records import Role
from tests.eventually import WITHIN
from tests.unit.control_plane.conftest import Refused, Server
from tests.unit.control_plane.test_node_commands import NO_DATABASE, ONE, TWO, arrive, place, register, where
from tests.unit.control_plane.test_servicers import create

DEFAULT = "environments/default"
Move = fleet.PlannedMove


def fill(server: Server, count: int, node: str = ONE) -> list[str]:
    """Have so many apps run on a node, and return their ids."""
    apps = [f"{node[-2:]}-{n:02}" for n in range(count)]
    for app_id in apps:
        server("CreateApp", create(app_id, database=NO_DATABASE))
        place(server, app_id, node)
    return apps


def rebalanced(server: Server, **fields: Any) -> Operation:
    return server("RebalanceEnvironment", fleet.RebalanceEnvironmentRequest(name=DEFAULT, **fields))


def told(operation: Operation) -> fleet.RebalanceEnvironmentMetadata:
    about = fleet.RebalanceEnvironmentMetadata()
    assert operation.metadata.Unpack(about)
    return about


def states(operation: Operation) -> list[str]:
    return [Move.State.Name(it.state) for it in told(operation).moves]


def step(server: Server, operation: Operation) -> Operation:
    mirror = server.store.mirror
    server.store.write(lambda tx: rebalances.advance(tx, mirror, operation.name, ())).result(WITHIN)
    return server("GetOperation", GetOperationRequest(name=operation.name))


def test_a_plan_is_shown_without_being_kept_and_names_only_what_can_move(server: Server) -> None:
    register(server)
    register(server, "n2")
    fill(server, 2)
    for app_id, fields in (("wiki", {}), ("solo", {"database": NO_DATABASE})):
        server("CreateApp", create(app_id, **fields))
        place(server, app_id, has_data=app_id == "wiki")
    shown = rebalanced(server, validate_only=True)
    response = fleet.RebalanceEnvironmentResponse()
    assert shown.response.Unpack(response)
    assert (shown.done, list(response.moves)) == (True, list(told(shown).moves))
    assert [(it.app, it.source_node, it.destination_node) for it in response.moves] == [
        ("apps/n1-00", ONE, TWO), ("apps/n1-01", ONE, TWO),
    ]  # fmt: skip
    assert response.moves[0].message == f"{ONE} has 4 apps, and {TWO} 0."
    assert server.store.mirror.operations.get(shown.name) is None
    assert where(server, "n1-00") == {"g1-e1 on n1": "CURRENT"}
    assert told(rebalanced(server, validate_only=True, max_moves=1)).moves[0] == response.moves[0]
    even = rebalanced(server, validate_only=True, app_count_tolerance=4)
    assert (even.done, len(told(even).moves), told(even).progress_percent) == (True, 0, 100)
    server("CordonNode", fleet.CordonNodeRequest(name=TWO))
    assert not told(rebalanced(server, validate_only=True)).moves


def test_a_rebalance_moves_a_few_apps_at_a_time_and_then_has_nothing_left_to_do(server: Server) -> None:
    register(server)
    register(server, "n2")
    fill(server, 2 * WIDTH + 4)
    operation = rebalanced(server)
    assert (operation.done, told(operation).step) == (False, "accepted")
    assert rebalanced(server) == operation, "it is under way"
    operation = step(server, operation)
    assert states(operation) == ["MOVING"] * WIDTH + ["PLANNED"] * 2
    assert step(server, operation) == operation, "nothing has changed"
    moves = told(operation).moves
    for move in moves[:WIDTH]:
        arrive(server, move.app.removeprefix("apps/"))
    operation = step(server, operation)
    assert (states(operation), told(operation).progress_percent) == (
        ["MOVED"] * WIDTH + ["MOVING"] * 2, 100 * WIDTH // (WIDTH + 2),
    )  # fmt: skip
    for move in moves[WIDTH:]:
        arrive(server, move.app.removeprefix("apps/"))
    operation = step(server, operation)
    assert (operation.done, operation.HasField("error"), told(operation).step) == (True, False, "done")
    again = rebalanced(server)
    assert (again.done, len(told(again).moves)) == (True, 0)


def test_what_has_changed_since_the_plan_is_left_out_and_a_failed_move_fails_it(server: Server) -> None:
    register(server)
    register(server, "n2")
    fill(server, 8)
    operation = rebalanced(server)
    deleted, bound, failing, _ = (it.app for it in told(operation).moves)
    server("DeleteApp", pb.DeleteAppRequest(name=deleted))
    update = pb.UpdateAppRequest(app=pb.App(name=bound, exclusive=True))
    server("UpdateApp", update)
    operation = step(server, operation)
    assert states(operation) == ["LEFT_OUT", "LEFT_OUT", "MOVING", "MOVING"]
    assert [it.reason for it in told(operation).moves[:2]] == ["APP_DELETING", "CHANGING"]

    def fail(tx: Any) -> None:
        record = tx.app(failing)
        for it in tx.placements_of(failing):
            if it.role is Role.INCOMING:
                tx.delete_placement(it)
        status = pb.App()
        status.CopyFrom(record.status)
        set_condition(status.conditions, "Updated", Condition.UNMET, "APP_FACTORY_FAILED", "No.", tx.now)
        tx.put_app(replace(record, status=status))

    server.store.write(fail).result(WITHIN)
    arrive(server, told(operation).moves[3].app.removeprefix("apps/"))
    operation = step(server, operation)
    assert states(operation) == ["LEFT_OUT", "LEFT_OUT", "FAILED", "MOVED"]
    assert operation.error.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    assert operation.error.message == f"1 move failed: {failing}. No."


def test_a_rebalance_ends_when_it_is_cancelled_or_late_and_leaves_out_what_a_node_cannot_take(
    server: Server, refused: Refused
) -> None:
    register(server)
    register(server, "n2")
    fill(server, 4)
    first = rebalanced(server)
    server("CancelOperation", CancelOperationRequest(name=first.name))
    assert told(server("GetOperation", GetOperationRequest(name=first.name))).step == "cancelled"
    late = rebalanced(server, timeout={"seconds": 1})
    record = server.store.mirror.operations.get(late.name)
    assert record is not None
    server.store.write(lambda tx: tx.put_operation(replace(record, deadline=tx.now))).result(WITHIN)
    server.store.write(lambda tx: operations.expire(tx, late.name)).result(WITHIN)
    late = server("GetOperation", GetOperationRequest(name=late.name))
    assert late.error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    assert "Still to be made: 2 moves" in late.error.message
    third = rebalanced(server)
    cordon = fleet.UpdateEnvironmentRequest(environment=fleet.Environment(name=DEFAULT, cordoned=True))
    server("UpdateEnvironment", cordon)
    third = step(server, third)
    assert (third.done, {it.reason for it in told(third).moves}) == (True, {"ENVIRONMENT_CORDONED"})
    wrong = fleet.RebalanceEnvironmentRequest(
        name=DEFAULT, max_moves=1001, app_count_tolerance=-1, timeout={"seconds": 5}
    )
    assert refused("RebalanceEnvironment", wrong).fields == {"max_moves", "app_count_tolerance"}
    missing = fleet.RebalanceEnvironmentRequest(name="environments/none")
    assert refused("RebalanceEnvironment", missing).info.reason == "ENVIRONMENT_NOT_FOUND"
    stale = fleet.RebalanceEnvironmentRequest(name=DEFAULT, etag="old")
    assert refused("RebalanceEnvironment", stale).info.reason == "ETAG_MISMATCH"


def test_a_drain_of_an_environment_cordons_it_and_stops_its_apps_as_one_batch(server: Server) -> None:
    register(server)
    apps = fill(server, 2)
    server("CreateApp", create("still", desired_state=pb.App.STOPPED))
    shown = server("DrainEnvironment", fleet.DrainEnvironmentRequest(name=DEFAULT, validate_only=True))
    listed = pb.BatchResponse()
    assert shown.response.Unpack(listed)
    assert [it.app for it in listed.results] == [f"apps/{it}" for it in apps]

    def environment() -> fleet.Environment:
        return server("GetEnvironment", fleet.GetEnvironmentRequest(name=DEFAULT))

    assert not environment().cordoned
    operation = server("DrainEnvironment", fleet.DrainEnvironmentRequest(name=DEFAULT))
    about = pb.OperationMetadata()
    assert operation.metadata.Unpack(about)
    assert (operation.done, about.verb, about.batch.total_count) == (False, "batch_stop", 2)
    assert environment().cordoned
    batch = server.store.mirror.batches.get(operation.name)
    assert batch is not None, "who leads carries it out"
    server("CreateEnvironment", fleet.CreateEnvironmentRequest(environment_id="empty"))
    empty = server("DrainEnvironment", fleet.DrainEnvironmentRequest(name="environments/empty"))
    assert (empty.done, empty.HasField("error")) == (True, False)


def test_a_created_app_shows_the_defaults_of_its_environment_and_keeps_them(
    server: Server, refused: Refused
) -> None:
    wanted = create("crm", database=Database(postgres=Database.Postgres()))
    assert refused("CreateApp", wanted).fields == {"app.database.postgres.server"}
    update = fleet.UpdateEnvironmentRequest(environment=fleet.Environment(name=DEFAULT))
    update.environment.app_defaults.database_server = "databaseServers/main"
    update.environment.app_defaults.limits.max_threads = 3
    error = refused("UpdateEnvironment", update)
    assert (error.code, error.info.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION, "DATABASE_SERVER_NOT_FOUND",
    )  # fmt: skip
    main = fleet.DatabaseServer(admin_url="postgresql://admin:pw@127.0.0.1:1/postgres")
    server(
        "CreateDatabaseServer",
        fleet.CreateDatabaseServerRequest(database_server_id="main", database_server=main),
    )
    assert server("UpdateEnvironment", update).app_defaults == update.environment.app_defaults
    server("CreateApp", wanted)
    app = server("GetApp", pb.GetAppRequest(name="apps/crm"))
    assert (app.database.postgres.server, app.limits.max_threads) == ("databaseServers/main", 3)
    server("CreateApp", create("own", limits={"max_threads": 5}))
    assert server("GetApp", pb.GetAppRequest(name="apps/own")).limits.max_threads == 5
    anew = pb.UpdateAppRequest(app=pb.App(name="apps/anew", entrypoint="a:b"), allow_missing=True)
    server("UpdateApp", anew)
    assert server("GetApp", pb.GetAppRequest(name="apps/anew")).limits.max_threads == 3

    server("DeleteApp", pb.DeleteAppRequest(name="apps/crm"))
    forget = fleet.DeleteDatabaseServerRequest(name="databaseServers/main")
    error = refused("DeleteDatabaseServer", forget)
    assert (error.info.reason, error.info.metadata["environment"]) == ("DATABASE_SERVER_IN_USE", DEFAULT)
    update.environment.ClearField("app_defaults")
    update.update_mask.paths.append("app_defaults")
    server("UpdateEnvironment", update)
    server("DeleteDatabaseServer", forget)
    assert server("GetApp", pb.GetAppRequest(name="apps/anew")).limits.max_threads == 3
    staging = fleet.CreateEnvironmentRequest(environment_id="staging")
    staging.environment.app_defaults.limits.max_threads = 0
    staging.environment.app_defaults.node_selector["-"] = ""
    assert refused("CreateEnvironment", staging).fields == {'environment.app_defaults.node_selector["-"]'}

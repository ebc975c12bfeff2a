"""Each method of Fleet over a real store: what it does, and each error that its comment promises."""

from typing import Any
from unittest import mock

import grpc
import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.control_plane.reconciler import transactions
from services.control_plane.store.interface import Transaction
from services.control_plane.store.records import PlacementRecord, Role
from services.control_plane.store.transaction import CommandTransaction
from services.spec.versions import VERSION
from tests.unit.control_plane.conftest import Refused, Server
from tests.unit.control_plane.test_servicers import NODE, create, delete_now, node

S = grpc.StatusCode


def environment(name: str = "prod", **fields: Any) -> fleet.CreateEnvironmentRequest:
    return fleet.CreateEnvironmentRequest(environment=fleet.Environment(**fields), environment_id=name)


def test_environments_are_created_shown_listed_and_deleted(server: Server, refused: Refused) -> None:
    made = server("CreateEnvironment", environment(display_name="Production"))
    assert made.name == "environments/prod"
    assert server("GetEnvironment", fleet.GetEnvironmentRequest(name=made.name)) == made
    listed = server("ListEnvironments", fleet.ListEnvironmentsRequest(page_size=1))
    assert [e.name for e in listed.environments] == ["environments/default"]
    rest = fleet.ListEnvironmentsRequest(page_token=listed.next_page_token)
    assert [e.name for e in server("ListEnvironments", rest).environments] == [made.name]
    error = refused("CreateEnvironment", environment())
    assert (error.code, error.info.reason) == (S.ALREADY_EXISTS, "ENVIRONMENT_ALREADY_EXISTS")
    assert error.resource.resource_type == "appsupervisor.dev/Environment"
    error = refused("DeleteEnvironment", fleet.DeleteEnvironmentRequest(name=made.name, etag='"old"'))
    assert (error.code, error.info.reason) == (S.ABORTED, "ETAG_MISMATCH")
    server("DeleteEnvironment", fleet.DeleteEnvironmentRequest(name=made.name, etag=made.etag))
    for method, request in (
        ("GetEnvironment", fleet.GetEnvironmentRequest(name=made.name)),
        ("DeleteEnvironment", fleet.DeleteEnvironmentRequest(name=made.name)),
        ("ListNodes", fleet.ListNodesRequest(parent=made.name)),
    ):
        error = refused(method, request)
        assert (error.code, error.info.reason) == (S.NOT_FOUND, "ENVIRONMENT_NOT_FOUND")


def test_an_environment_in_use_and_the_default_one_are_not_deleted(
    server: Server, refused: Refused, heard: set[str]
) -> None:
    error = refused("DeleteEnvironment", fleet.DeleteEnvironmentRequest(name="environments/default"))
    assert (error.code, error.info.reason) == (S.FAILED_PRECONDITION, "ENVIRONMENT_PROTECTED")
    server("CreateEnvironment", environment())
    delete = fleet.DeleteEnvironmentRequest(name="environments/prod")
    server("CreateApp", create(environment="environments/prod"))
    assert server("GetEnvironment", fleet.GetEnvironmentRequest(name="environments/prod")).app_count == 1
    error = refused("DeleteEnvironment", delete)
    assert (error.code, error.info.reason) == (S.FAILED_PRECONDITION, "ENVIRONMENT_NOT_EMPTY")
    assert error.precondition.violations[0].subject == "environments/prod"
    server("DeleteApp", pb.DeleteAppRequest(name="apps/shop"))
    delete_now(server)
    request = node()
    request.parent = "environments/prod"
    server("RegisterNode", request)
    heard.add("environments/prod/nodes/n1")
    assert refused("DeleteEnvironment", delete).info.reason == "ENVIRONMENT_NOT_EMPTY"
    heard.clear()
    server("DeleteEnvironment", delete)
    gone = fleet.GetNodeRequest(name="environments/prod/nodes/n1")
    assert refused("GetNode", gone).info.reason == "NODE_NOT_FOUND"


def test_a_node_registers_and_a_repeat_changes_nothing(server: Server) -> None:
    modules = [f"module_{n}" for n in range(2_000)]
    told = node(labels={"zone": "a"}, modules=modules, state=fleet.Node.READY, app_count=7)
    first = server("RegisterNode", told)
    assert first.registration_interval.seconds > 0
    assert (first.node.name, first.node.state, first.node.app_count) == (NODE, fleet.Node.JOINING, 0)
    assert first.node.state_reason
    revision = server.store.mirror.nodes.revision
    # Nor is another node looked at for it: a fleet's nodes all register again when it has been away.
    with mock.patch.object(CommandTransaction, "nodes", side_effect=AssertionError):
        assert server("RegisterNode", node(labels={"zone": "a"}, modules=modules)) == first
    assert server.store.mirror.nodes.revision == revision
    assert server("GetNode", fleet.GetNodeRequest(name=NODE)) == first.node
    assert list(first.node.modules) == modules
    first.node.ClearField("modules")  # it is long: of each of a thousand nodes a list leaves it out
    for parent in ("environments/default", "environments/-"):
        (listed,) = server("ListNodes", fleet.ListNodesRequest(parent=parent)).nodes
        assert listed == first.node


def test_a_node_that_cannot_be_stored_is_told_why(server: Server, refused: Refused, heard: set[str]) -> None:
    request = node()
    request.parent = "environments/none"
    error = refused("RegisterNode", request)
    assert (error.code, error.info.reason) == (S.NOT_FOUND, "ENVIRONMENT_NOT_FOUND")
    bad = node("", 0)
    bad.node_id = "N"
    bad.node.http_address = "nonsense"
    error = refused("RegisterNode", bad)
    assert error.fields == {"node_id", "node.address", "node.http_address", "node.incarnation"}
    error = refused("RegisterNode", node(version="7.1.0"))
    assert (error.code, error.info.reason) == (S.FAILED_PRECONDITION, "NODE_VERSION_UNSUPPORTED")
    told = error.info.metadata
    assert (told["version"], told["control_plane_version"]) == ("7.1.0", VERSION)
    server("RegisterNode", node("i1", 1))
    heard.add(NODE)
    error = refused("RegisterNode", node("i2", 2))
    assert (error.code, error.info.reason) == (S.ALREADY_EXISTS, "NODE_NAME_TAKEN")
    assert (error.resource.resource_type, error.resource.resource_name) == ("appsupervisor.dev/Node", NODE)
    heard.clear()
    assert server("RegisterNode", node("i2", 2)).node.incarnation == "i2"


# What nobody may see, and what must never break


ONE, OTHER = "6b4d1a52-0b5e-4e1e-8f43-2f5d9b1c7a10", "0c9a4c1e-7c0b-4a57-9d8a-5b3f2e1d0c9b"


def place(server: Server, app: str = "apps/shop") -> None:
    """Place an app on the node, as the reconciler does."""
    record = server.store.mirror.apps.get(app)
    assert record is not None
    placement = PlacementRecord(app, record.uid, 0, 1, 1, NODE, Role.CURRENT, b"", has_data=True)
    server.store.write(lambda tx: tx.put_placement(placement)).result(60)


def lose_node(server: Server) -> None:
    record = server.store.mirror.nodes.get(NODE)
    assert record is not None
    server.store.write(lambda tx: transactions.node_lost(tx, record.node, "Silent.")).result(60)


def test_a_name_with_apps_on_it_is_its_bearers_alone_however_long_that_is_silent(
    server: Server, refused: Refused
) -> None:
    server("RegisterNode", node("i1", 1, uid=ONE))
    server("RegisterNode", node("i2", 2, uid=OTHER))  # nothing is placed there
    server("RegisterNode", node("i3", 1, uid=ONE))
    server("CreateApp", create())
    place(server)
    error = refused("RegisterNode", node("i4", 2, uid=OTHER))
    assert (error.code, error.info.reason) == (S.ALREADY_EXISTS, "NODE_NAME_TAKEN")
    assert {"uid": ONE, "app": "apps/shop"}.items() <= dict(error.info.metadata).items()
    assert "apps/shop" in error.message
    refused("RegisterNode", node("i4", 2))  # nor one that has none
    assert server("RegisterNode", node("i5", 3, uid=ONE)).node.incarnation == "i5"
    assert refused("RegisterNode", node("i6", 3, uid="x")).fields == {"node.uid"}


def test_a_node_without_an_identity_takes_one_on(server: Server) -> None:
    server("RegisterNode", node("i1", 1))
    server("CreateApp", create())
    place(server)
    assert server("RegisterNode", node("i2", 1, uid=ONE)).node.uid == ONE


@pytest.mark.parametrize("verb", ["Start", "Restart"])
def test_a_name_is_free_again_once_the_data_of_its_apps_is_given_up(
    server: Server, refused: Refused, verb: str
) -> None:
    server("RegisterNode", node("i1", 1, uid=ONE))
    server("CreateApp", create())
    place(server)
    accept = getattr(pb, f"{verb}AppRequest")(name="apps/shop", accept_data_loss=True)
    server(f"{verb}App", accept)  # while its node may still be heard, it stays there
    assert [it.role for it in server.store.mirror.placements_of("apps/shop")] == [Role.CURRENT]
    refused("RegisterNode", node("i2", 2, uid=OTHER))
    lose_node(server)
    before = server.store.mirror.apps.get("apps/shop")
    server(f"{verb}App", accept)
    after = server.store.mirror.apps.get("apps/shop")
    assert before is not None
    assert after is not None
    assert after.target.epoch > before.target.epoch
    assert [it.role for it in server.store.mirror.placements_of("apps/shop")] == [Role.LOST]
    assert server("RegisterNode", node("i2", 2, uid=OTHER)).node.uid == OTHER
    assert server.store.mirror.placements_of("apps/shop") == ()


def test_no_base_domain_comes_over_the_domains_of_apps(server: Server, refused: Refused) -> None:
    server("CreateApp", create(domains=["shop.apps.example.com"]))
    server("CreateEnvironment", fleet.CreateEnvironmentRequest(environment_id="prod"))
    error = refused("RegisterNode", node(base_domain="apps.example.com"))
    assert (error.code, error.info.reason) == (S.ALREADY_EXISTS, "DOMAIN_TAKEN")
    varied = {"domain": "shop.apps.example.com", "app": "apps/shop", "base_domain": "apps.example.com"}
    assert varied.items() <= dict(error.info.metadata).items()
    server("RegisterNode", node(base_domain="other.example.com"))
    elsewhere = node(base_domain="apps.example.com")
    elsewhere.parent = "environments/prod"
    server("RegisterNode", elsewhere)


URL = "postgresql://admin:canary-4711@db.example:5432/apps"


def database_server(server_id: str = "one", **fields: Any) -> fleet.CreateDatabaseServerRequest:
    given = fleet.DatabaseServer(**{"admin_url": URL, **fields})
    return fleet.CreateDatabaseServerRequest(database_server=given, database_server_id=server_id)


def test_database_servers_are_registered_shown_changed_and_forgotten(
    server: Server, refused: Refused
) -> None:
    made = server("CreateDatabaseServer", database_server(labels={"zone": "a"}))
    assert (made.name, made.state) == ("databaseServers/one", fleet.DatabaseServer.PENDING)
    assert (made.max_apps, made.app_connections) == (1_000, 5)
    server("CreateDatabaseServer", database_server("two"))
    get = fleet.GetDatabaseServerRequest(name=made.name)
    assert server("GetDatabaseServer", get) == made
    first = server("ListDatabaseServers", fleet.ListDatabaseServersRequest(page_size=1))
    rest = fleet.ListDatabaseServersRequest(page_token=first.next_page_token)
    listed = [*first.database_servers, *server("ListDatabaseServers", rest).database_servers]
    assert [it.name for it in listed] == [made.name, "databaseServers/two"]
    given = fleet.DatabaseServer(name=made.name, etag=made.etag, display_name="One", max_apps=7)
    update = fleet.UpdateDatabaseServerRequest(database_server=given)
    update.update_mask.paths.append("display_name")
    changed = server("UpdateDatabaseServer", update)
    assert (changed.display_name, changed.max_apps, changed.labels["zone"]) == ("One", 1_000, "a")
    assert refused("UpdateDatabaseServer", update).info.reason == "ETAG_MISMATCH"
    # What was read back has no admin_url, and a full update of it leaves that alone.
    update = fleet.UpdateDatabaseServerRequest(database_server=changed)
    update.update_mask.paths.append("*")
    assert server("UpdateDatabaseServer", update) == changed
    update.update_mask.paths[0] = "admin_url"
    assert refused("UpdateDatabaseServer", update).fields == {"database_server.admin_url"}
    update.update_mask.paths[0] = "state"
    assert refused("UpdateDatabaseServer", update).fields == {"update_mask"}
    record = server.store.mirror.database_servers.get(made.name)
    assert record is not None
    assert (record.admin_url, len(record.key)) == (URL, 32)
    error = refused("CreateDatabaseServer", database_server())
    assert (error.code, error.info.reason) == (S.ALREADY_EXISTS, "DATABASE_SERVER_ALREADY_EXISTS")
    stale = fleet.DeleteDatabaseServerRequest(name=made.name, etag=made.etag)
    assert refused("DeleteDatabaseServer", stale).info.reason == "ETAG_MISMATCH"
    delete = fleet.DeleteDatabaseServerRequest(name=made.name)
    app = create(database=rt.Database(postgres=rt.Database.Postgres(server=made.name)))
    server("CreateApp", app)
    assert server("GetDatabaseServer", get).app_count == 1
    error = refused("DeleteDatabaseServer", delete)
    assert (error.code, error.info.reason) == (S.FAILED_PRECONDITION, "DATABASE_SERVER_IN_USE")
    server("DeleteApp", pb.DeleteAppRequest(name="apps/shop"))
    # What is being deleted may wait for a server that will never answer: it does not keep it.
    assert server("GetDatabaseServer", get).app_count == 0
    server("DeleteDatabaseServer", fleet.DeleteDatabaseServerRequest(name=made.name, validate_only=True))
    for _ in range(2):
        server("DeleteDatabaseServer", fleet.DeleteDatabaseServerRequest(name=made.name, request_id="once"))
    delete_now(server)
    for method, request in (
        ("GetDatabaseServer", get),
        ("UpdateDatabaseServer", fleet.UpdateDatabaseServerRequest(database_server={"name": made.name})),
        ("DeleteDatabaseServer", delete),
    ):
        error = refused(method, request)
        assert (error.code, error.info.reason) == (S.NOT_FOUND, "DATABASE_SERVER_NOT_FOUND")
    error = refused("CreateApp", app)
    assert (error.code, error.info.reason) == (S.FAILED_PRECONDITION, "DATABASE_SERVER_NOT_FOUND")


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"admin_url": ""}, "admin_url"),
        ({"admin_url": "mysql://a@b/c"}, "admin_url"),
        ({"admin_url": "postgresql://a:canary-4711 @b/c"}, "admin_url"),
        ({"admin_url": "postgresql://canary-4711" + "x" * 2048}, "admin_url"),
        ({"max_apps": -1}, "max_apps"),
        ({"app_connections": 1_001}, "app_connections"),
        ({"labels": {"": "x"}}, "labels"),
        ({"name": "databaseServers/other"}, "name"),
        ({"templates": ["Prepared"]}, "templates[0]"),
        ({"templates": ["prepared", "as_shop_1"]}, "templates[1]"),
        ({"templates": ["prepared", "prepared"]}, "templates[1]"),
        ({"templates": ["apps"]}, "templates[0]"),
        ({"templates": ["x"] * 65}, "templates"),
    ],
)
def test_what_is_wrong_with_a_database_server_is_told_without_its_secret(
    refused: Refused, fields: dict[str, Any], wrong: str
) -> None:
    error = refused("CreateDatabaseServer", database_server(**fields))
    assert any(field.startswith(f"database_server.{wrong}") for field in error.fields)
    assert b"canary-4711" not in error.status.SerializeToString()


def postgres(server: str, template: str = "") -> rt.Database:
    mode = rt.Database.Postgres.DATABASE
    return rt.Database(
        postgres=rt.Database.Postgres(server=f"databaseServers/{server}", mode=mode, template=template)
    )


def test_an_app_names_a_template_that_its_server_has_and_no_other_later(
    server: Server, refused: Refused
) -> None:
    server("CreateDatabaseServer", database_server(templates=["prepared"]))
    server("CreateDatabaseServer", database_server("two", templates=["other"]))
    field = "app.database.postgres.template"
    for template, rule in (
        ("other", "is none that databaseServers/one has: prepared"),
        ("as_blog_1", "must not begin with as_"),
    ):
        error = refused("CreateApp", create(database=postgres("one", template)))
        assert (error.fields, rule in str(error.status)) == ({field}, True)
    shared = postgres("one", "prepared")
    shared.postgres.mode = rt.Database.Postgres.SCHEMA
    error = refused("CreateApp", create(database=shared))
    assert (error.fields, "must not be set unless mode is DATABASE" in str(error.status)) == ({field}, True)
    server("CreateApp", create(database=postgres("one", "prepared")))
    for changed in (postgres("one", "other"), postgres("one")):
        update = pb.UpdateAppRequest(app=pb.App(name="apps/shop", database=changed))
        update.update_mask.paths.append("database")
        error = refused("UpdateApp", update)
        assert (error.fields, "cannot be changed" in str(error.status)) == ({field}, True)
    # Its database is not made yet: it would be made on the other server, which has not what it begins with.
    update = pb.UpdateAppRequest(app=pb.App(name="apps/shop", database=postgres("two", "prepared")))
    update.update_mask.paths.append("database.postgres.server")
    assert refused("UpdateApp", update).fields == {field}

    def made(tx: Transaction) -> None:
        record = tx.app("apps/shop")
        assert record is not None
        transactions.database_told(tx, record.name, record.uid, None, made=True)

    server.store.write(made).result()
    server("UpdateApp", update)


def test_an_administrators_password_is_in_no_answer_and_no_log(
    server: Server, refused: Refused, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    made = server("CreateDatabaseServer", database_server())
    update = fleet.UpdateDatabaseServerRequest(
        database_server=fleet.DatabaseServer(name=made.name, admin_url=URL + "?sslmode=require")
    )
    answers = [
        made,
        server("UpdateDatabaseServer", update),
        server("GetDatabaseServer", fleet.GetDatabaseServerRequest(name=made.name)),
        server("ListDatabaseServers", fleet.ListDatabaseServersRequest()),
        refused("CreateDatabaseServer", database_server()).status,
    ]
    assert not any(b"canary-4711" in answer.SerializeToString() for answer in answers)
    assert "canary-4711" not in caplog.text

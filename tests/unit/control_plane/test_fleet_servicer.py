"""Each method of Fleet over a real store: what it does, and each error that its comment promises."""

from typing import Any

import grpc
import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from services.control_plane.reconciler import transactions
from services.control_plane.store.records import PlacementRecord, Role
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
    first = server("RegisterNode", node(labels={"zone": "a"}, state=fleet.Node.READY, app_count=7))
    assert first.registration_interval.seconds > 0
    assert (first.node.name, first.node.state, first.node.app_count) == (NODE, fleet.Node.JOINING, 0)
    assert first.node.state_reason
    revision = server.store.mirror.nodes.revision
    assert server("RegisterNode", node(labels={"zone": "a"})) == first
    assert server.store.mirror.nodes.revision == revision
    assert server("GetNode", fleet.GetNodeRequest(name=NODE)) == first.node
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

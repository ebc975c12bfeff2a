"""Each unary method of the catalog over a real store, and what holds for those of every service."""

import asyncio
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2 as lro
from google.protobuf.message import Message

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.errors.v1.error_reason_pb2 import ErrorReason
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.control_plane.catalog.queries import AppQueries
from services.control_plane.nodes.figures import FigureReader
from services.control_plane.nodes.pool import NodePool
from services.control_plane.reconciler import transactions
from services.control_plane.store.transaction import CommandTransaction
from services.rpc.errors import CODES, SupervisorError
from services.rpc.pipeline.call import Caller
from services.rpc.server import MAX_REQUEST_BYTES
from tests.unit.control_plane.conftest import Refused, Server

S = grpc.StatusCode
NODE = "environments/default/nodes/n1"


def create(app_id: str = "shop", *, request_id: str = "", only: bool = False, **fields: Any) -> Message:
    app = pb.App(**{"entrypoint": "shop:app", **fields})
    return pb.CreateAppRequest(app=app, app_id=app_id, request_id=request_id, validate_only=only)


def update(
    name: str = "apps/shop", *, paths: str = "", request: Any = None, **fields: Any
) -> pb.UpdateAppRequest:
    made = pb.UpdateAppRequest(app=pb.App(name=name, **fields), **(request or {}))
    made.update_mask.paths.extend(paths.split())
    return made


def about(operation: lro.Operation) -> pb.OperationMetadata:
    found = pb.OperationMetadata()
    assert operation.metadata.Unpack(found)
    return found


def shown(operation: lro.Operation) -> pb.App:
    found = pb.App()
    assert operation.response.Unpack(found)
    return found


def get(server: Server, name: str = "apps/shop") -> pb.App:
    found: pb.App = server("GetApp", pb.GetAppRequest(name=name))
    return found


def delete_now(server: Server, name: str = "apps/shop") -> None:
    """Take an app out as the reconciler does once nothing of it runs."""
    record = server.store.mirror.apps.get(name)
    assert record is not None
    server.store.write(lambda tx: transactions.ended(tx, name, record.uid, [], record.deleting)).result(60)


def node(incarnation: str = "i1", port: int = 1, **fields: Any) -> fleet.RegisterNodeRequest:
    told = fleet.Node(
        address=f"10.0.0.1:{port}", http_address="10.0.0.1:80", incarnation=incarnation, **fields
    )
    return fleet.RegisterNodeRequest(parent="environments/default", node_id="n1", node=told)


def test_every_reason_has_exactly_one_usual_code() -> None:
    reasons = set(ErrorReason.keys()) - {"ERROR_REASON_UNSPECIFIED"}
    assert set(CODES) == reasons


# Apps


def test_create_stores_the_app_and_answers_with_an_operation(server: Server) -> None:
    operation = server("CreateApp", create(labels={"a": "b"}), x_actor="ci\x07")
    assert not operation.done
    assert about(operation).target == "apps/shop"
    assert about(operation).actor == "ci (ipv4:192.0.2.1:5)"
    app = get(server)
    assert (app.state, app.health, app.reconciling, app.generation) == (
        rt.Instance.PENDING,
        rt.Instance.Health.UNKNOWN,
        True,
        1,
    )
    assert app.environment == "environments/default"
    assert app.uid
    assert app.etag
    assert app.create_time == app.update_time
    (listed,) = server("ListApps", pb.ListAppsRequest()).apps
    assert listed == app
    (event,) = server("ListAppEvents", pb.ListAppEventsRequest(parent="apps/shop")).app_events
    assert (event.type, event.app_uid, event.operation) == ("Created", app.uid, operation.name)


def test_create_tells_every_violation_at_once(refused: Refused) -> None:
    request = create("Shop", entrypoint="nonsense", display_name="x" * 200, replicas=3, name="apps/other")
    error = refused("CreateApp", request)
    assert (error.code, error.info.reason, error.info.domain) == (
        S.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "appsupervisor.dev",
    )
    assert error.fields == {"app_id", "app.name", "app.entrypoint", "app.display_name", "app.replicas"}


@pytest.mark.parametrize("word", ["admin", "www", "localhost"])
def test_a_reserved_word_is_no_apps_id_by_any_method(refused: Refused, word: str) -> None:
    assert refused("CreateApp", create(word)).fields == {"app_id"}
    request = update(f"apps/{word}", entrypoint="a:b", request={"allow_missing": True})
    assert refused("UpdateApp", request).fields == {"app.name"}


def test_fields_of_another_version_are_not_kept(server: Server) -> None:
    unknown = b"\xfa\x3f\x05other"  # field 1023
    request = create(limits=rt.Limits.FromString(unknown))
    request.app.MergeFromString(unknown)  # type: ignore[attr-defined]
    server("CreateApp", request)
    assert b"other" not in get(server).SerializeToString()
    registration = node()
    registration.node.MergeFromString(unknown)
    server("RegisterNode", registration)
    assert b"other" not in server("GetNode", fleet.GetNodeRequest(name=NODE)).SerializeToString()


def test_create_refuses_what_is_taken_or_missing(server: Server, refused: Refused) -> None:
    server("CreateApp", create(domains=["shop.example"]))
    error = refused("CreateApp", create())
    assert (error.code, error.info.reason) == (S.ALREADY_EXISTS, "APP_ALREADY_EXISTS")
    assert (error.resource.resource_type, error.resource.resource_name) == (
        "appsupervisor.dev/App",
        "apps/shop",
    )
    error = refused("CreateApp", create("other", domains=["SHOP.example."]))
    assert (error.code, error.info.reason) == (S.ALREADY_EXISTS, "DOMAIN_TAKEN")
    assert error.info.metadata["domain"] == "shop.example"
    error = refused("CreateApp", create("other", environment="environments/none"))
    assert (error.code, error.info.reason) == (S.FAILED_PRECONDITION, "ENVIRONMENT_NOT_FOUND")
    assert error.precondition.violations[0].type == "ENVIRONMENT_NOT_FOUND"
    assert error.resource.resource_name == "environments/none"
    assert refused("GetApp", pb.GetAppRequest(name="apps/other")).code is S.NOT_FOUND


def test_an_app_without_domains_is_stored_without_a_look_at_the_nodes(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nodes(*_: Any) -> None:
        raise AssertionError("their number must not matter")

    monkeypatch.setattr(CommandTransaction, "nodes", nodes)
    server("CreateApp", create())


METHODS = {
    "GetApp": pb.GetAppRequest,
    "DeleteApp": pb.DeleteAppRequest,
    "StartApp": pb.StartAppRequest,
    "StopApp": pb.StopAppRequest,
    "RestartApp": pb.RestartAppRequest,
}


@pytest.mark.parametrize("method", [*METHODS, "UpdateApp", "ListAppEvents"])
def test_an_app_that_is_not_there_is_not_found_and_a_name_that_is_none_is_told(
    refused: Refused, method: str
) -> None:
    def request(name: str) -> Message:
        if method == "UpdateApp":
            return update(name, entrypoint="a:b")
        if method == "ListAppEvents":
            return pb.ListAppEventsRequest(parent=name)
        return METHODS[method](name=name)

    error = refused(method, request("apps/none"))
    assert (error.code, error.info.reason) == (S.NOT_FOUND, "APP_NOT_FOUND")
    assert error.resource.resource_name == "apps/none"
    for name in ("", "apps/", "apps/UPPER", "nodes/x", "apps/a/b"):
        error = refused(method, request(name))
        assert (error.code, error.info.reason) == (S.INVALID_ARGUMENT, "INVALID_FIELD")
        assert error.fields <= {"name", "app.name", "parent"}


@pytest.mark.parametrize("method", ["DeleteApp", "StartApp", "StopApp", "RestartApp", "UpdateApp"])
def test_a_write_under_an_old_etag_is_refused_and_under_the_current_one_carried_out(
    server: Server, refused: Refused, method: str
) -> None:
    server("CreateApp", create())
    old = get(server).etag
    server("UpdateApp", update(labels={"a": "1"}))

    def request(etag: str) -> Message:
        if method == "UpdateApp":
            return update(etag=etag, labels={"a": "2"})
        return METHODS[method](name="apps/shop", etag=etag)

    error = refused(method, request(old))
    assert (error.code, error.info.reason) == (S.ABORTED, "ETAG_MISMATCH")
    current = get(server).etag
    assert error.info.metadata["etag"] == current
    server(method, request(current))


def test_update_sets_what_its_mask_names_alone(server: Server, refused: Refused) -> None:
    server("CreateApp", create(labels={"a": "1"}, env={"A": "1"}))
    server("UpdateApp", update(paths="labels.b env", labels={"a": "9", "b": "2"}, env={"B": "2"}))
    app = get(server)
    assert dict(app.labels) == {"a": "1", "b": "2"}
    assert dict(app.env) == {"B": "2"}
    assert app.generation == 2
    assert refused("UpdateApp", update(paths="nothing")).info.reason == "INVALID_FIELD"
    error = refused("UpdateApp", update(environment="environments/other"))
    assert error.fields == {"app.environment"}
    request = update(paths="database")
    request.app.database.no_database.SetInParent()
    assert refused("UpdateApp", request).fields == {"app.database"}


def test_update_with_allow_missing_creates(server: Server) -> None:
    operation = server("UpdateApp", update(entrypoint="a:b", request={"allow_missing": True}))
    assert about(operation).verb == "create"
    assert get(server).generation == 1


def test_an_update_of_a_version_that_has_been_deleted_makes_no_new_app(
    server: Server, refused: Refused
) -> None:
    request = update(entrypoint="a:b", etag='"0190a1b2-3"', request={"allow_missing": True})
    error = refused("UpdateApp", request)
    assert (error.code, error.info.reason) == (S.NOT_FOUND, "APP_NOT_FOUND")
    assert refused("GetApp", pb.GetAppRequest(name="apps/shop")).code is S.NOT_FOUND


def test_an_update_that_takes_anothers_domain_changes_nothing(server: Server, refused: Refused) -> None:
    server("CreateApp", create(domains=["a.example"]))
    server("CreateApp", create("other"))
    error = refused("UpdateApp", update("apps/other", domains=["b.example", "a.example"]))
    assert error.info.reason == "DOMAIN_TAKEN"
    assert list(get(server, "apps/other").domains) == []
    server("CreateApp", create("third", domains=["b.example"]))


def test_delete_marks_the_app_and_frees_the_name_when_it_is_gone(server: Server, refused: Refused) -> None:
    server("CreateApp", create(domains=["a.example"]))
    operation = server(
        "DeleteApp", pb.DeleteAppRequest(name="apps/shop", data_policy=pb.DeleteAppRequest.DROP)
    )
    assert get(server).state == rt.Instance.DELETING
    assert server("DeleteApp", pb.DeleteAppRequest(name="apps/shop")).name == operation.name
    assert refused("CreateApp", create()).info.reason == "APP_ALREADY_EXISTS"
    for method in ("StartApp", "StopApp", "RestartApp"):
        error = refused(method, METHODS[method](name="apps/shop"))
        assert (error.code, error.info.reason) == (S.FAILED_PRECONDITION, "APP_DELETING")
        assert error.precondition.violations[0].subject == "apps/shop"
    delete_now(server)
    ended = server("GetOperation", lro.GetOperationRequest(name=operation.name))
    assert ended.done
    assert shown(ended).name == "apps/shop"
    server("CreateApp", create(domains=["a.example"]))


def test_the_data_policy_of_a_delete_under_way_can_become_stricter_only(
    server: Server, refused: Refused
) -> None:
    server("CreateApp", create())
    operation = server("DeleteApp", pb.DeleteAppRequest(name="apps/shop"))
    record = server.store.mirror.apps.get("apps/shop")
    assert record is not None
    drop = pb.DeleteAppRequest(name="apps/shop", data_policy=pb.DeleteAppRequest.DROP)
    assert server("DeleteApp", drop).name == operation.name
    # A pass that has carried out the milder policy meanwhile does not end it.
    server.store.write(
        lambda tx: transactions.ended(tx, "apps/shop", record.uid, [], pb.DeleteAppRequest.RETAIN)
    ).result(60)
    assert get(server).state == rt.Instance.DELETING
    retain = pb.DeleteAppRequest(name="apps/shop", data_policy=pb.DeleteAppRequest.RETAIN)
    assert refused("DeleteApp", retain).info.reason == "APP_DELETING"
    assert server("DeleteApp", pb.DeleteAppRequest(name="apps/shop")).name == operation.name
    delete_now(server)
    assert server("GetOperation", lro.GetOperationRequest(name=operation.name)).done
    told = server("ListAppEvents", pb.ListAppEventsRequest(parent="apps/shop")).app_events
    assert [event.reason for event in told][:3] == ["DROP", "DROP", "RETAIN"]


def test_delete_of_what_is_not_there_can_be_allowed(server: Server) -> None:
    operation = server("DeleteApp", pb.DeleteAppRequest(name="apps/none", allow_missing=True))
    assert operation.done
    assert not operation.HasField("error")
    server("GetOperation", lro.GetOperationRequest(name=operation.name))


def test_an_unknown_data_policy_is_refused(server: Server, refused: Refused) -> None:
    server("CreateApp", create())
    error = refused("DeleteApp", pb.DeleteAppRequest(name="apps/shop", data_policy=9))  # type: ignore[arg-type]
    assert error.fields == {"data_policy"}


def test_a_stopped_app_is_not_restarted(server: Server, refused: Refused) -> None:
    server("CreateApp", create(desired_state=pb.App.STOPPED))
    error = refused("RestartApp", pb.RestartAppRequest(name="apps/shop"))
    assert (error.code, error.info.reason) == (S.FAILED_PRECONDITION, "APP_STOPPED")
    assert server("StopApp", pb.StopAppRequest(name="apps/shop")).done
    assert not server("StartApp", pb.StartAppRequest(name="apps/shop")).done
    assert get(server).state == rt.Instance.PENDING


@pytest.mark.parametrize("method", ["StartApp", "RestartApp", "UpdateApp"])
def test_a_command_costs_the_same_however_many_operations_of_its_app_are_open(
    server: Server, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    server("CreateApp", create())
    for _ in range(50):
        server("RestartApp", pb.RestartAppRequest(name="apps/shop"))
    feed = server.store.mirror.operations
    looks: list[str] = []
    get = feed.get
    monkeypatch.setattr(feed, "get", lambda key: looks.append(key) or get(key))
    server(method, METHODS[method](name="apps/shop") if method != "UpdateApp" else update(labels={"a": "b"}))
    assert len(looks) < 10


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"filter": "state ="}, "INVALID_FILTER"),
        ({"filter": "x" * 5000}, "INVALID_FILTER"),
        ({"order_by": "colour"}, "INVALID_ORDER_BY"),
        ({"page_token": "x"}, "INVALID_PAGE_TOKEN"),
        ({"page_size": -1}, "INVALID_FIELD"),
    ],
)
def test_lists_refuse_what_they_cannot_read(refused: Refused, fields: Any, reason: str) -> None:
    error = refused("ListApps", pb.ListAppsRequest(**fields))
    assert (error.code, error.info.reason) == (S.INVALID_ARGUMENT, reason)


def test_a_filter_of_operations_has_a_bound_as_each_is_tested_by_all_of_it(refused: Refused) -> None:
    error = refused("ListOperations", lro.ListOperationsRequest(filter=" AND ".join(["done=true"] * 1000)))
    assert (error.code, error.info.reason) == (S.INVALID_ARGUMENT, "INVALID_FILTER")


@pytest.mark.parametrize("fields", [{"filter": "labels.a = b"}, {"order_by": "update_time"}])
def test_a_list_ends_when_its_time_is_up(server: Server, fields: Any) -> None:
    server("CreateApp", create())
    with pytest.raises(SupervisorError) as late:
        asyncio.run(
            AppQueries(server.store, FigureReader(NodePool(server.store.mirror))).list_apps(
                pb.ListAppsRequest(**fields), Caller("nobody", timeout=-1)
            )
        )
    assert late.value.reason == "OPERATION_DEADLINE_EXCEEDED"


def test_events_come_in_pages_newest_first_and_outlive_the_app(server: Server, refused: Refused) -> None:
    server("CreateApp", create())
    for n in range(5):
        server("UpdateApp", update(labels={"n": str(n)}))
    request = pb.ListAppEventsRequest(parent="apps/shop", page_size=4)
    first = server("ListAppEvents", request)
    second = server(
        "ListAppEvents",
        pb.ListAppEventsRequest(parent="apps/shop", page_size=4, page_token=first.next_page_token),
    )
    events = [*first.app_events, *second.app_events]
    assert [e.generation for e in events] == [6, 5, 4, 3, 2, 1]
    assert second.next_page_token == ""
    assert refused(
        "ListAppEvents", pb.ListAppEventsRequest(parent="apps/shop", page_token="x")
    ).info.reason == ("INVALID_PAGE_TOKEN")
    server("DeleteApp", pb.DeleteAppRequest(name="apps/shop"))
    delete_now(server)
    events = server("ListAppEvents", pb.ListAppEventsRequest(parent="apps/shop")).app_events
    assert events[0].type == "Deleted"


@pytest.mark.parametrize(
    ("method", "request_", "elements"),
    [
        ("ListApps", pb.ListAppsRequest(), "apps"),
        ("ListApps", pb.ListAppsRequest(order_by="update_time desc"), "apps"),
        ("ListOperations", lro.ListOperationsRequest(), "operations"),
        ("ListAppEvents", pb.ListAppEventsRequest(parent="apps/a0", page_size=1000), "app_events"),
    ],
    ids=["ListApps", "ListApps in order", "ListOperations", "ListAppEvents"],
)
def test_a_page_ends_before_it_is_too_large_for_a_client(
    server: Server, method: str, request_: Any, elements: str
) -> None:
    large = {"A": "x" * 60_000}
    for n in range(45):
        server("CreateApp", create(f"a{n}", env=large, annotations=large, desired_state=pb.App.STOPPED))
    event = pb.AppEvent(detail="x" * 16_000)
    for _ in range(300):
        last = server.store.write(lambda tx: tx.add_event("apps/a0", event))
    last.result(60)
    request = type(request_)()
    request.CopyFrom(request_)
    names: list[str] = []
    while True:
        page = server(method, request)
        assert page.ByteSize() < 4 * MAX_REQUEST_BYTES
        names += [element.name for element in getattr(page, elements)]
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    assert len(set(names)) == len(names) == (301 if method == "ListAppEvents" else 45)


# Requests that are repeated, or only to be validated

IDEMPOTENT = [
    ("CreateApp", create("other")),
    ("UpdateApp", update(labels={"a": "b"})),
    ("StartApp", pb.StartAppRequest(name="apps/shop")),
    ("StopApp", pb.StopAppRequest(name="apps/shop")),
    ("RestartApp", pb.RestartAppRequest(name="apps/shop")),
    ("DeleteApp", pb.DeleteAppRequest(name="apps/shop")),
    (
        "CreateEnvironment",
        fleet.CreateEnvironmentRequest(environment=fleet.Environment(), environment_id="prod"),
    ),
    (
        "CreateDatabaseServer",
        fleet.CreateDatabaseServerRequest(
            database_server=fleet.DatabaseServer(admin_url="postgresql://a:b@c/d"), database_server_id="one"
        ),
    ),
]


@pytest.mark.parametrize(("method", "request_"), IDEMPOTENT, ids=[method for method, _ in IDEMPOTENT])
def test_a_repeat_with_a_request_id_returns_the_first_result_and_does_nothing(
    server: Server, refused: Refused, method: str, request_: Any
) -> None:
    server("CreateApp", create())
    request = type(request_)()
    request.CopyFrom(request_)
    request.request_id = "0190-1"
    first = server(method, request)
    revision = server.store.mirror.apps.revision
    assert server(method, request) == first
    assert server.store.mirror.apps.revision == revision
    error = refused("CreateApp", create("third", request_id="0190-1"))
    assert (error.code, error.info.reason) == (S.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
    for bad in ("x" * 129, "a\nb"):
        request.request_id = bad
        assert refused(method, request).fields == {"request_id"}


@pytest.mark.parametrize(("method", "request_"), IDEMPOTENT, ids=[method for method, _ in IDEMPOTENT])
def test_a_request_that_is_only_validated_leaves_no_trace(
    server: Server, refused: Refused, method: str, request_: Any
) -> None:
    server("CreateApp", create())
    before = get(server)
    request = type(request_)()
    request.CopyFrom(request_)
    request.request_id = "0190-1"
    request.validate_only = True
    mirror = server.store.mirror
    revision = mirror.apps.revision
    operations = len(mirror.operations)
    answer = server(method, request)
    if isinstance(answer, lro.Operation):
        assert answer.done
        assert not answer.HasField("error")
        missing = lro.GetOperationRequest(name=answer.name)
        assert refused("GetOperation", missing).info.reason == "OPERATION_NOT_FOUND"
    assert (mirror.apps.revision, len(mirror.operations)) == (revision, operations)
    assert get(server) == before
    assert len(server("ListAppEvents", pb.ListAppEventsRequest(parent="apps/shop")).app_events) == 1
    request.validate_only = False
    server(method, request)  # nor was the request id taken
    assert mirror.apps.revision > revision or method == "StartApp"


def test_what_is_only_validated_is_refused_as_the_real_request_is(server: Server, refused: Refused) -> None:
    server("CreateApp", create())
    assert refused("CreateApp", create(only=True)).info.reason == "APP_ALREADY_EXISTS"
    assert refused("CreateApp", create("x", only=True, entrypoint="")).info.reason == "INVALID_FIELD"


# Environments and nodes

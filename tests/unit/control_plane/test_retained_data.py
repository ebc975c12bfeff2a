"""DataCatalog's methods without a network: pages, filters, etags, repeats, what is only validated."""

from __future__ import annotations

from typing import Any

import pytest
from google.longrunning.operations_pb2 import CancelOperationRequest, GetOperationRequest

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.catalog.v1 import retained_data_pb2 as pb
from appsupervisor.fleet.v1.fleet_pb2 import Environment
from services.control_plane.store.interface import CatalogStore
from services.control_plane.store.records import EnvironmentRecord, RetainedDataRecord
from tests.eventually import WITHIN
from tests.unit.control_plane.conftest import Refusal, Server

DEFAULT = "environments/default"
ALL = "environments/-/nodes/-"


def put(store: CatalogStore, number: int, node: str = f"{DEFAULT}/nodes/n", **fields: Any) -> str:
    """Store retained data with a uid of a number, and return its name."""
    uid = f"00000000-0000-4000-8000-{number:012}"
    fields = {
        "app": f"apps/a{number}",
        "app_uid": uid,
        "uid": uid,
        "state": pb.RetainedData.RETAINED,
        **fields,
    }
    data = pb.RetainedData(name=f"{node}/retainedData/{uid}", **fields)
    store.write(lambda tx: tx.put_retained(RetainedDataRecord(data))).result(WITHIN)
    return data.name


def listed(server: Server, parent: str = ALL, **fields: Any) -> list[str]:
    answer = server("ListRetainedData", pb.ListRetainedDataRequest(parent=parent, **fields))
    return [data.name for data in answer.retained_data]


def refusal(server: Server, method: str, request: Any) -> Refusal:
    with pytest.raises(Refusal) as refused:
        server(method, request)
    return refused.value


def attach(name: str, app_id: str = "wiki", **fields: Any) -> pb.AttachRetainedDataRequest:
    app = fields.pop("app", catalog.App(entrypoint="shop:create_app"))
    return pb.AttachRetainedDataRequest(name=name, app_id=app_id, app=app, **fields)


def test_a_list_is_of_a_node_of_an_environment_or_of_all(server: Server, store: CatalogStore) -> None:
    store.write(
        lambda tx: tx.put_environment(EnvironmentRecord(Environment(name="environments/lab")))
    ).result(WITHIN)
    one, two = put(store, 1), put(store, 2, f"{DEFAULT}/nodes/n2")
    three = put(store, 3, "environments/lab/nodes/n")
    assert listed(server) == [one, two, three]
    assert listed(server, f"{DEFAULT}/nodes/-") == [one, two]
    assert listed(server, f"{DEFAULT}/nodes/n") == [one]
    assert listed(server, "environments/-/nodes/n") == [one, three]
    assert listed(server, "environments/none/nodes/-") == []
    for parent in ("", "environments/default", "nodes/n", f"{DEFAULT}/nodes/N"):
        refused = refusal(server, "ListRetainedData", pb.ListRetainedDataRequest(parent=parent))
        assert (refused.info.reason, refused.fields) == ("INVALID_FIELD", {"parent"})


def test_pages_follow_each_other_and_take_no_token_of_another_list(
    server: Server, store: CatalogStore
) -> None:
    names = [put(store, number) for number in range(5)]
    request = pb.ListRetainedDataRequest(parent=ALL, page_size=2)
    found: list[str] = []
    while True:
        page = server("ListRetainedData", request)
        found += [data.name for data in page.retained_data]
        if not page.next_page_token:
            break
        assert len(page.retained_data) == 2
        request.page_token = page.next_page_token
    assert found == names
    request.filter = "a1"
    assert refusal(server, "ListRetainedData", request).info.reason == "INVALID_PAGE_TOKEN"
    request = pb.ListRetainedDataRequest(parent=ALL, page_size=-1)
    assert refusal(server, "ListRetainedData", request).fields == {"page_size"}


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ('app = "apps/a1"', [1]),
        ("state = MISSING", [2]),
        ("size_bytes > 10 AND state != MISSING", [3]),
        ("delete_time:*", [3]),
        ("a2", [2]),
        ("app:a", [1, 2, 3]),
    ],
)
def test_a_filter_tells_by_app_state_size_and_time(
    server: Server, store: CatalogStore, text: str, numbers: list[int]
) -> None:
    put(store, 1)
    put(store, 2, state=pb.RetainedData.MISSING, size_bytes=99)
    put(store, 3, size_bytes=11, delete_time={"seconds": 5})
    assert [int(name[-12:]) for name in listed(server, filter=text)] == numbers


def test_a_filter_that_cannot_be_read_is_refused(server: Server) -> None:
    request = pb.ListRetainedDataRequest(parent=ALL, filter="entrypont = x")
    assert refusal(server, "ListRetainedData", request).info.reason == "INVALID_FILTER"


def test_what_is_not_there_is_not_found(server: Server) -> None:
    name = f"{DEFAULT}/nodes/n/retainedData/none"
    for method, request in (
        ("GetRetainedData", pb.GetRetainedDataRequest(name=name)),
        ("AttachRetainedData", attach(name)),
        ("PurgeRetainedData", pb.PurgeRetainedDataRequest(name=name)),
    ):
        refused = refusal(server, method, request)
        assert refused.info.reason == "RETAINED_DATA_NOT_FOUND"
        assert refused.resource.resource_type == "appsupervisor.dev/RetainedData"


def test_all_that_is_wrong_with_a_new_app_is_told_at_once(server: Server, store: CatalogStore) -> None:
    app = catalog.App(name="apps/other", entrypoint="no", environment="environments/lab")
    refused = refusal(server, "AttachRetainedData", attach(put(store, 1), "Wiki", app=app))
    assert refused.fields == {"app_id", "app.name", "app.entrypoint", "app.environment"}


def test_an_app_that_would_not_find_the_database_is_refused(server: Server, store: CatalogStore) -> None:
    data = pb.RetainedData()
    data.database.sqlite.SetInParent()
    app = catalog.App(entrypoint="shop:create_app")
    app.database.no_database.SetInParent()
    refused = refusal(server, "AttachRetainedData", attach(put(store, 1, database=data.database), app=app))
    assert refused.fields == {"app.database"}
    server("AttachRetainedData", attach(put(store, 2), app=app))  # what isn't known isn't checked
    # A database on a server is none of what a node has to give.
    app.database.postgres.server = "databaseServers/main"
    for number, kept in ((3, app.database), (4, None)):
        known = put(store, number) if kept is None else put(store, number, database=kept)
        assert refusal(server, "AttachRetainedData", attach(known, app=app)).fields == {"app.database"}


def test_an_app_of_that_name_keeps_the_data_where_it_is(server: Server, store: CatalogStore) -> None:
    server(
        "CreateApp", catalog.CreateAppRequest(app_id="wiki", app=catalog.App(entrypoint="shop:create_app"))
    )
    name = put(store, 1)
    assert refusal(server, "AttachRetainedData", attach(name)).info.reason == "APP_ALREADY_EXISTS"
    state = server("GetRetainedData", pb.GetRetainedDataRequest(name=name)).state
    assert state == pb.RetainedData.RETAINED


def test_an_etag_is_of_one_state(server: Server, store: CatalogStore) -> None:
    name = put(store, 1)
    etag = server("GetRetainedData", pb.GetRetainedDataRequest(name=name)).etag
    server("PurgeRetainedData", pb.PurgeRetainedDataRequest(name=name, etag=etag))
    for method, request in (
        ("PurgeRetainedData", pb.PurgeRetainedDataRequest(name=name, etag=etag)),
        ("AttachRetainedData", attach(name, etag=etag)),
    ):
        assert refusal(server, method, request).info.reason == "ETAG_MISMATCH"


def test_what_is_only_validated_changes_nothing_and_is_refused_all_the_same(
    server: Server, store: CatalogStore
) -> None:
    name = put(store, 1)
    before = store.mirror.apps.revision
    shown = server("AttachRetainedData", attach(name, validate_only=True))
    app = catalog.App()
    assert shown.done
    assert shown.response.Unpack(app)
    assert (app.name, app.retained_data) == ("apps/wiki", name)
    shown = server("PurgeRetainedData", pb.PurgeRetainedDataRequest(name=name, validate_only=True))
    data = pb.RetainedData()
    assert shown.done
    assert shown.response.Unpack(data)
    assert store.mirror.apps.revision == before
    gone = put(store, 2, state=pb.RetainedData.MISSING)
    assert (
        refusal(server, "AttachRetainedData", attach(gone, validate_only=True)).info.reason == "DATA_MISSING"
    )


def test_a_repeated_request_has_its_first_result(server: Server, store: CatalogStore) -> None:
    first, second = put(store, 1), put(store, 2)
    for request in (
        attach(first, request_id="r1"),
        pb.PurgeRetainedDataRequest(name=second, request_id="r2"),
    ):
        method = type(request).__name__.removesuffix("Request")
        assert server(method, request).name == server(method, request).name
    other = pb.PurgeRetainedDataRequest(name=first, request_id="r2")
    assert refusal(server, "PurgeRetainedData", other).info.reason == "REQUEST_ID_REUSED"


def test_a_purge_cannot_be_taken_back_and_an_attach_is_by_stopping_the_app(
    server: Server, store: CatalogStore
) -> None:
    purge = server("PurgeRetainedData", pb.PurgeRetainedDataRequest(name=put(store, 1)))
    cancel = CancelOperationRequest(name=purge.name)
    assert refusal(server, "CancelOperation", cancel).info.reason == "OPERATION_NOT_CANCELLABLE"
    begun = server("AttachRetainedData", attach(put(store, 2)))
    server("CancelOperation", CancelOperationRequest(name=begun.name))
    assert server("GetOperation", GetOperationRequest(name=begun.name)).done
    app = server("GetApp", catalog.GetAppRequest(name="apps/wiki"))
    assert (app.desired_state, bool(app.retained_data)) == (catalog.App.STOPPED, True)

"""A deleted app's rows come back in a new app, on real processes that are killed on the way."""

import json

import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.catalog.v1 import retained_data_pb2 as pb
from appsupervisor.catalog.v1.retained_data_pb2_grpc import DataCatalogStub
from tests.e2e.stack import DEADLINE, Stack, eventually

DROP, RETAIN = catalog.DeleteAppRequest.DROP, catalog.DeleteAppRequest.RETAIN


def retained(stack: Stack) -> list[pb.RetainedData]:
    request = pb.ListRetainedDataRequest(parent="environments/-/nodes/-")
    answer = DataCatalogStub(stack.channel).ListRetainedData(request, timeout=DEADLINE, wait_for_ready=True)
    return list(answer.retained_data)


def delete(stack: Stack, app_id: str, policy: catalog.DeleteAppRequest.DataPolicy.ValueType) -> None:
    request = catalog.DeleteAppRequest(name=f"apps/{app_id}", data_policy=policy)
    stack.result(stack.apps.DeleteApp(request, timeout=DEADLINE))


@pytest.mark.slow
def test_rows_of_a_deleted_app_come_back_whatever_is_killed_meanwhile(stack: Stack) -> None:
    stack.create("shop")
    assert stack.http("shop", "/notes", "POST", json.dumps({"text": "milk"}))[0] in (200, 201)
    delete(stack, "shop", RETAIN)
    eventually(lambda: [data.size_bytes > 0 for data in retained(stack)] == [True], "the node tells its size")
    (kept,) = retained(stack)
    # The node is gone while the app is made, and the control plane before it has told the node.
    stack.nodes["node-1"].kill()
    request = pb.AttachRetainedDataRequest(name=kept.name, app_id="wiki")
    request.app.entrypoint = "notes:create_app"
    operation = DataCatalogStub(stack.channel).AttachRetainedData(request, timeout=DEADLINE)
    assert [data.state for data in retained(stack)] == [pb.RetainedData.ATTACHING]
    stack.control_plane.kill()
    stack.control_plane.start()
    stack.nodes["node-1"].start()
    stack.wait_until_called()
    app = stack.result(operation)
    stack.nodes["node-1"].kill()
    stack.nodes["node-1"].start()
    eventually(lambda: "milk" in stack.http("wiki", "/notes")[1], "the row is there")
    directories = stack.folder / "node-1" / "apps"
    assert [path.name for path in directories.iterdir()] == [f"wiki.{app.uid}"]
    assert retained(stack) == []
    delete(stack, "wiki", DROP)
    assert (list(directories.iterdir()), retained(stack)) == ([], [])

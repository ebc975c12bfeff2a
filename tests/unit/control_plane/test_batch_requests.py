"""What the batch methods refuse before anything is begun, and how one is begun, read and forgotten."""

from __future__ import annotations

from typing import Any

import pytest
from google.longrunning.operations_pb2 import (
    CancelOperationRequest,
    DeleteOperationRequest,
    ListOperationsRequest,
)

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from services.control_plane.catalog.batches import KINDS, MAX_REQUESTS, advance, end
from services.control_plane.store.interface import CatalogStore
from tests.eventually import WITHIN
from tests.unit.control_plane.conftest import Refusal, Server


def refused(server: Server, request: Any) -> Refusal:
    with pytest.raises(Refusal) as refusal:
        server(type(request).__name__.removesuffix("Request"), request)
    return refusal.value


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_list_has_one_to_a_thousand_requests_about_different_apps(server: Server, kind: Any) -> None:
    assert refused(server, kind.request()).fields == {"requests"}
    request = kind.request()
    for _ in range(MAX_REQUESTS + 1):
        request.requests.add()
    assert refused(server, request).fields == {"requests"}
    request = kind.request(requests=[kind.one(), kind.one()])
    assert refused(server, request).fields == {"requests[0]", "requests[1]"}


def test_either_a_list_or_a_filter(server: Server) -> None:
    request = pb.BatchStopAppsRequest(filter="a", requests=[pb.StopAppRequest(name="apps/a")])
    assert refused(server, request).fields == {"filter"}
    assert refused(server, pb.BatchStopAppsRequest(filter="x =")).info.reason == "INVALID_FILTER"
    assert refused(server, pb.BatchDeleteAppsRequest(filter="a", data_policy=9)).fields == {"data_policy"}


def test_what_is_asked_of_one_app_is_said_with_each_request_of_a_list(server: Server) -> None:
    """Were it passed over, data would stay that was to go."""
    doomed = pb.BatchDeleteAppsRequest(
        requests=[pb.DeleteAppRequest(name="apps/a")], data_policy=pb.DeleteAppRequest.DROP
    )
    assert refused(server, doomed).fields == {"data_policy"}
    there = "environments/default/nodes/n1"
    moved = pb.BatchMoveAppsRequest(
        requests=[pb.MoveAppRequest(name="apps/a")], node=there, source_node=there
    )
    assert refused(server, moved).fields == {"node", "source_node"}
    assert refused(server, pb.BatchMoveAppsRequest(filter="a", node="n1")).fields == {"node"}


def begun(server: Server, *names: str, **fields: Any) -> Any:
    requests = [pb.StopAppRequest(name=f"apps/{name}") for name in names]
    return server("BatchStopApps", pb.BatchStopAppsRequest(requests=requests, **fields))


def test_a_repeat_returns_the_first_batch(server: Server) -> None:
    first = begun(server, "a", "b", request_id="r")
    assert begun(server, "a", "b", request_id="r").name == first.name
    assert not first.done


def test_a_batch_is_listed_by_its_verb_and_cancelled_once_it_is_not_done(
    server: Server, store: CatalogStore
) -> None:
    operation = begun(server, "a", "b")
    listed = server("ListOperations", ListOperationsRequest(filter='metadata.verb="batch_stop"'))
    assert [it.name for it in listed.operations] == [operation.name]
    server("CancelOperation", CancelOperationRequest(name=operation.name))
    store.write(lambda tx: end(tx, operation.name)).result(WITHIN)
    with pytest.raises(Refusal) as refusal:
        server("CancelOperation", CancelOperationRequest(name=operation.name))
    assert refusal.value.info.reason == "OPERATION_NOT_CANCELLABLE"
    server("DeleteOperation", DeleteOperationRequest(name=operation.name))
    assert list(store.mirror.batches.values("")) == []


def test_of_very_many_apps_only_the_first_failures_are_kept(server: Server, store: CatalogStore) -> None:
    operation = begun(server, "a")
    total = 3 * MAX_REQUESTS

    def step(tx: Any) -> None:
        record = tx.operation(operation.name)
        record.metadata.batch.total_count = total
        tx.put_operation(record)
        for start in range(0, total, 500):
            failed = [pb.AppResult(app=f"apps/a{number}") for number in range(start, start + 500)]
            for result in failed[::2]:
                result.status.code = 5
            assert advance(tx, operation.name, failed)
        end(tx, operation.name)

    store.write(step).result(WITHIN)
    record = store.mirror.operations.get(operation.name)
    assert record is not None
    progress = record.metadata.batch
    assert (progress.done_count, progress.failed_count, len(progress.failures)) == (1500, 1500, 20)
    assert isinstance(record.response, pb.BatchResponse)
    assert len(record.response.results) == MAX_REQUESTS
    assert all(result.status.code for result in record.response.results)

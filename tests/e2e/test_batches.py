"""A batch goes on after kill -9 of the control plane in its midst, and does nothing twice."""

from google.longrunning import operations_pb2

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from tests.e2e.stack import DEADLINE, Stack, eventually

COUNT = 60


def apps(stack: Stack) -> list[catalog.App]:
    request = catalog.ListAppsRequest(page_size=1000)
    return list(stack.apps.ListApps(request, timeout=DEADLINE, wait_for_ready=True).apps)


def ended(stack: Stack, operation: operations_pb2.Operation) -> list[catalog.AppResult]:
    done = stack.wait(operation, 2 * DEADLINE)
    response = catalog.BatchResponse()
    assert done.response.Unpack(response), done
    return list(response.results)


def test_a_batch_outlives_the_control_plane_that_began_it(stack: Stack) -> None:
    request = catalog.BatchCreateAppsRequest(request_id="once")
    for number in range(COUNT):
        request.requests.add(app_id=f"many-{number:02}", app=catalog.App(entrypoint="notes:create_app"))
    operation = stack.apps.BatchCreateApps(request, timeout=DEADLINE)
    eventually(lambda: apps(stack), "it has begun")
    stack.control_plane.kill()
    stack.control_plane.start()
    stack.wait_until_called()
    assert stack.apps.BatchCreateApps(request, timeout=DEADLINE).name == operation.name
    told = ended(stack, operation)
    assert [(one.app, one.status.code) for one in told] == [(f"apps/many-{n:02}", 0) for n in range(COUNT)]
    created = [
        event.type
        for one in told
        for event in stack.apps.ListAppEvents(
            catalog.ListAppEventsRequest(parent=one.app, page_size=1000), timeout=DEADLINE
        ).app_events
    ]
    assert created.count("Created") == COUNT
    chosen = catalog.BatchDeleteAppsRequest(filter="many", data_policy=catalog.DeleteAppRequest.DROP)
    assert len(ended(stack, stack.apps.BatchDeleteApps(chosen, timeout=DEADLINE))) == COUNT
    assert apps(stack) == []

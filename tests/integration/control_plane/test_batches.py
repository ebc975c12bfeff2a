"""Many apps as one operation: what came of each, cancelled, gone on with after a restart, nothing twice."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from google.longrunning import operations_pb2

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance
from tests.eventually import eventually
from tests.fakes.runtime_node import Behaviour
from tests.integration.control_plane.plane import Plane, metadata, reason

COUNT = 80
"""More than twice as many as are under way at once."""


def create(
    count: int = COUNT, entrypoint: str = "shop:create_app", **fields: Any
) -> pb.BatchCreateAppsRequest:
    request = pb.BatchCreateAppsRequest(**fields)
    for number in range(count):
        request.requests.add(
            app_id=f"app-{number:03}", app=pb.App(entrypoint=entrypoint, labels={"batch": "y"})
        )
    return request


async def results(plane: Plane, operation: operations_pb2.Operation) -> list[pb.AppResult]:
    ended = await plane.wait(operation, 60.0)
    assert ended.done, ended
    assert not ended.HasField("error"), ended.error
    found = pb.BatchResponse()
    assert ended.response.Unpack(found)
    return list(found.results)


async def apps(plane: Plane) -> list[pb.App]:
    return list((await plane.apps.ListApps(pb.ListAppsRequest(page_size=1000))).apps)


def newest(app: pb.App) -> int:
    """The epoch of what runs, beside what may still be drained."""
    return max(instance.epoch for instance in app.instances)


async def test_apps_are_created_and_what_fails_is_told_beside_what_does_not(plane: Plane) -> None:
    await plane.node(behaviours={"bad:app": Behaviour(fails=("APP_STARTUP_FAILED", "It lacks a table."))})
    await plane.create("app-001")
    request = create(4)
    request.requests[2].app.entrypoint = "nonsense"
    request.requests[3].app.entrypoint = "bad:app"
    operation = await plane.apps.BatchCreateApps(request)
    told = await results(plane, operation)
    assert [(it.app, reason(it.status)) for it in told] == [
        ("apps/app-000", ""),
        ("apps/app-001", "APP_ALREADY_EXISTS"),
        ("apps/app-002", "INVALID_FIELD"),
        ("apps/app-003", "APP_STARTUP_FAILED"),
    ]
    assert told[0].operation.startswith("operations/")
    ended = metadata(await plane.wait(operation))
    progress = ended.batch
    assert (progress.total_count, progress.done_count, progress.failed_count) == (4, 1, 3)
    assert [it.app for it in progress.failures] == ["apps/app-001", "apps/app-002", "apps/app-003"]
    assert (ended.verb, ended.step, ended.progress_percent) == ("batch_create", "done", 100)


async def test_a_batch_goes_through_all_lives_of_many_apps_by_list_and_by_filter(plane: Plane) -> None:
    node = await plane.node()
    assert not [
        it for it in await results(plane, await plane.apps.BatchCreateApps(create())) if it.status.code
    ]
    await plane.create("other")
    chosen = 'labels.batch = "y"'
    told = await results(plane, await plane.apps.BatchStopApps(pb.BatchStopAppsRequest(filter=chosen)))
    assert [it.app for it in told] == [f"apps/app-{number:03}" for number in range(COUNT)]
    states = Counter(app.state for app in await apps(plane))
    assert states == {Instance.STOPPED: COUNT, Instance.RUNNING: 1}
    some = pb.BatchStartAppsRequest(requests=[pb.StartAppRequest(name=it.app) for it in told[:3]])
    await results(plane, await plane.apps.BatchStartApps(some))
    refused = await results(
        plane, await plane.apps.BatchRestartApps(pb.BatchRestartAppsRequest(filter=chosen))
    )
    assert Counter(reason(it.status) for it in refused) == {"": 3, "APP_STOPPED": COUNT - 3}
    update = pb.BatchUpdateAppsRequest()
    update.requests.add(app=pb.App(name="apps/app-000", labels={"batch": "y", "more": "x"}))
    update.requests.add(app=pb.App(name="apps/new", entrypoint="shop:create_app"), allow_missing=True)
    await results(plane, await plane.apps.BatchUpdateApps(update))
    assert (await plane.get("apps/app-000")).labels["more"] == "x"
    assert (await plane.get("apps/new")).state == Instance.RUNNING
    doomed = pb.BatchDeleteAppsRequest(filter=chosen, data_policy=pb.DeleteAppRequest.DROP)
    await results(plane, await plane.apps.BatchDeleteApps(doomed))
    assert [app.name for app in await apps(plane)] == ["apps/new", "apps/other"]
    assert len(node.disk.data) == 2
    nothing = await results(plane, await plane.apps.BatchDeleteApps(doomed))
    assert nothing == []


async def test_apps_are_moved_by_filter_and_by_list_each_as_by_its_own_method(plane: Plane) -> None:
    await plane.node()
    request = create(6)
    for one in request.requests:
        one.app.database.no_database.SetInParent()
    await results(plane, await plane.apps.BatchCreateApps(request))
    other = await plane.node("environments/default/nodes/fake-2")
    away = pb.BatchMoveAppsRequest(filter='labels.batch = "y"', node=other.node)
    checked = await plane.apps.BatchMoveApps(
        pb.BatchMoveAppsRequest(filter=away.filter, node=other.node, validate_only=True)
    )
    assert (checked.done, other.instances()) == (True, {})
    told = await results(plane, await plane.apps.BatchMoveApps(away))
    assert [reason(it.status) for it in told] == [""] * 6
    running = [it for it in other.instances().values() if it.state == Instance.RUNNING]
    assert len(running) == 6
    back = pb.BatchMoveAppsRequest()
    back.requests.add(name="apps/app-000")
    back.requests.add(name="apps/app-001", node="environments/default/nodes/nowhere")
    told = await results(plane, await plane.apps.BatchMoveApps(back))
    assert [reason(it.status) for it in told] == ["", "NODE_NOT_FOUND"]
    home = {it.node for it in (await plane.get("apps/app-000")).instances if it.state == Instance.RUNNING}
    assert home != {other.node}


async def test_a_batch_goes_on_after_a_restart_and_does_nothing_twice(plane: Plane) -> None:
    await plane.node(behaviours={"slow:app": Behaviour(ready_after=0.05)})
    request = create(entrypoint="slow:app", request_id="the one")
    operation = await plane.apps.BatchCreateApps(request)

    async def begun() -> int:
        return len(await apps(plane))

    await eventually(begun, lambda count: count > 0)
    await plane.restart()
    assert (await plane.apps.BatchCreateApps(request)).name == operation.name
    assert not [it for it in await results(plane, operation) if it.HasField("status")]
    assert len(await apps(plane)) == COUNT
    for number in range(0, COUNT, 9):
        events = await plane.events(f"apps/app-{number:03}")
        assert [event.type for event in events].count("Created") == 1
    restart = await plane.apps.BatchRestartApps(pb.BatchRestartAppsRequest(filter="app-"))
    await plane.app("apps/app-000", lambda app: newest(app) == 2)
    await plane.restart()
    assert not [it for it in await results(plane, restart) if it.HasField("status")]
    assert {newest(app) for app in await apps(plane)} == {2}


async def test_a_cancelled_batch_begins_no_more_and_lets_what_is_begun_end(plane: Plane) -> None:
    await plane.node(behaviours={"held:app": Behaviour(ready_after=None)})
    operation = await plane.apps.BatchCreateApps(create(entrypoint="held:app"))
    await eventually(lambda: apps(plane), lambda found: len(found) > 10)
    await plane.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=operation.name))
    told = metadata(
        await plane.operations.GetOperation(operations_pb2.GetOperationRequest(name=operation.name))
    )
    assert told.cancel_requested
    # What is begun ends by being stopped here; a batch of its own may do that meanwhile.
    await plane.apps.BatchStopApps(pb.BatchStopAppsRequest(filter="app-"))
    assert await plane.failed(operation) == "OPERATION_CANCELLED"
    begun = await apps(plane)
    assert 0 < len(begun) < COUNT
    progress = metadata(await plane.wait(operation)).batch
    assert progress.done_count + progress.failed_count == len(begun)


async def test_what_is_only_validated_tells_the_same_and_changes_nothing(plane: Plane) -> None:
    await plane.node()
    await plane.create("app-001")
    before = plane.store.mirror.apps.revision
    request = create(3, validate_only=True)
    request.requests[2].app.entrypoint = "nonsense"
    operation = await plane.apps.BatchCreateApps(request)
    assert operation.done
    found = pb.BatchResponse()
    assert operation.response.Unpack(found)
    assert [reason(it.status) for it in found.results] == ["", "APP_ALREADY_EXISTS", "INVALID_FIELD"]
    assert plane.store.mirror.apps.revision == before


@pytest.mark.parametrize("kind", ["Start", "Stop", "Restart", "Delete", "Move"])
async def test_every_batch_tells_of_apps_that_are_not_there(plane: Plane, kind: str) -> None:
    request = getattr(pb, f"Batch{kind}AppsRequest")()
    request.requests.add(name="apps/nobody")
    told = await results(plane, await getattr(plane.apps, f"Batch{kind}Apps")(request))
    assert [reason(it.status) for it in told] == ["APP_NOT_FOUND"]

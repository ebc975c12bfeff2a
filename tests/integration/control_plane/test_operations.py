"""Operations over real gRPC: waiting, cancelling, listing, superseding, and their deadlines."""

import asyncio
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2 as lro

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.control_plane.operations import operations
from services.rpc.status import reason_of
from tests.eventually import eventually
from tests.fakes.runtime_node import Behaviour
from tests.integration.control_plane.plane import Plane, condition, metadata, reason, response


def start(name: str = "apps/shop") -> pb.StartAppRequest:
    return pb.StartAppRequest(name=name)


def stop(name: str = "apps/shop") -> pb.StopAppRequest:
    return pb.StopAppRequest(name=name)


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call
    return failure.value.code(), reason_of(failure.value)


async def test_waiting_ends_with_the_operation_as_it_is_when_the_time_is_up(plane: Plane) -> None:
    operation = await plane.create("shop", wait=False)
    waited = await plane.wait(operation, 0.2)
    assert not waited.done
    assert waited.name == operation.name
    assert not (await plane.wait(operation, 0)).done
    missing = lro.WaitOperationRequest(name="operations/none")
    assert await refused(plane.operations.WaitOperation(missing)) == (
        grpc.StatusCode.NOT_FOUND,
        "OPERATION_NOT_FOUND",
    )


async def test_everyone_who_waits_is_told_of_the_end_at_once(plane: Plane) -> None:
    operation = await plane.create("shop", wait=False)
    waiting = [asyncio.ensure_future(plane.wait(operation)) for _ in range(50)]
    waiting[0].cancel()
    await plane.node()
    ended = await asyncio.gather(*waiting[1:])
    assert all(one.done for one in ended)


async def test_a_cancelled_create_ends_and_stops_the_app(plane: Plane) -> None:
    operation = await plane.create("shop", wait=False)
    update = await plane.update("apps/shop", ["env"], env={"A": "1"})
    await plane.operations.CancelOperation(lro.CancelOperationRequest(name=operation.name))
    ended = await plane.wait(operation)
    assert reason(ended.error) == "OPERATION_CANCELLED"
    assert ended.error.code == grpc.StatusCode.CANCELLED.value[0]
    about = metadata(ended)
    assert (about.step, about.cancel_requested) == ("cancelled", True)
    assert await plane.failed(update) == "OPERATION_SUPERSEDED"
    app = await plane.app("apps/shop", lambda app: app.state == rt.Instance.STOPPED and not app.reconciling)
    assert app.desired_state == pb.App.STOPPED
    assert app.observed_generation == app.generation
    events = [(e.type, e.reason, e.operation) for e in await plane.events("apps/shop")]
    assert ("StopRequested", "OPERATION_CANCELLED", operation.name) in events


async def test_a_cancelled_update_ends_but_stands(plane: Plane) -> None:
    node = await plane.node()
    go = node.hold("slow:app")
    await plane.create("shop")
    operation = await plane.update("apps/shop", ["entrypoint"], entrypoint="slow:app")
    await plane.operations.CancelOperation(lro.CancelOperationRequest(name=operation.name))
    assert await plane.failed(operation) == "OPERATION_CANCELLED"
    go.set()
    app = await plane.app("apps/shop", lambda app: not app.reconciling)
    assert (app.entrypoint, app.observed_generation) == ("slow:app", 2)


async def test_what_is_done_or_cannot_be_taken_back_is_not_cancelled(plane: Plane) -> None:
    node = await plane.node()
    done = await plane.create("shop", entrypoint="slow:app", wait=False)
    await plane.done(done)
    node.hold("slow:app")
    stopping = await plane.apps.StopApp(stop())
    for operation in (done, stopping):
        call = plane.operations.CancelOperation(lro.CancelOperationRequest(name=operation.name))
        assert await refused(call) == (grpc.StatusCode.FAILED_PRECONDITION, "OPERATION_NOT_CANCELLABLE")
    call = plane.operations.DeleteOperation(lro.DeleteOperationRequest(name=stopping.name))
    assert await refused(call) == (grpc.StatusCode.FAILED_PRECONDITION, "OPERATION_NOT_DONE")
    await plane.operations.DeleteOperation(lro.DeleteOperationRequest(name=done.name))
    call = plane.operations.GetOperation(lro.GetOperationRequest(name=done.name))
    assert await refused(call) == (grpc.StatusCode.NOT_FOUND, "OPERATION_NOT_FOUND")


async def test_operations_are_listed_in_pages_by_what_they_are_about(plane: Plane) -> None:
    made = [await plane.create(f"app-{n}", wait=False) for n in range(5)]
    await plane.done(await plane.create("still", wait=False, desired_state=pb.App.STOPPED))
    names, token = [], ""
    while True:
        page = await plane.operations.ListOperations(
            lro.ListOperationsRequest(filter="done=false", page_size=2, page_token=token)
        )
        names += [operation.name for operation in page.operations]
        token = page.next_page_token
        if not token:
            break
    assert names == [operation.name for operation in made]
    request = lro.ListOperationsRequest(filter='metadata.target="apps/app-3" AND metadata.verb="create"')
    (only,) = (await plane.operations.ListOperations(request)).operations
    assert only.name == made[3].name
    for text in ("done", "done=maybe", "colour=red", "done=true OR done=false"):
        call = plane.operations.ListOperations(lro.ListOperationsRequest(filter=text))
        assert await refused(call) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FILTER")
    request = lro.ListOperationsRequest(page_token="bad")
    assert (await refused(plane.operations.ListOperations(request)))[1] == "INVALID_PAGE_TOKEN"
    request = lro.ListOperationsRequest(page_size=-1)
    assert (await refused(plane.operations.ListOperations(request)))[1] == "INVALID_FIELD"


async def test_an_operation_ends_at_its_deadline_and_what_is_wanted_stands(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = rt.Limits()
    limits.start_timeout.FromMilliseconds(100)
    limits.stop_timeout.FromMilliseconds(0)
    monkeypatch.setattr(operations, "SLACK", 100_000)
    many = [await plane.create(f"app-{n}", wait=False, limits=limits) for n in range(30)]
    for operation in many:
        ended = await plane.wait(operation)
        assert reason(ended.error) == "OPERATION_DEADLINE_EXCEEDED"
        assert "has no node" in ended.error.message
        assert metadata(ended).step == "failed"
    await plane.node()
    app = await plane.app("apps/app-0", lambda app: app.state == rt.Instance.RUNNING)
    assert app.desired_state == pb.App.RUNNING


async def test_a_stop_ends_what_would_bring_the_app_up_and_a_start_ends_the_stop(plane: Plane) -> None:
    node = await plane.node()
    go = node.hold("slow:app")
    create = await plane.create("shop", wait=False, entrypoint="slow:app")
    update = await plane.update("apps/shop", ["env"], env={"A": "1"})
    stopping = await plane.apps.StopApp(stop())
    for operation in (create, update):
        assert await plane.failed(operation) == "OPERATION_SUPERSEDED"
    starting = await plane.apps.StartApp(start())
    ended = await plane.wait(stopping)
    assert reason(ended.error) == "OPERATION_SUPERSEDED"
    assert ended.error.code == grpc.StatusCode.ABORTED.value[0]
    go.set()
    assert (await plane.done(starting)).state == rt.Instance.RUNNING
    await eventually(node.instances, lambda found: len(found) == 1)


async def test_an_update_that_stops_is_a_stop_and_one_that_starts_is_a_start(plane: Plane) -> None:
    node = await plane.node()
    await plane.create("shop", entrypoint="slow:app")
    go = node.hold("slow:app")
    restart = await plane.apps.RestartApp(pb.RestartAppRequest(name="apps/shop"))
    stopping = await plane.update("apps/shop", ["desired_state"], desired_state=pb.App.STOPPED)
    assert await plane.failed(restart) == "OPERATION_SUPERSEDED"
    go.set()
    assert (await plane.done(stopping)).state == rt.Instance.STOPPED
    await plane.done(await plane.apps.StartApp(start()))
    go = node.hold("slow:app")
    stop_op = await plane.apps.StopApp(stop())
    starting = await plane.update("apps/shop", ["desired_state"], desired_state=pb.App.RUNNING)
    assert await plane.failed(stop_op) == "OPERATION_SUPERSEDED"
    go.set()
    assert (await plane.done(starting)).state == rt.Instance.RUNNING


async def test_a_delete_ends_everything_else(plane: Plane) -> None:
    node = await plane.node()
    go = node.hold("slow:app")
    create = await plane.create("shop", wait=False, entrypoint="slow:app")
    delete = await plane.apps.DeleteApp(pb.DeleteAppRequest(name="apps/shop"))
    assert await plane.failed(create) == "OPERATION_SUPERSEDED"
    go.set()
    await plane.done(delete)


async def test_a_start_of_what_runs_is_done_at_once(plane: Plane) -> None:
    node = await plane.node()
    await plane.create("shop")
    operation = await plane.apps.StartApp(start())
    assert operation.done
    assert response(operation).state == rt.Instance.RUNNING
    assert len(node.instances()) == 1


async def test_a_stop_of_what_failed_never_shows_it_as_starting(plane: Plane) -> None:
    await plane.node(
        behaviours={"broken:app": Behaviour(fails=("APP_FACTORY_FAILED", "No."), stop_after=0.3)}
    )
    await plane.failed(await plane.create("shop", wait=False, entrypoint="broken:app"))
    operation = await plane.update("apps/shop", ["labels"], labels={"a": "b"})
    assert (await plane.get("apps/shop")).state == rt.Instance.FAILED
    assert await plane.failed(operation) == "APP_FACTORY_FAILED"
    await plane.done(await plane.apps.StopApp(stop()))
    states = [e.message for e in await plane.events("apps/shop") if e.type == "StateChanged"]
    assert not any(message.startswith("FAILED to PENDING") for message in states)
    assert condition(await plane.get("apps/shop"), "Ready").reason == "Stopped"

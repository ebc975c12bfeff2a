"""Swaps, data and what cannot be removed, over real gRPC on fake nodes."""

from __future__ import annotations

import pytest
from google.rpc.error_details_pb2 import DebugInfo, ErrorInfo

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from tests.eventually import eventually
from tests.fakes.runtime_node import Behaviour, Disk, FakeNode
from tests.integration.control_plane.plane import NODE, Plane, condition

BROKEN = {"broken:app": Behaviour(fails=("APP_FACTORY_FAILED", "name 'FstAPI' is not defined"))}
ON_REQUEST, IDLE, RUNNING = rt.InstanceSpec.ON_REQUEST, rt.Instance.IDLE, rt.Instance.RUNNING


async def settled(plane: Plane) -> pb.App:
    return await plane.app("apps/shop", lambda app: not app.reconciling and len(app.instances) == 1)


async def wake(node: FakeNode, name: str) -> None:
    """Let a first request come."""
    hosted = node.hosted[name]
    node.lives.move(hosted, rt.Instance.STARTING, "Starting")
    await node.lives.start(hosted)


@pytest.mark.parametrize("awake", [False, True])
async def test_an_update_of_an_on_request_app_that_does_not_start_fails_and_the_old_version_stays(
    plane: Plane, awake: bool
) -> None:
    node = await plane.node(behaviours=BROKEN)
    await plane.create("shop", activation=ON_REQUEST)
    if awake:
        await wake(node, "apps/shop/instances/g1-e1")
    before = await plane.app("apps/shop", lambda app: app.state == (RUNNING if awake else IDLE))
    operation = await plane.update("apps/shop", ["entrypoint"], entrypoint="broken:app")
    assert await plane.failed(operation) == "APP_FACTORY_FAILED"
    app = await settled(plane)
    assert (app.state, [i.name for i in app.instances]) == (before.state, ["apps/shop/instances/g1-e1"])
    assert condition(app, "Updated").reason == "APP_FACTORY_FAILED"


@pytest.mark.parametrize("awake", [False, True])
async def test_an_update_of_an_on_request_app_is_started_and_then_as_the_one_before_it_was(
    plane: Plane, awake: bool
) -> None:
    node = await plane.node()
    await plane.create("shop", activation=ON_REQUEST)
    if awake:
        await wake(node, "apps/shop/instances/g1-e1")
        await plane.app("apps/shop", lambda app: app.state == RUNNING)
    await plane.done(await plane.update("apps/shop", ["env"], env={"A": "1"}))
    app = await settled(plane)
    assert [i.name for i in app.instances] == ["apps/shop/instances/g2-e1"]
    assert app.instances[0].HasField("ready_time")
    assert app.state == (RUNNING if awake else IDLE)


async def test_a_restart_of_an_on_request_app_that_does_not_start_fails_and_the_old_instance_stays(
    plane: Plane,
) -> None:
    node = await plane.node()
    await plane.create("shop", activation=ON_REQUEST)
    node.behaviours["shop:create_app"] = BROKEN["broken:app"]
    operation = await plane.apps.RestartApp(pb.RestartAppRequest(name="apps/shop"))
    assert await plane.failed(operation) == "APP_FACTORY_FAILED"
    app = await settled(plane)
    assert (app.state, [i.name for i in app.instances]) == (IDLE, ["apps/shop/instances/g1-e1"])
    # It is no update that failed.
    types = [event.type for event in await plane.events("apps/shop")]
    assert "RestartFailed" in types
    assert "UpdateFailed" not in types
    text = condition(app, "Updated").message
    assert text == "name 'FstAPI' is not defined. The instance before it goes on serving."


async def test_an_app_stopped_and_started_again_is_dormant_without_a_trial(plane: Plane) -> None:
    node = await plane.node()
    await plane.create("shop", activation=ON_REQUEST)
    await plane.done(await plane.apps.StopApp(pb.StopAppRequest(name="apps/shop")))
    node.behaviours["shop:create_app"] = BROKEN["broken:app"]
    app = await plane.done(await plane.apps.StartApp(pb.StartAppRequest(name="apps/shop")))
    assert app.state == IDLE


async def test_an_operation_that_failed_of_an_exception_has_its_last_frames_and_says_where_the_rest_is(
    plane: Plane,
) -> None:
    node = await plane.node(behaviours=BROKEN)
    frames = "".join(f'  File "app{n}.py", line {n}, in f{n}\n    g{n}()\n' for n in range(9))
    trace = f"Traceback (most recent call last):\n{frames}NameError: name 'FstAPI' is not defined\n"
    fail = node.lives.fail

    def with_trace(hosted, reason, message):  # type: ignore[no-untyped-def]
        fail(hosted, reason, message)
        hosted.status.last_error.detail = trace
        node.feed.publish(hosted.status)

    node.lives.fail = with_trace  # type: ignore[method-assign]
    ended = await plane.wait(await plane.create("shop", wait=False, entrypoint="broken:app"))
    info = DebugInfo()
    assert any(detail.Unpack(info) for detail in ended.error.details)
    assert len(info.stack_entries) == 6
    assert info.stack_entries[0].startswith('File "app4.py", line 4, in f4')
    assert info.stack_entries[-1] == "NameError: name 'FstAPI' is not defined"
    assert "TailAppLogs" in info.detail
    assert "apps/shop" in info.detail


async def test_an_operation_that_failed_of_missing_code_names_the_node_and_its_directories(
    plane: Plane,
) -> None:
    missing = Behaviour(fails=("ENTRYPOINT_MODULE_NOT_FOUND", "there is no module 'nowhere'"))
    node = await plane.node(behaviours={"nowhere:app": missing})
    ended = await plane.wait(await plane.create("shop", wait=False, entrypoint="nowhere:app"))
    info = ErrorInfo()
    assert any(detail.Unpack(info) for detail in ended.error.details)
    assert info.reason == "ENTRYPOINT_MODULE_NOT_FOUND"
    assert (info.metadata["node"], info.metadata["app_dirs"]) == (node.node, "/srv/apps:/srv/more")
    assert ended.error.message == (
        f"there is no module 'nowhere' (on {node.node}; its app directories: /srv/apps, /srv/more)"
    )
    told = condition(await plane.get("apps/shop"), "Ready")
    assert ended.error.message in told.message


async def test_an_app_that_has_served_starts_on_its_own_data_alone_until_its_loss_is_accepted(
    plane: Plane,
) -> None:
    node = await plane.node()
    await plane.create("shop")
    await plane.create("dormant", activation=ON_REQUEST)
    await plane.create("bare", database=rt.Database(no_database=rt.Database.NoDatabase()))
    await node.kill()
    await plane.node(disk=Disk(node.disk.uid))
    app = await plane.app("apps/shop", lambda app: app.state == rt.Instance.FAILED)
    assert condition(app, "Ready").reason == "DATA_MISSING"
    event = (await plane.events("apps/shop"))[0]
    assert (event.type, event.reason) == ("StateChanged", "DATA_MISSING")
    for name in ("apps/dormant", "apps/bare"):  # they have none to lose
        await plane.app(name, lambda app: condition(app, "Ready").status == rt.Condition.MET)
    start = pb.StartAppRequest(name="apps/shop")
    assert await plane.failed(await plane.apps.StartApp(start)) == "DATA_MISSING"
    start.accept_data_loss = True
    app = await plane.done(await plane.apps.StartApp(start))
    assert app.state == RUNNING
    # From now on it has data again.
    await plane.done(await plane.apps.RestartApp(pb.RestartAppRequest(name="apps/shop")))
    (placement,) = await eventually(
        lambda: plane.store.mirror.placements_of("apps/shop"), lambda found: len(found) == 1
    )
    assert placement.has_data


async def test_data_that_cannot_be_removed_keeps_its_app_deleting_with_the_reason(plane: Plane) -> None:
    node = await plane.node()
    uid = (await plane.create("shop")).uid
    node.disk.stuck[uid] = "Its directory is a symbolic link."
    request = pb.DeleteAppRequest(name="apps/shop", data_policy=pb.DeleteAppRequest.DROP)
    operation = await plane.apps.DeleteApp(request)
    app = await plane.app("apps/shop", lambda app: condition(app, "Ready").reason == "DATA_NOT_REMOVED")
    assert (app.state, app.reconciling) == (rt.Instance.DELETING, True)
    assert condition(app, "Ready").message == "Its directory is a symbolic link."
    del node.disk.stuck[uid]
    await plane.done(operation)
    assert node.disk.data == set()


@pytest.mark.parametrize("plane", [{"node_timeout": 1.0}], indirect=True)
async def test_an_app_whose_data_was_given_up_with_its_node_starts_on_another(plane: Plane) -> None:
    node = await plane.node()
    other = await plane.node("environments/default/nodes/fake-2", max_instances=1)
    await plane.create("shop")
    assert node.instances()
    await plane.node_state(NODE, 2)
    node.mute()
    await node._server.stop(0)  # type: ignore[union-attr]
    await plane.app("apps/shop", lambda app: condition(app, "Ready").reason == "NODE_UNREACHABLE")
    restart = pb.RestartAppRequest(name="apps/shop", accept_data_loss=True)
    app = await plane.done(await plane.apps.RestartApp(restart))
    assert [i.node for i in app.instances] == [other.node]
    # The one that was given up ends as soon as its node is heard.
    await node.start(node.address)
    node.unmute()
    await eventually(node.instances, lambda found: not found)
    app = await settled(plane)
    assert [i.node for i in app.instances] == [other.node]

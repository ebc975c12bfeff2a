"""Apps from creation to deletion, on fake nodes, over real gRPC."""

import asyncio

import grpc
import pytest
from google.longrunning import operations_pb2

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.rpc.errors import SupervisorError
from services.rpc.status import reason_of
from tests.eventually import eventually
from tests.fakes.runtime_node import Behaviour, FakeNode
from tests.integration.control_plane.plane import NODE, Plane, condition, metadata

BROKEN = Behaviour(fails=("APP_STARTUP_FAILED", "It lacks a table."))


def starts(node: FakeNode) -> list[str]:
    return [request.spec.name for method, request in node.calls if method == "StartInstance"]


async def test_a_created_app_runs_and_tells_where(plane: Plane) -> None:
    node = await plane.node(http_address="127.0.0.1:8080")
    app = await plane.create("shop", secret_env={"TOKEN": "s"}, env={"A": "1"})
    assert (app.state, app.health, app.reconciling) == (
        rt.Instance.RUNNING,
        rt.Instance.Health.HEALTHY,
        False,
    )
    assert (app.generation, app.observed_generation) == (1, 1)
    assert app.uri == "http://shop.localhost:8080/"
    assert [i.name for i in app.instances] == ["apps/shop/instances/g1-e1"]
    assert app.instances[0].node == NODE
    for kind in ("Ready", "Scheduled", "Updated"):
        assert condition(app, kind).status == rt.Condition.MET
    (spec,) = [request.spec for method, request in node.calls if method == "StartInstance"]
    assert dict(spec.secret_env) == {"TOKEN": "s"}
    assert spec.app_uid == app.uid
    kinds = [event.type for event in await plane.events("apps/shop")]
    assert kinds[-2:] == ["Placed", "Created"]
    assert kinds[0] == "StateChanged"


async def test_an_app_without_a_node_waits_with_its_reason_and_starts_when_one_comes(plane: Plane) -> None:
    operation = await plane.create("shop", wait=False)
    app = await plane.app("apps/shop", lambda app: condition(app, "Scheduled").reason != "")
    assert app.state == rt.Instance.PENDING
    assert app.health == rt.Instance.Health.UNKNOWN
    assert app.reconciling
    assert condition(app, "Scheduled").reason == "NO_NODE_AVAILABLE"
    assert condition(app, "Ready").reason == "NO_NODE_AVAILABLE"
    await plane.node()
    assert (await plane.done(operation)).state == rt.Instance.RUNNING


async def test_an_update_starts_the_new_generation_before_the_old_one_is_stopped(plane: Plane) -> None:
    node = await plane.node()
    await plane.create("shop")
    app = await plane.done(await plane.update("apps/shop", ["env"], env={"A": "2"}))
    assert (app.state, app.generation) == (rt.Instance.RUNNING, 2)
    app = await plane.app("apps/shop", lambda app: not app.reconciling)
    assert [i.name for i in app.instances] == ["apps/shop/instances/g2-e1"]
    commands = [
        (method, getattr(request, "name", "") or request.spec.name)
        for method, request in node.calls
        if method in ("StartInstance", "StopInstance")
    ]
    assert commands[:2] == [
        ("StartInstance", "apps/shop/instances/g1-e1"),
        ("StartInstance", "apps/shop/instances/g2-e1"),
    ]
    assert set(commands[2:]) == {("StopInstance", "apps/shop/instances/g1-e1")}


async def test_an_update_of_what_does_not_run_is_done_at_once(plane: Plane) -> None:
    node = await plane.node()
    await plane.create("shop")
    operation = await plane.update("apps/shop", ["labels"], labels={"tier": "gold"})
    assert operation.done
    app = await plane.get("apps/shop")
    assert (app.generation, app.observed_generation, app.reconciling) == (2, 2, False)
    assert starts(node) == ["apps/shop/instances/g1-e1"]
    again = await plane.update("apps/shop", ["labels"], labels={"tier": "gold"})
    assert again.done
    assert (await plane.get("apps/shop")).generation == 2


async def test_a_failed_update_leaves_the_old_generation_serving_and_says_why(plane: Plane) -> None:
    node = await plane.node(behaviours={"broken:app": BROKEN})
    await plane.create("shop")
    operation = await plane.update("apps/shop", ["entrypoint"], entrypoint="broken:app")
    assert await plane.failed(operation) == "APP_STARTUP_FAILED"
    app = await plane.app("apps/shop", lambda app: not app.reconciling and len(app.instances) == 1)
    assert app.state == rt.Instance.RUNNING
    assert app.instances[0].name == "apps/shop/instances/g1-e1"
    assert (app.generation, app.observed_generation) == (2, 1)
    assert condition(app, "Updated").status == rt.Condition.UNMET
    assert condition(app, "Updated").reason == "APP_STARTUP_FAILED"
    assert "It lacks a table." in condition(app, "Updated").message
    assert "UpdateFailed" in [event.type for event in await plane.events("apps/shop")]
    # The version that serves is the one that a new life of the node starts.
    await node.kill()
    await plane.node(behaviours={"broken:app": BROKEN})
    app = await plane.app(
        "apps/shop", lambda app: app.health == rt.Instance.Health.HEALTHY and not app.reconciling
    )
    assert [i.generation for i in app.instances] == [1]
    # A next update that works takes over and the condition is true again.
    app = await plane.done(await plane.update("apps/shop", ["entrypoint"], entrypoint="mended:app"))
    assert condition(app, "Updated").status == rt.Condition.MET
    assert app.generation == 3
    app = await plane.app("apps/shop", lambda app: not app.reconciling)
    assert app.observed_generation == 3


async def test_a_domain_that_a_failed_update_gave_up_is_served_by_its_next_owner_alone(plane: Plane) -> None:
    node = await plane.node(behaviours={"broken:app": BROKEN})
    await plane.create("shop", domains=["a.example", "b.example"])
    fields = {"entrypoint": "broken:app", "domains": ["b.example"]}
    await plane.failed(await plane.update("apps/shop", fields, **fields))
    await plane.create("heir", domains=["a.example"])
    await node.kill()
    node = await plane.node(behaviours={"broken:app": BROKEN})
    specs = await eventually(
        lambda: [request.spec for method, request in node.calls if method == "StartInstance"],
        lambda found: len(found) == 2,
    )
    assert {spec.name.split("/")[1]: list(spec.domains) for spec in specs} == {
        "shop": ["b.example"],
        "heir": ["a.example"],
    }


async def test_a_start_that_fails_ends_the_operation_with_the_nodes_reason(plane: Plane) -> None:
    await plane.node(behaviours={"broken:app": BROKEN})
    operation = await plane.create("shop", wait=False, entrypoint="broken:app")
    assert await plane.failed(operation) == "APP_STARTUP_FAILED"
    app = await plane.get("apps/shop")
    assert (app.state, app.health, app.reconciling) == (
        rt.Instance.FAILED,
        rt.Instance.Health.UNHEALTHY,
        False,
    )
    assert condition(app, "Ready").reason == "APP_STARTUP_FAILED"
    event = (await plane.events("apps/shop"))[0]
    assert (event.type, event.reason) == ("StateChanged", "APP_STARTUP_FAILED")
    assert event.instance == "apps/shop/instances/g1-e1"
    assert event.detail


async def test_a_failed_app_can_be_started_again(plane: Plane) -> None:
    node = await plane.node(behaviours={"broken:app": BROKEN})
    await plane.failed(await plane.create("shop", wait=False, entrypoint="broken:app"))
    del node.behaviours["broken:app"]
    app = await plane.done(await plane.apps.StartApp(pb.StartAppRequest(name="apps/shop")))
    assert app.state == rt.Instance.RUNNING
    app = await plane.app("apps/shop", lambda app: not app.reconciling)
    assert [i.name for i in app.instances] == ["apps/shop/instances/g1-e2"]


@pytest.mark.parametrize("reason", ["A_REASON_OF_LATER", "Finished", "ERROR_REASON_UNSPECIFIED"])
async def test_a_reason_that_is_not_known_still_ends_the_operation(plane: Plane, reason: str) -> None:
    await plane.node(behaviours={"odd:app": Behaviour(fails=(reason, "It is odd."))})
    operation = await plane.create("shop", wait=False, entrypoint="odd:app")
    assert await plane.failed(operation) == "APP_STARTUP_FAILED"
    app = await plane.get("apps/shop")
    assert condition(app, "Ready").reason == reason


async def test_a_stopped_app_stays_stopped_over_restarts_of_everything(plane: Plane) -> None:
    node = await plane.node()
    await plane.create("shop")
    app = await plane.done(await plane.apps.StopApp(pb.StopAppRequest(name="apps/shop")))
    assert (app.state, app.health, len(app.instances)) == (rt.Instance.STOPPED, rt.Instance.Health.UNKNOWN, 0)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await plane.apps.RestartApp(pb.RestartAppRequest(name="apps/shop"))
    assert reason_of(refused.value) == "APP_STOPPED"
    await node.kill()
    second = await plane.node()
    await plane.restart()
    await plane.create("witness")  # the node was heard, and everything on it looked at
    app = await plane.get("apps/shop")
    assert (app.state, app.reconciling) == (rt.Instance.STOPPED, False)
    assert starts(second) == ["apps/witness/instances/g1-e1"]
    app = await plane.done(await plane.apps.StartApp(pb.StartAppRequest(name="apps/shop")))
    assert app.state == rt.Instance.RUNNING


async def test_a_restart_replaces_the_instance_by_a_fresh_one_of_its_generation(plane: Plane) -> None:
    await plane.node()
    await plane.create("shop")
    operation = await plane.apps.RestartApp(pb.RestartAppRequest(name="apps/shop"))
    assert not operation.done
    await plane.done(operation)
    app = await plane.app("apps/shop", lambda app: not app.reconciling)
    assert [i.name for i in app.instances] == ["apps/shop/instances/g1-e2"]
    assert app.generation == 1


@pytest.mark.parametrize(
    "policy",
    [pb.DeleteAppRequest.RETAIN, pb.DeleteAppRequest.DROP, pb.DeleteAppRequest.DATA_POLICY_UNSPECIFIED],
)
async def test_a_deleted_app_is_gone_and_its_data_goes_only_if_asked(plane: Plane, policy: int) -> None:
    node = await plane.node()
    uid = (await plane.create("shop")).uid
    request = pb.DeleteAppRequest(name="apps/shop", data_policy=policy)
    operation = await plane.apps.DeleteApp(request)
    repeat = await plane.apps.DeleteApp(request)
    assert repeat.name == operation.name
    app = await plane.done(operation)
    assert (app.name, app.uid) == ("apps/shop", uid)
    with pytest.raises(grpc.aio.AioRpcError) as missing:
        await plane.get("apps/shop")
    assert missing.value.code() is grpc.StatusCode.NOT_FOUND
    assert node.instances() == {}
    assert set(node.purged) == ({uid} if policy == pb.DeleteAppRequest.DROP else set())
    assert (await plane.events("apps/shop"))[0].type == "Deleted"
    # The name may be used again, by another app.
    again = await plane.create("shop")
    assert again.uid != uid


async def test_data_of_a_stopped_app_is_dropped_too(plane: Plane) -> None:
    node = await plane.node()
    uid = (await plane.create("shop")).uid
    await plane.done(await plane.apps.StopApp(pb.StopAppRequest(name="apps/shop")))
    await plane.done(
        await plane.apps.DeleteApp(
            pb.DeleteAppRequest(name="apps/shop", data_policy=pb.DeleteAppRequest.DROP)
        )
    )
    assert set(node.purged) == {uid}


async def test_data_that_was_to_be_retained_can_still_be_dropped_while_the_app_ends(plane: Plane) -> None:
    node = await plane.node()
    uid = (await plane.create("shop")).uid
    go = node.hold("shop:create_app")
    operation = await plane.apps.DeleteApp(pb.DeleteAppRequest(name="apps/shop"))
    again = await plane.apps.DeleteApp(
        pb.DeleteAppRequest(name="apps/shop", data_policy=pb.DeleteAppRequest.DROP)
    )
    assert again.name == operation.name
    go.set()
    await plane.done(operation)
    assert set(node.purged) == {uid}


async def test_every_other_command_is_refused_while_an_app_is_deleted(plane: Plane) -> None:
    node = await plane.node()
    await plane.create("shop")
    go = node.hold("shop:create_app")
    operation = await plane.apps.DeleteApp(pb.DeleteAppRequest(name="apps/shop"))
    assert (await plane.get("apps/shop")).state == rt.Instance.DELETING
    calls = [
        plane.apps.StartApp(pb.StartAppRequest(name="apps/shop")),
        plane.apps.StopApp(pb.StopAppRequest(name="apps/shop")),
        plane.apps.RestartApp(pb.RestartAppRequest(name="apps/shop")),
        plane.apps.UpdateApp(pb.UpdateAppRequest(app=pb.App(name="apps/shop", labels={"a": "b"}))),
    ]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert reason_of(refused.value) == "APP_DELETING"
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    go.set()
    await plane.done(operation)


async def test_an_app_that_never_had_a_node_can_be_deleted(plane: Plane) -> None:
    await plane.create("shop", wait=False)
    await plane.done(await plane.apps.DeleteApp(pb.DeleteAppRequest(name="apps/shop")))


async def test_a_name_used_again_is_not_served_by_what_is_left_of_its_predecessor(plane: Plane) -> None:
    node = await plane.node()
    leftover = rt.InstanceSpec(
        name="apps/shop/instances/g1-e1", app_uid="another", generation=1, epoch=7, entrypoint="old:app"
    )
    node.behaviours["old:app"] = Behaviour(stop_after=0.3)
    node.start_instance(leftover)
    await plane.create("blog")
    assert leftover.name in node.instances()  # this catalog never knew its app, and leaves it alone
    await plane.done(await plane.apps.DeleteApp(pb.DeleteAppRequest(name="apps/blog")))
    app = await plane.create("shop")
    assert [i.app_uid for i in app.instances] == [app.uid]
    (instance,) = node.instances().values()
    assert instance.app_uid == app.uid
    assert node.purged == []


async def test_an_instance_of_an_app_that_lives_elsewhere_is_stopped(plane: Plane) -> None:
    await plane.node()
    app = await plane.create("shop")
    other = await plane.node("environments/default/nodes/fake-2")
    other.start_instance(
        rt.InstanceSpec(
            name="apps/shop/instances/g1-e1", app_uid=app.uid, generation=1, epoch=1, entrypoint="a:b"
        )
    )
    await eventually(other.instances, lambda found: not found)
    assert (await plane.get("apps/shop")).state == rt.Instance.RUNNING
    assert other.purged == []


async def test_a_node_that_knows_a_newer_epoch_gets_one_above_it(plane: Plane) -> None:
    node = await plane.node()
    operation = await plane.create("shop", wait=False, desired_state=pb.App.STOPPED)
    uid = (await plane.done(operation)).uid
    node._fences[uid] = (41, 3)
    app = await plane.done(await plane.apps.StartApp(pb.StartAppRequest(name="apps/shop")))
    assert [i.epoch for i in app.instances] == [42]
    assert len(starts(node)) == 2


async def test_a_full_node_is_told_as_the_reason_and_room_ends_the_wait(plane: Plane) -> None:
    node = await plane.node(max_instances=2)
    await plane.create("one")
    node.max_instances = 1
    operation = await plane.create("two", wait=False)
    app = await plane.app("apps/two", lambda app: condition(app, "Ready").reason == "NODE_FULL")
    assert (app.state, app.reconciling) == (rt.Instance.PENDING, True)
    node.max_instances = 2
    assert (await plane.done(operation)).state == rt.Instance.RUNNING


async def test_an_app_beyond_every_nodes_room_is_not_placed(plane: Plane) -> None:
    await plane.node(max_instances=1)
    await plane.create("one")
    await plane.create("two", wait=False)
    app = await plane.app("apps/two", lambda app: condition(app, "Scheduled").reason != "")
    assert condition(app, "Scheduled").reason == "NO_NODE_AVAILABLE"
    assert "full" in condition(app, "Scheduled").message
    await plane.done(await plane.apps.DeleteApp(pb.DeleteAppRequest(name="apps/one")))
    await plane.app("apps/two", lambda app: app.state == rt.Instance.RUNNING)


async def test_a_refusal_that_no_retry_changes_fails_the_app_until_it_is_changed(plane: Plane) -> None:
    node = await plane.node()
    node.refuse = SupervisorError("ISOLATION_UNSUPPORTED", "No processes here.")
    operation = await plane.create("shop", wait=False)
    assert await plane.failed(operation) == "ISOLATION_UNSUPPORTED"
    app = await plane.get("apps/shop")
    assert (app.state, condition(app, "Ready").reason) == (rt.Instance.FAILED, "ISOLATION_UNSUPPORTED")
    tried = len(starts(node))
    node.refuse = None
    app = await plane.done(await plane.apps.StartApp(pb.StartAppRequest(name="apps/shop")))
    assert app.state == rt.Instance.RUNNING
    assert tried == 1


async def test_an_on_request_app_is_created_dormant(plane: Plane) -> None:
    await plane.node()
    app = await plane.create("shop", activation=rt.InstanceSpec.ON_REQUEST)
    assert (app.state, app.reconciling) == (rt.Instance.IDLE, False)
    assert condition(app, "Ready").reason == "Dormant"


@pytest.mark.parametrize("plane", [{"node_timeout": 60.0}], indirect=True)
async def test_two_hundred_apps_start_concurrently_and_are_spread_fairly(plane: Plane) -> None:
    first = await plane.node(behaviours={"slow:app": Behaviour(ready_after=0.2)})
    second = await plane.node(
        "environments/default/nodes/fake-2", behaviours={"slow:app": Behaviour(ready_after=0.2)}
    )
    operations = await asyncio.gather(
        *(plane.create(f"app-{n}", wait=False, entrypoint="slow:app") for n in range(200))
    )
    apps = await asyncio.gather(*(plane.done(operation) for operation in operations))
    assert {app.state for app in apps} == {rt.Instance.RUNNING}
    assert abs(len(first.instances()) - len(second.instances())) <= 2
    assert len(starts(first)) + len(starts(second)) == 200


async def test_operations_tell_their_progress_and_who_asked(plane: Plane) -> None:
    node = await plane.node()
    go = node.hold("slow:app")
    app = pb.App(entrypoint="slow:app")
    request = pb.CreateAppRequest(app=app, app_id="shop")
    operation = await plane.apps.CreateApp(request, metadata=(("x-actor", "ci"),))
    about = metadata(operation)
    assert (about.target, about.verb, about.generation) == ("apps/shop", "create", 1)
    assert about.actor.startswith("ci (ipv4:127.0.0.1:")
    assert about.deadline_time.seconds > about.create_time.seconds

    async def look() -> pb.OperationMetadata:
        get = operations_pb2.GetOperationRequest(name=operation.name)
        return metadata(await plane.operations.GetOperation(get))

    about = await eventually(look, lambda about: about.step == "starting")
    assert 0 < about.progress_percent < 100
    go.set()
    about = await eventually(look, lambda about: about.step == "done")
    assert (about.progress_percent, about.HasField("end_time")) == (100, True)
    (event,) = [e for e in await plane.events("apps/shop") if e.type == "Created"]
    assert event.actor == about.actor
    assert event.operation == operation.name

"""Nodes that die, go silent, come back, or are not who they say: what the catalog then tells."""

import asyncio

import grpc
import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.fleet.v1 import fleet_pb2
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.rpc.errors import SupervisorError
from services.rpc.status import reason_of
from tests.eventually import eventually
from tests.fakes.runtime_node import FakeNode
from tests.fakes.runtime_servicer import FakeServicer
from tests.integration.control_plane.plane import NODE, Plane, condition
from tests.integration.control_plane.test_lifecycle import starts

# A second without a word is a loss here.
pytestmark = pytest.mark.parametrize("plane", [{"node_timeout": 1.0}], indirect=True)


async def lost(plane: Plane, name: str) -> pb.App:
    app = await plane.app(name, lambda app: condition(app, "Ready").reason == "NODE_UNREACHABLE")
    assert app.health == rt.Instance.Health.UNKNOWN
    assert condition(app, "Ready").status == rt.Condition.UNKNOWN
    assert [i.health for i in app.instances] == [rt.Instance.Health.UNKNOWN] * len(app.instances)
    return app


async def test_a_node_whose_stream_is_cut_makes_health_unknown_and_a_new_life_restores_all(
    plane: Plane,
) -> None:
    node = await plane.node()
    await plane.create("shop")
    await plane.create("idle", activation=rt.InstanceSpec.ON_REQUEST)
    await node.kill()
    assert (await lost(plane, "apps/shop")).state == rt.Instance.RUNNING
    await lost(plane, "apps/idle")
    told = await plane.node_state(NODE, fleet_pb2.Node.UNREACHABLE)
    assert told.state_reason
    events = [(e.type, e.reason) for e in await plane.events("apps/shop")]
    assert events[0] == ("HealthChanged", "NODE_UNREACHABLE")
    second = await plane.node()
    app = await plane.app("apps/shop", lambda app: app.health == rt.Instance.Health.HEALTHY)
    assert app.instances[0].incarnation == second.incarnation
    # It is not told as gone first: its start is what its node's new life tells of it.
    assert not [e.message for e in await plane.events("apps/shop") if "to PENDING" in e.message]
    await plane.app("apps/idle", lambda app: condition(app, "Ready").status == rt.Condition.MET)


async def test_a_silent_node_is_given_up_after_its_time_and_heard_again(plane: Plane) -> None:
    node = await plane.node()
    await plane.create("shop")
    node.refuse = SupervisorError("SHUTTING_DOWN", "Not now.")  # nor does it answer new calls
    node.mute()
    await lost(plane, "apps/shop")
    node.refuse = None
    node.unmute()
    await plane.app("apps/shop", lambda app: app.health == rt.Instance.Health.HEALTHY)
    await plane.node_state(NODE, fleet_pb2.Node.READY)
    assert starts(node) == ["apps/shop/instances/g1-e1"]  # it was there all the time


async def test_a_stopped_app_of_a_lost_node_stays_stopped_in_the_catalog(plane: Plane) -> None:
    node = await plane.node()
    await plane.create("still", desired_state=pb.App.STOPPED)
    await plane.create("shop")
    await plane.done(await plane.apps.StopApp(pb.StopAppRequest(name="apps/shop")))
    await plane.create("witness")
    await node.kill()
    await lost(plane, "apps/witness")
    for name in ("apps/still", "apps/shop"):
        app = await plane.get(name)
        assert (app.state, app.reconciling) == (rt.Instance.STOPPED, False)
        assert condition(app, "Ready").reason == "Stopped"


async def test_commands_on_an_app_of_a_lost_node_are_carried_out_when_it_is_back(plane: Plane) -> None:
    node = await plane.node()
    for name in ("stop", "delete", "update"):
        await plane.create(name)
    await node.kill()
    await lost(plane, "apps/update")
    operations = [
        await plane.apps.StopApp(pb.StopAppRequest(name="apps/stop")),
        await plane.apps.DeleteApp(pb.DeleteAppRequest(name="apps/delete")),
        await plane.update("apps/update", ["env"], env={"A": "1"}),
    ]
    assert not any(operation.done for operation in operations)
    assert (await lost(plane, "apps/delete")).state == rt.Instance.DELETING
    assert (await lost(plane, "apps/stop")).state == rt.Instance.STOPPING
    assert (await plane.get("apps/update")).reconciling
    second = await plane.node()
    for operation in operations:
        await plane.done(operation)
    assert starts(second) == ["apps/update/instances/g2-e1"]


async def test_another_process_at_the_nodes_address_is_not_taken_for_it(plane: Plane) -> None:
    node = await plane.node()
    await plane.create("shop")
    await node.kill()
    impostor = FakeNode(NODE, disk=node.disk)
    plane.nodes.append(impostor)
    await impostor.start(node.address)
    await lost(plane, "apps/shop")
    assert starts(impostor) == []
    assert "incarnation" in (await plane.node_state(NODE, fleet_pb2.Node.UNREACHABLE)).state_reason
    # Once it has said who it is it is as good as any.
    await impostor.register(plane.address)
    await plane.app("apps/shop", lambda app: app.health == rt.Instance.Health.HEALTHY)


async def test_a_name_is_refused_while_its_bearer_is_heard_and_free_afterwards(plane: Plane) -> None:
    node = await plane.node()
    second = FakeNode(NODE)
    plane.nodes.append(second)
    await second.start()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await second.register(plane.address)
    assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert reason_of(refused.value) == "NODE_NAME_TAKEN"
    await node.register(plane.address)  # a repeat by the same incarnation changes nothing
    assert (await plane.node_state(NODE, fleet_pb2.Node.READY)).incarnation == node.incarnation
    await node.kill()

    async def try_again() -> bool:
        try:
            await second.register(plane.address)
        except grpc.aio.AioRpcError:
            return False
        return True

    await eventually(try_again, bool)
    assert (await plane.node_state(NODE, fleet_pb2.Node.READY)).incarnation == second.incarnation


async def test_a_new_life_at_the_same_address_takes_over_at_once(plane: Plane) -> None:
    node = await plane.node()
    await plane.create("shop")
    await node.kill()
    second = FakeNode(NODE, disk=node.disk)
    plane.nodes.append(second)
    await second.start(node.address)
    await second.register(plane.address)
    await plane.app(
        "apps/shop",
        lambda app: (
            app.health == rt.Instance.Health.HEALTHY and app.instances[0].incarnation == second.incarnation
        ),
    )


async def test_a_node_that_ends_each_stream_at_once_is_not_stormed(plane: Plane) -> None:
    node = await plane.node()
    whole, count = node.feed.watch, 0

    async def short(request: rt.WatchInstancesRequest):  # type: ignore[no-untyped-def]
        nonlocal count
        count += 1
        async for message in whole(request):
            yield message
            if message.type == rt.WatchInstancesResponse.SYNCED:
                return

    node.feed.watch = short  # type: ignore[method-assign]
    node.mute()
    await eventually(lambda: count, lambda count: count >= 3)
    first = count
    await asyncio.sleep(1)  # that nothing happens can only be waited for
    assert count - first < 10


async def test_a_hung_node_holds_up_no_app_of_another(plane: Plane) -> None:
    hung = await plane.node("environments/default/nodes/a-hung", max_instances=300)
    block = asyncio.Event()

    async def never(request: rt.StartInstanceRequest, context: object) -> rt.StartInstanceResponse:
        await block.wait()
        raise AssertionError

    original = FakeServicer.StartInstance

    async def start(self, request, context):  # type: ignore[no-untyped-def]
        if self._node is hung:
            return await never(request, context)
        return await original(self, request, context)

    FakeServicer.StartInstance = start  # type: ignore[method-assign]
    try:
        await asyncio.gather(*(plane.create(f"a-{n}", wait=False) for n in range(300)))
        await eventually(lambda: plane.get("apps/a-299"), lambda app: condition(app, "Scheduled").status == 1)
        await plane.node("environments/default/nodes/b-well")
        apps = await asyncio.gather(*(plane.create(f"b-{n}") for n in range(20)))
        assert {app.instances[0].node.rpartition("/")[2] for app in apps} == {"b-well"}
    finally:
        block.set()
        FakeServicer.StartInstance = original  # type: ignore[method-assign]

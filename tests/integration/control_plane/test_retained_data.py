"""Data of deleted apps: remembered, found, given to a new app, removed; with nodes that come, go and end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.catalog.v1 import retained_data_pb2 as pb
from appsupervisor.catalog.v1.retained_data_pb2_grpc import DataCatalogStub
from appsupervisor.fleet.v1 import fleet_pb2
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance, InstanceSpec
from services.rpc.errors import SupervisorError
from services.rpc.status import reason_of
from tests.eventually import eventually
from tests.fakes.runtime_node import Disk
from tests.integration.control_plane.plane import NODE, Plane, metadata

ALL = "environments/-/nodes/-"
State = pb.RetainedData.State


class Data:
    """Calls the data catalog of a plane, also after the plane was started again."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    @property
    def stub(self) -> Any:
        return DataCatalogStub(self._plane.channel)

    async def all(self, parent: str = ALL, **fields: Any) -> list[pb.RetainedData]:
        request = pb.ListRetainedDataRequest(parent=parent, **fields)
        return list((await self.stub.ListRetainedData(request)).retained_data)

    async def until(self, test: Callable[[list[pb.RetainedData]], Any]) -> list[pb.RetainedData]:
        return await eventually(self.all, test)

    async def the_one(self, state: State.ValueType = pb.RetainedData.RETAINED) -> pb.RetainedData:
        """Wait until there is one, in a state; of RETAINED, that its node has told of."""
        told = state == pb.RetainedData.RETAINED

        def test(found: list[pb.RetainedData]) -> bool:
            return [it.state for it in found] == [state] and (not told or found[0].HasField("observe_time"))

        return (await self.until(test))[0]

    async def attach(self, name: str, app_id: str, **fields: Any) -> operations_pb2.Operation:
        app = catalog.App(**{"entrypoint": "shop:create_app", **fields})
        return await self.stub.AttachRetainedData(
            pb.AttachRetainedDataRequest(name=name, app_id=app_id, app=app)
        )

    async def purge(self, name: str, **fields: Any) -> operations_pb2.Operation:
        return await self.stub.PurgeRetainedData(pb.PurgeRetainedDataRequest(name=name, **fields))


@pytest.fixture
def data(plane: Plane) -> Data:
    return Data(plane)


async def deleted(plane: Plane, app_id: str = "shop", **fields: Any) -> catalog.App:
    """Create an app and delete it with RETAIN."""
    app = await plane.create(app_id, **fields)
    policy = catalog.DeleteAppRequest.RETAIN
    await plane.done(await plane.apps.DeleteApp(catalog.DeleteAppRequest(name=app.name, data_policy=policy)))
    return app


async def refused(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return reason_of(error.value)


async def test_what_a_deleted_app_leaves_is_listed_with_what_is_known_of_it(plane: Plane, data: Data) -> None:
    await plane.node()
    app = await deleted(plane)
    found = await data.the_one()
    assert found.name == f"{NODE}/retainedData/{app.uid}"
    assert (found.app, found.app_uid, found.entrypoint) == ("apps/shop", app.uid, "shop:create_app")
    assert found.database.WhichOneof("kind") == "sqlite"
    assert found.size_bytes == 4096
    assert found.HasField("delete_time")
    assert await data.stub.GetRetainedData(pb.GetRetainedDataRequest(name=found.name)) == found


async def test_dropped_data_is_not_listed(plane: Plane, data: Data) -> None:
    await plane.node()
    await plane.create("shop")
    request = catalog.DeleteAppRequest(name="apps/shop", data_policy=catalog.DeleteAppRequest.DROP)
    await plane.done(await plane.apps.DeleteApp(request))
    assert await data.all() == []


async def test_the_list_holds_while_the_node_is_away_and_after_a_restart(plane: Plane, data: Data) -> None:
    node = await plane.node()
    await deleted(plane)
    before = await data.the_one()
    await node.kill()
    await plane.node_state(NODE, fleet_pb2.Node.UNREACHABLE)
    await plane.restart()
    assert await data.all() == [before]


async def test_a_new_app_begins_with_the_data_and_never_without_it(plane: Plane, data: Data) -> None:
    node = await plane.node()
    await deleted(plane)
    kept = await data.the_one()
    operation = await data.attach(kept.name, "wiki")
    assert metadata(operation).verb == "attach"
    app = await plane.done(operation)
    assert (app.state, app.retained_data) == (Instance.RUNNING, "")
    assert node.disk.data == {app.uid}
    starts = [request.spec for method, request in node.calls if method == "StartInstance"]
    assert [it.requires_existing_data for it in starts if it.app_uid == app.uid] == [True]
    assert await data.all() == []
    assert "DataAttached" in [event.type for event in await plane.events("apps/wiki")]


async def test_an_app_of_the_old_name_may_have_it(plane: Plane, data: Data) -> None:
    node = await plane.node()
    await deleted(plane)
    app = await plane.done(await data.attach((await data.the_one()).name, "shop"))
    assert node.disk.data == {app.uid}


async def test_an_app_that_is_stopped_has_it_once_its_node_has_handed_it_over(
    plane: Plane, data: Data
) -> None:
    node = await plane.node()
    await deleted(plane)
    stopped = catalog.App.STOPPED
    app = await plane.done(await data.attach((await data.the_one()).name, "wiki", desired_state=stopped))
    assert (app.state, app.retained_data) == (Instance.STOPPED, "")
    assert node.disk.data == {app.uid}
    started = await plane.done(await plane.apps.StartApp(catalog.StartAppRequest(name="apps/wiki")))
    assert started.state == Instance.RUNNING
    starts = [request.spec for method, request in node.calls if method == "StartInstance"]
    assert starts[-1].requires_existing_data


async def test_an_app_waits_for_the_node_that_has_its_data(plane: Plane, data: Data) -> None:
    node = await plane.node()
    await deleted(plane)
    kept = await data.the_one()
    await node.kill()
    await plane.node_state(NODE, fleet_pb2.Node.UNREACHABLE)
    other = await plane.node("environments/default/nodes/fake-2")
    operation = await data.attach(kept.name, "wiki")
    waiting = await data.the_one(pb.RetainedData.ATTACHING)
    assert waiting.attaching_app == "apps/wiki"
    assert (await plane.get("apps/wiki")).retained_data == kept.name
    assert await refused(data.purge(kept.name)) == "RETAINED_DATA_BUSY"
    assert await refused(data.attach(kept.name, "third")) == "RETAINED_DATA_BUSY"
    await plane.restart()
    await plane.node()
    assert (await plane.done(operation)).state == Instance.RUNNING
    assert not [method for method, _ in other.calls if method == "StartInstance"]


async def test_an_app_deleted_before_it_had_the_data_leaves_it_under_its_own_name(
    plane: Plane, data: Data
) -> None:
    node = await plane.node()
    await deleted(plane)
    kept = await data.the_one()
    await node.kill()
    await plane.node_state(NODE, fleet_pb2.Node.UNREACHABLE)
    await data.attach(kept.name, "wiki")
    app = await plane.get("apps/wiki")
    operation = await plane.apps.DeleteApp(catalog.DeleteAppRequest(name="apps/wiki"))
    again = await plane.node()
    await plane.done(operation)
    assert (await data.the_one()).app_uid == app.uid
    assert again.disk.data == {app.uid}


async def test_data_that_its_node_has_lost_is_missing_and_the_app_says_so(plane: Plane, data: Data) -> None:
    node = await plane.node()
    await deleted(plane)
    kept = await data.the_one()
    node.disk.data.clear()
    assert await plane.failed(await data.attach(kept.name, "wiki")) == "DATA_MISSING"
    assert (await data.the_one(pb.RetainedData.MISSING)).state_reason
    await plane.app("apps/wiki", lambda app: app.state == Instance.FAILED)
    assert await refused(data.attach(kept.name, "third")) == "DATA_MISSING"
    await plane.wait(await data.purge(kept.name))
    assert await data.all() == []


async def test_purged_data_stays_visible_with_the_reason_until_it_is_gone(plane: Plane, data: Data) -> None:
    node = await plane.node()
    app = await deleted(plane)
    kept = await data.the_one()
    node.disk.stuck[app.uid] = "It is frozen."
    operation = await data.purge(kept.name)
    assert (await data.until(lambda found: found[0].state_reason))[0].state_reason == "It is frozen."
    assert (await data.purge(kept.name)).name == operation.name
    assert await refused(data.attach(kept.name, "wiki")) == "RETAINED_DATA_BUSY"
    del node.disk.stuck[app.uid]
    ended = await plane.wait(operation)
    response = pb.RetainedData()
    assert ended.response.Unpack(response)
    assert (response.name, response.state_reason) == (kept.name, "")
    assert (await data.all(), node.disk.data) == ([], set())


async def test_a_purge_waits_for_its_node_and_survives_a_restart(plane: Plane, data: Data) -> None:
    node = await plane.node()
    await deleted(plane)
    kept = await data.the_one()
    await node.kill()
    await plane.node_state(NODE, fleet_pb2.Node.UNREACHABLE)
    operation = await data.purge(kept.name)
    assert "cannot be heard" in (await data.the_one(pb.RetainedData.PURGING)).state_reason
    await plane.restart()
    again = await plane.node()
    assert (await plane.wait(operation)).HasField("response")
    assert (await data.all(), again.disk.data) == ([], set())


async def test_data_that_the_catalog_does_not_know_is_found_when_its_node_is_heard(
    plane: Plane, data: Data
) -> None:
    old = "0b9b4f0e-0000-4000-8000-000000000001"
    disk = plane.disks[NODE] = Disk(data={old}, apps={old: "ancient"})
    await plane.node()
    found = await data.the_one()
    assert (found.app, found.app_uid, found.size_bytes) == ("apps/ancient", old, 4096)
    app = await plane.done(await data.attach(found.name, "wiki"))
    assert disk.data == {app.uid}


async def test_what_living_apps_have_is_not_taken_for_retained(plane: Plane, data: Data) -> None:
    node = await plane.node()
    await plane.create("shop")
    await plane.done(await plane.apps.StopApp(catalog.StopAppRequest(name="apps/shop")))
    await plane.restart()
    await eventually(lambda: sum(method == "ListDataDirectories" for method, _ in node.calls) > 1)
    assert await data.all() == []


async def test_data_that_is_gone_is_missing_and_found_again(plane: Plane, data: Data) -> None:
    node = await plane.node()
    app = await deleted(plane)
    await data.the_one()
    await node.kill()
    await plane.node_state(NODE, fleet_pb2.Node.UNREACHABLE)
    node.disk.data.clear()
    node = await plane.node()
    await data.the_one(pb.RetainedData.MISSING)
    await node.kill()
    await plane.node_state(NODE, fleet_pb2.Node.UNREACHABLE)
    node.disk.data.add(app.uid)
    await plane.node()
    await data.the_one()


async def test_an_app_that_had_left_nothing_is_not_listed(plane: Plane, data: Data) -> None:
    node = await plane.node()
    await deleted(plane, activation=InstanceSpec.ON_REQUEST)
    await eventually(lambda: any(method == "ListDataDirectories" for method, _ in node.calls))
    await data.until(lambda found: not found)


async def test_an_older_node_hands_nothing_over_and_loses_nothing(plane: Plane, data: Data) -> None:
    node = await plane.node()
    await deleted(plane)
    kept = await data.the_one()

    def unknown(request: Any) -> Any:
        raise SupervisorError("METHOD_NOT_FOUND", "There is no such method.")

    node.claim_data_directory = unknown  # type: ignore[method-assign]
    assert await plane.failed(await data.attach(kept.name, "wiki")) == "METHOD_NOT_FOUND"
    assert (await data.the_one()).app_uid == kept.app_uid
    await plane.app("apps/wiki", lambda app: app.state == Instance.FAILED)
    assert kept.app_uid in node.disk.data


async def test_what_is_retained_is_forgotten_with_its_environment(plane: Plane, data: Data) -> None:
    await plane.fleet.CreateEnvironment(
        fleet_pb2.CreateEnvironmentRequest(environment_id="lab", environment=fleet_pb2.Environment())
    )
    name = "environments/lab/nodes/fake-9"
    node = await plane.node(name)
    await deleted(plane, environment="environments/lab")
    kept = await data.the_one()
    assert kept.name.startswith(f"{name}/")
    assert (
        await refused(data.attach(kept.name, "wiki", environment="environments/default")) == "INVALID_FIELD"
    )
    await node.kill()
    await plane.node_state(name, fleet_pb2.Node.UNREACHABLE)
    operation = await data.purge(kept.name)
    await plane.fleet.DeleteEnvironment(fleet_pb2.DeleteEnvironmentRequest(name="environments/lab"))
    assert await data.all() == []
    assert await plane.failed(operation) == "NODE_NOT_FOUND"


async def test_a_node_with_retained_data_is_deleted_by_force_alone_and_nobody_waits_for_it(
    plane: Plane, data: Data
) -> None:
    node = await plane.node()
    await deleted(plane)
    kept = await data.the_one()
    await node.kill()
    await plane.node_state(NODE, fleet_pb2.Node.UNREACHABLE)
    operation = await data.attach(kept.name, "wiki", desired_state=catalog.App.STOPPED)
    assert await refused(plane.fleet.DeleteNode(fleet_pb2.DeleteNodeRequest(name=NODE))) == "DATA_ON_NODE"
    await plane.fleet.DeleteNode(fleet_pb2.DeleteNodeRequest(name=NODE, force=True))
    assert await data.all() == []
    assert await plane.failed(operation) == "DATA_MISSING"
    assert (await plane.get("apps/wiki")).retained_data == ""

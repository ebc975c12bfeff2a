"""GetApp and ListApps with `view`: figures are asked of the nodes, and what one does not tell is left out."""

from typing import Any

import grpc
import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition
from services.control_plane.nodes import figures
from services.rpc.errors import SupervisorError
from services.rpc.status import reason_of
from tests.fakes.runtime_node import Behaviour, FakeNode
from tests.integration.control_plane.plane import Plane, condition, metadata, response

OTHER = "environments/default/nodes/fake-2"


async def get(plane: Plane, name: str, view: int = pb.App.FULL) -> pb.App:
    return await plane.apps.GetApp(pb.GetAppRequest(name=name, view=view), timeout=60)


async def listed(plane: Plane, **fields: Any) -> dict[str, pb.App]:
    response = await plane.apps.ListApps(pb.ListAppsRequest(view=pb.App.FULL, **fields), timeout=60)
    return {app.name: app for app in response.apps}


def measure(node: FakeNode, app: pb.App, count: int) -> None:
    node.set_figures(app.instances[0].name, rt.InstanceFigures(request_count=count))


async def test_full_has_the_figures_as_the_node_tells_them_now_and_stores_nothing(plane: Plane) -> None:
    node = await plane.node()
    apps = [await plane.create(f"a{number}") for number in range(figures.ONE_BY_ONE + 2)]
    revision = plane.store.mirror.apps.revision
    for count in (1, 7):
        for app in apps:
            measure(node, app, count)
        assert (await get(plane, "apps/a0")).instances[0].figures.request_count == count
        everything = await listed(plane)
        assert [app.instances[0].figures.request_count for app in everything.values()] == [count] * len(apps)
        few = await listed(plane, filter="name = apps/a1")
        assert few["apps/a1"].instances[0].figures.request_count == count
    for view in (pb.App.VIEW_UNSPECIFIED, pb.App.BASIC):
        assert not (await get(plane, "apps/a0", view)).instances[0].HasField("figures")
    assert plane.store.mirror.apps.revision == revision


async def test_an_update_that_changes_nothing_says_that_the_disk_has_other_code_and_a_restart_loads_it(
    plane: Plane,
) -> None:
    node = await plane.node()
    app = await plane.create("shop")
    runs = (await plane.app(app.name, lambda app: bool(app.instances[0].code.digest))).instances[0].code
    assert not metadata(await plane.update(app.name, ["labels"])).notice
    node.code["shop:create_app"] = "something new"
    assert "other than what runs" in condition(await get(plane, app.name), "CodeChanged").message
    assert not condition(await get(plane, app.name, pb.App.BASIC), "CodeChanged").type
    for paths, fields in ((["labels"], {}), (["labels"], {"labels": {"tier": "gold"}})):
        operation = await plane.update(app.name, paths, **fields)
        assert operation.done
        told = condition(response(operation), "CodeChanged")
        assert told.status == Condition.MET
        assert metadata(operation).notice == told.message
        assert metadata(await plane.wait(operation)).notice == told.message
    # What nodes are asked is not kept.
    assert not condition(await plane.get(app.name), "CodeChanged").type
    # A change of what runs loads the newest code anyway; what is only checked asks nobody.
    dry = pb.UpdateAppRequest(app=pb.App(name=app.name, env={"A": "1"}), validate_only=True)
    assert not metadata(await plane.apps.UpdateApp(dry)).notice
    await plane.done(await plane.apps.RestartApp(pb.RestartAppRequest(name=app.name)))
    fresh = await plane.app(app.name, lambda app: len(app.instances) == 1)
    assert fresh.instances[0].code.digest not in ("", runs.digest)
    assert not condition(await get(plane, app.name), "CodeChanged").type
    assert not metadata(await plane.update(app.name, ["labels"])).notice


async def test_the_code_of_what_a_swap_takes_away_is_of_no_account(plane: Plane) -> None:
    node = await plane.node(behaviours={"shop:create_app": Behaviour(stop_after=60)})
    app = await plane.create("shop")
    node.code["shop:create_app"] = "something new"
    await plane.done(await plane.apps.RestartApp(pb.RestartAppRequest(name=app.name)))
    both = await get(plane, app.name)
    assert len({one.code.digest for one in both.instances}) == 2
    assert not condition(both, "CodeChanged").type


async def test_an_app_without_instances_is_answered_and_an_unknown_view_is_refused(plane: Plane) -> None:
    await plane.create("still", wait=False, desired_state=pb.App.STOPPED)
    assert not (await get(plane, "apps/still")).instances
    for call in (
        plane.apps.GetApp(pb.GetAppRequest(name="apps/still", view=9)),  # type: ignore[arg-type]
        plane.apps.ListApps(pb.ListAppsRequest(view=9)),  # type: ignore[arg-type]
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert reason_of(refused.value) == "INVALID_FIELD"


@pytest.mark.parametrize("way", ["refuses", "is silent"])
async def test_a_node_that_does_not_tell_leaves_the_rest_with_figures(
    plane: Plane, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(figures, "ASK_SECONDS", 2.0)
    one, other = await plane.node(), await plane.node(OTHER)
    apps = [await plane.create(f"a{number}") for number in range(4)]
    homes = {app.name: app.instances[0].node for app in apps}
    assert set(homes.values()) == {one.node, other.node}
    for app in apps:
        measure(one if homes[app.name] == one.node else other, app, 3)
    if way == "refuses":
        other.refuse = SupervisorError("INTERNAL", "It is broken.")
    else:
        other.lists.clear()
    told = await listed(plane)
    assert {name: app.instances[0].HasField("figures") for name, app in told.items()} == {
        name: home == one.node for name, home in homes.items()
    }

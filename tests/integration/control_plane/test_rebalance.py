"""A node that joins late gets its share, and apps go where their neighbours let them: over fake nodes."""

from __future__ import annotations

from collections import Counter

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from tests.eventually import eventually
from tests.integration.control_plane.plane import NODE, Plane, condition

NO_DATABASE = rt.Database(no_database=rt.Database.NoDatabase())
DEFAULT, OTHER = "environments/default", "environments/default/nodes/fake-2"


async def homes(plane: Plane) -> dict[str, str]:
    apps = (await plane.apps.ListApps(pb.ListAppsRequest())).apps
    return {app.name.removeprefix("apps/"): app.instances[0].node for app in apps}


async def test_a_late_node_gets_its_share_of_what_can_move_and_then_nothing_is_left_to_do(
    plane: Plane,
) -> None:
    await plane.node(NODE)
    for app_id in "abcd":
        await plane.create(app_id, database=NO_DATABASE)
    for app_id in ("kept", "held"):
        await plane.create(app_id)  # their data is on the node
    await plane.node(OTHER)
    request = fleet.RebalanceEnvironmentRequest(name=DEFAULT)
    ended = await plane.wait(await plane.fleet.RebalanceEnvironment(request))
    response = fleet.RebalanceEnvironmentResponse()
    assert ended.response.Unpack(response), ended
    moved = {move.app.removeprefix("apps/") for move in response.moves}
    assert (len(moved), moved <= set("abcd")) == (3, True)
    assert {move.state for move in response.moves} == {fleet.PlannedMove.MOVED}
    for app_id in moved:
        await plane.app(f"apps/{app_id}", lambda app: not app.reconciling)
    placed = await homes(plane)
    assert {app_id for app_id, node in placed.items() if node == OTHER} == moved
    assert Counter(placed.values()) == {NODE: 3, OTHER: 3}
    again = await plane.fleet.RebalanceEnvironment(request)
    assert again.done

    # What is to be apart from an app on the one node goes to the other, though that has as many apps.
    here = next(app_id for app_id, node in placed.items() if node == NODE)
    there = next(iter(moved))
    for app_id in (here, there):
        await plane.done(await plane.update(f"apps/{app_id}", ["labels"], labels={"group": app_id}))
    for app_id, node in ((here, OTHER), (there, NODE)):
        app = await plane.create(f"not-{app_id}", database=NO_DATABASE, anti_affinity={"group": app_id})
        assert app.instances[0].node == node


async def test_replicas_are_evened_out_and_none_comes_beside_its_sibling(plane: Plane) -> None:
    nodes = [await plane.node(NODE), await plane.node(OTHER)]
    for app_id in "abcd":
        await plane.create(app_id, database=NO_DATABASE, replicas=2)
    nodes.append(await plane.node("environments/default/nodes/fake-3"))
    ended = await plane.wait(
        await plane.fleet.RebalanceEnvironment(fleet.RebalanceEnvironmentRequest(name=DEFAULT))
    )
    response = fleet.RebalanceEnvironmentResponse()
    assert ended.response.Unpack(response), ended
    assert {move.state for move in response.moves} == {fleet.PlannedMove.MOVED}
    assert {move.destination_node for move in response.moves} == {nodes[2].node}
    assert len(response.moves) == 2, "8 replicas: 3, 3 and 2"
    for app_id in "abcd":
        app = await plane.app(f"apps/{app_id}", lambda app: not app.reconciling and len(app.instances) == 2)
        assert len({it.node for it in app.instances}) == 2


async def test_a_node_that_uses_all_of_its_memory_takes_no_app_until_it_uses_less(plane: Plane) -> None:
    node = await plane.node(NODE, memory_bytes=2**30)
    node.used_memory_bytes = 2**30

    async def used() -> int:
        return (await plane.fleet.GetNode(fleet.GetNodeRequest(name=NODE))).used_memory_bytes

    await eventually(used, lambda it: it == 2**30)
    operation = await plane.create("shop", wait=False, database=NO_DATABASE)
    app = await plane.app("apps/shop", lambda it: condition(it, "Scheduled").status == rt.Condition.UNMET)
    assert "cannot take it: using all of its memory" in condition(app, "Scheduled").message
    node.used_memory_bytes = 2**29
    await plane.done(operation)

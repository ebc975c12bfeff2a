"""A node whose app has moved: what it is told with a stop, and where requests go from then on."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from runtime_node.http import Gate, HttpFront, Router
from tests.eventually import eventually
from tests.fakes.node_client import fields_of

from .conftest import Hosted, hosting

A1, A2 = "apps/shop/instances/a1", "apps/shop/instances/a2"


async def elsewhere(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"elsewhere"})


@pytest.fixture
async def home() -> AsyncIterator[pb.StopInstanceRequest.NewHome]:
    """Where the app is: another listener."""
    router = Router()
    gate = Gate("apps/shop/instances/b1")
    gate.open(elsewhere)
    router.set("shop", ["shop.example.com"], gate)
    front = HttpFront("127.0.0.1", 0, router)
    host, port = await front.start()
    yield pb.StopInstanceRequest.NewHome(
        node="environments/default/nodes/node-2",
        http_address=f"{host}:{port}",
        domains=["shop.example.com"],
        serves_http2=True,
    )
    await front.stop(1)


async def forwarding(hosted: Hosted) -> pb.Forwarding:
    return (await hosted.stub.GetRuntimeStatus(pb.GetRuntimeStatusRequest())).forwarding


async def test_a_node_forwards_for_an_app_that_left_until_it_is_back(
    hosted: Hosted, home: pb.StopInstanceRequest.NewHome
) -> None:
    await hosted.start(domains=["shop.example.com"])
    await hosted.reaches(pb.Instance.RUNNING)
    assert (await forwarding(hosted)) == pb.Forwarding()
    await hosted.stop(A1, epoch=2, new_home=home)
    assert (await hosted.ask("shop")).text == "elsewhere"
    await hosted.is_gone(A1)
    for path, headers in [("/", {"Host": "shop.example.com"}), ("/apps/shop/", {}), ("/", {"X-App": "shop"})]:
        assert (await hosted.http.get(path, headers=headers)).text == "elsewhere"
    told = await forwarding(hosted)
    assert (told.app_count, told.request_count, told.failure_count) == (1, 4, 0)
    (moved,) = told.moved_apps
    assert (moved.app, moved.epoch, moved.new_home) == ("apps/shop", 2, home), "for who leads anew"
    await hosted.start(name=A2, epoch=3)
    await hosted.reaches(pb.Instance.RUNNING, A2)
    assert (await hosted.ask("shop")).text == "shop a2 1"
    assert (await forwarding(hosted)) == pb.Forwarding(app_count=0, request_count=4)


async def test_what_waits_at_a_held_instance_is_released_to_where_its_app_is(
    hosted: Hosted, home: pb.StopInstanceRequest.NewHome
) -> None:
    await hosted.start()
    await hosted.reaches(pb.Instance.RUNNING)
    gate = hosted.node.router.gate_of("shop")
    assert gate is not None
    gate.hold(lambda: None)
    asking = [asyncio.create_task(hosted.ask("shop", f"/{number}")) for number in range(10)]
    await eventually(lambda: gate.figures().queued == 10)
    await hosted.stop(A1, epoch=2, new_home=home)
    assert {answer.text for answer in await asyncio.gather(*asking)} == {"elsewhere"}


async def test_a_node_that_begins_anew_is_told_of_what_it_had(
    hosted: Hosted, home: pb.StopInstanceRequest.NewHome
) -> None:
    await hosted.stop(A1, epoch=2, app_uid="uid-1", new_home=home)
    assert (await hosted.ask("shop")).text == "elsewhere"
    assert (await hosted.http.get("/", headers={"Host": "shop.example.com"})).text == "elsewhere"


async def test_a_home_that_is_none_is_refused_by_its_field(hosted: Hosted) -> None:
    await hosted.start()
    for home, field in [
        (pb.StopInstanceRequest.NewHome(), "new_home.http_address"),
        (pb.StopInstanceRequest.NewHome(http_address="http://h:1/"), "new_home.http_address"),
        (pb.StopInstanceRequest.NewHome(http_address="h:1", domains=["x..y"]), "new_home.domains[0]"),
    ]:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await hosted.stop(A1, epoch=2, new_home=home)
        assert fields_of(refused.value) == {field}


async def test_what_is_forwarded_is_in_the_nodes_metrics(
    tmp_path, home: pb.StopInstanceRequest.NewHome
) -> None:
    async with hosting(tmp_path, metrics_listen="127.0.0.1:0") as hosted:
        await hosted.stop(A1, epoch=2, app_uid="uid-1", new_home=home)
        assert (await hosted.ask("shop")).text == "elsewhere"
        text = (await hosted.http.get(f"http://{hosted.node.metrics}/metrics")).text
    for line in ("forwarding_apps 1.0", "forwarded_requests_total 1.0", "forward_failures_total 0.0"):
        assert f"appsupervisor_node_{line}" in text

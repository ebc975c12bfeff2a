"""A node that may not serve any more: it drains, or another one has its name."""

import asyncio
from pathlib import Path

import grpc
import httpx

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from appsupervisor.runtime.v1.runtime_environment_pb2_grpc import RuntimeEnvironmentStub
from runtime_node.data_directory import IDENTITY
from runtime_node.http.problems import REASON_HEADER
from runtime_node.server import Node
from services.rpc.errors import SupervisorError
from tests.eventually import eventually
from tests.fakes.node_client import DEADLINE, Refused, node_settings

from .conftest import Hosted, hosting
from .test_registration import Fleet, fleet

__all__ = ["fleet"]
REASON = REASON_HEADER.decode()


async def test_a_request_that_comes_while_the_node_drains_is_told_to_come_again(tmp_path: Path) -> None:
    serving = Node(node_settings(tmp_path)).serving()
    node = await serving.__aenter__()
    async with (
        grpc.aio.insecure_channel(str(node.listen)) as channel,
        httpx.AsyncClient(base_url=f"http://{node.http}", timeout=DEADLINE, verify=False) as http,
    ):
        hosted = Hosted(RuntimeEnvironmentStub(channel), lambda: None, node, http)
        await hosted.start(entrypoint="behaviours:slow_requests", config={"seconds": 1})
        await hosted.start(name="apps/quick/instances/q", app_uid="q")
        await hosted.reaches(pb.Instance.RUNNING)
        await hosted.reaches(pb.Instance.RUNNING, "apps/quick/instances/q")
        slow = asyncio.create_task(hosted.ask("shop"))
        await eventually(lambda: node.instances.find("apps/shop/instances/a1").gate.figures().in_flight)
        ending = asyncio.create_task(serving.__aexit__(None, None, None))
        await eventually(
            lambda: node.instances.draining and not node.instances.find("apps/quick/instances/q")
        )
        for app in ("quick", "shop", "nobody"):
            answer = await hosted.ask(app)
            assert (answer.status_code, answer.headers[REASON]) == (503, "NODE_DRAINING")
            assert int(answer.headers["retry-after"]) >= 1
        assert (await slow).status_code == 200
        await ending


async def test_a_node_registers_with_the_identity_of_its_data_directory(
    fleet: tuple[Fleet, str],
    tmp_path: Path,
) -> None:
    servicer, address = fleet
    for life in (1, 2):
        async with hosting(tmp_path, control_plane=address) as hosted:
            await servicer.count(life)
            status = await hosted.stub.GetRuntimeStatus(pb.GetRuntimeStatusRequest())
    identity = (tmp_path / "data" / IDENTITY).read_text().strip()
    assert {request.node.uid for request in servicer.seen} == {status.node_uid} == {identity}
    assert len({request.node.incarnation for request in servicer.seen}) == 2


async def test_a_node_that_lost_its_name_serves_nobody_until_it_has_it_again(
    fleet: tuple[Fleet, str],
    tmp_path: Path,
) -> None:
    servicer, address = fleet
    async with hosting(tmp_path, control_plane=address) as hosted:
        await servicer.count(1)
        await hosted.start()
        await hosted.reaches(pb.Instance.RUNNING)
        assert (await hosted.ask("shop")).status_code == 200
        servicer.refusals = [SupervisorError("NODE_NAME_TAKEN", "Another has it.") for _ in range(10_000)]
        await hosted.is_gone()
        answer = await hosted.ask("shop")
        assert (answer.status_code, answer.headers[REASON]) == (503, "NODE_NAME_TAKEN")
        async with Refused(grpc.StatusCode.ALREADY_EXISTS, "NODE_NAME_TAKEN"):
            await hosted.start(epoch=2)
        servicer.refusals = []
        await eventually(lambda: hosted.node.router._refusal is None)
        assert (await hosted.ask("shop")).status_code == 404
        await hosted.start(epoch=2)
        await hosted.reaches(pb.Instance.RUNNING)
        assert (await hosted.ask("shop")).status_code == 200


async def test_a_refusal_of_a_name_that_a_node_never_had_stops_nothing(
    fleet: tuple[Fleet, str],
    tmp_path: Path,
) -> None:
    servicer, address = fleet
    servicer.refusals = [SupervisorError("NODE_NAME_TAKEN", "Another has it.") for _ in range(10_000)]
    async with hosting(tmp_path, control_plane=address) as hosted:
        await servicer.count(1)
        await hosted.start()
        await hosted.reaches(pb.Instance.RUNNING)
        assert (await hosted.ask("shop")).status_code == 200

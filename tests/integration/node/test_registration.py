"""How a node makes itself known to a control plane, with a Fleet that only answers RegisterNode."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import tenacity
from google.protobuf.duration_pb2 import Duration

from appsupervisor.fleet.v1 import fleet_pb2
from appsupervisor.fleet.v1.fleet_pb2_grpc import FleetServicer, add_FleetServicer_to_server
from runtime_node.instances.feed import InstanceFeed
from runtime_node.registration import PATIENCE, Registration, Standing
from services.rpc.errors import SupervisorError
from services.rpc.server import RpcServer, Service
from tests.eventually import WITHIN, eventually

from .conftest import hosting


class Fleet(FleetServicer):
    """Records registrations; answers with `refusals` first."""

    def __init__(self) -> None:
        self.seen: list[fleet_pb2.RegisterNodeRequest] = []
        self.refusals: list[SupervisorError] = []
        self.came = asyncio.Event()

    async def RegisterNode(self, request: fleet_pb2.RegisterNodeRequest, context: Any) -> Any:  # noqa: N802
        self.seen.append(request)
        self.came.set()
        if self.refusals:
            raise self.refusals.pop(0)
        interval = Duration(nanos=200_000_000)
        return fleet_pb2.RegisterNodeResponse(node=request.node, registration_interval=interval)

    async def count(self, wanted: int) -> None:
        async with asyncio.timeout(WITHIN):
            while len(self.seen) < wanted:
                self.came.clear()
                await self.came.wait()


@pytest.fixture
async def fleet() -> AsyncIterator[tuple[Fleet, str]]:
    servicer = Fleet()
    server = RpcServer([Service("appsupervisor.fleet.v1.Fleet", add_FleetServicer_to_server, servicer)])
    port = await server.start("127.0.0.1:0")
    yield servicer, f"127.0.0.1:{port}"
    await server.stop(0)


async def test_a_node_registers_with_all_that_others_need_to_reach_it(
    fleet: tuple[Fleet, str], tmp_path: Path
) -> None:
    servicer, address = fleet
    async with hosting(tmp_path, control_plane=address, label="zone=a") as hosted:
        await servicer.count(1)
        node = servicer.seen[0].node
        assert (servicer.seen[0].parent, servicer.seen[0].node_id) == ("environments/default", "node-1")
        assert node.address == str(hosted.node.listen)
        assert node.http_address == str(hosted.node.http)
        assert node.incarnation == hosted.node.incarnation
        assert dict(node.labels) == {"zone": "a"}
        assert "behaviours" in node.modules


async def test_what_a_node_has_to_say_anew_is_told_while_it_is_watched(
    fleet: tuple[Fleet, str], tmp_path: Path
) -> None:
    servicer, address = fleet
    async with hosting(tmp_path, control_plane=address, app_dir=str(tmp_path)) as hosted:
        await servicer.count(1)
        stream = hosted.watch()
        await stream.read()
        (tmp_path / "just_come.py").touch()
        await eventually(lambda: "just_come" in servicer.seen[-1].node.modules)
        stream.cancel()


@pytest.mark.parametrize(
    ("flags", "address", "http_address"),
    [
        ({"advertise": "node.example"}, "node.example:{grpc}", "node.example:{http}"),
        ({"advertise": "node.example:1"}, "node.example:1", "node.example:{http}"),
        ({"advertise": "fd77::1"}, "[fd77::1]:{grpc}", "[fd77::1]:{http}"),
        ({"advertise": "[fd77::1]"}, "[fd77::1]:{grpc}", "[fd77::1]:{http}"),
        ({"advertise": "[fd77::1]:1"}, "[fd77::1]:1", "[fd77::1]:{http}"),
        # Behind a router that maps ports.
        ({"advertise": "router:1", "advertise_http": "router:2"}, "router:1", "router:2"),
        ({"advertise_http": "edge.example"}, "127.0.0.1:{grpc}", "edge.example:{http}"),
    ],
)
async def test_what_is_advertised_replaces_where_it_listens(
    fleet: tuple[Fleet, str], tmp_path: Path, flags: dict[str, str], address: str, http_address: str
) -> None:
    servicer, control_plane = fleet
    async with hosting(tmp_path, control_plane=control_plane, **flags) as hosted:
        await servicer.count(1)
        ports = {"grpc": hosted.node.listen.port, "http": hosted.node.http.port}
        seen = servicer.seen[0].node
        assert (seen.address, seen.http_address) == (address.format(**ports), http_address.format(**ports))


async def test_of_several_control_planes_the_next_is_asked_where_one_fails(
    fleet: tuple[Fleet, str], tmp_path: Path
) -> None:
    servicer, address = fleet
    servicer.refusals = [SupervisorError("STORE_UNAVAILABLE", "not now")]
    async with hosting(tmp_path, control_plane=f"127.0.0.1:1,{address}, {address}"):
        await servicer.count(2)


async def test_a_node_that_nobody_watches_registers_again_and_one_that_is_watched_does_not(
    fleet: tuple[Fleet, str], tmp_path: Path
) -> None:
    servicer, address = fleet
    async with hosting(tmp_path, control_plane=address) as hosted:
        await servicer.count(3)
        stream = hosted.watch()
        await stream.read()
        watched = len(servicer.seen)
        await asyncio.sleep(0.7)  # three and a half intervals: the absence of a call can only be waited for
        assert len(servicer.seen) <= watched + 1
        stream.cancel()
        await servicer.count(len(servicer.seen) + 1)


@pytest.mark.parametrize("reason", ["ENVIRONMENT_NOT_FOUND", "NODE_NAME_TAKEN"])
async def test_a_refusal_is_logged_once_and_tried_again(
    fleet: tuple[Fleet, str], tmp_path: Path, caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    servicer, address = fleet
    servicer.refusals = [SupervisorError(reason, "It is refused.") for _ in range(3)]
    with caplog.at_level(logging.INFO, "runtime_node.registration"):
        async with hosting(tmp_path, control_plane=address):
            await servicer.count(4)
            await eventually(
                lambda: any(getattr(r, "action", "") == "node.registered" for r in caplog.records)
            )
    refused = [r for r in caplog.records if getattr(r, "action", "") == "node.not_registered"]
    assert [(r.reason, r.getMessage()) for r in refused] == [(reason, "It is refused.")]


async def test_a_node_serves_while_its_control_plane_is_away(tmp_path: Path) -> None:
    async with hosting(tmp_path, control_plane="127.0.0.1:1") as hosted:
        await hosted.start()
        assert (await hosted.ask("shop")).status_code == 200


async def test_a_control_plane_that_does_not_answer_is_told_once_and_not_in_the_first_seconds(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    told_after: list[float] = []
    pauses: list[tuple[float, float]] = []
    now = 0.0

    class OverError(Exception):
        pass

    def told() -> list[logging.LogRecord]:
        return [r for r in caplog.records if getattr(r, "action", "") == "node.not_registered"]

    async def sleep(seconds: float) -> None:
        nonlocal now
        if told() and not told_after:
            told_after.append(now)
        if now > 60:
            raise OverError
        pauses.append((now, seconds))
        now += seconds

    # tenacity counts the time from the first try by this clock.
    monkeypatch.setattr(tenacity, "time", SimpleNamespace(monotonic=lambda: now))
    feed = InstanceFeed("environments/default/nodes/n", "i")
    standing = Mock(spec=Standing)
    registration = Registration("127.0.0.1:1", fleet_pb2.RegisterNodeRequest, feed, standing, sleep)
    with caplog.at_level(logging.INFO, "runtime_node.registration"), pytest.raises(OverError):
        await registration.run()
    assert [r.__dict__["reason"] for r in told()] == ["UNAVAILABLE"]
    assert told_after[0] >= PATIENCE
    assert all(0.05 <= seconds <= 0.4 for began, seconds in pauses if began < PATIENCE), "both are starting"
    assert any(seconds > 0.4 for _, seconds in pauses), "one that stays away is asked less and less often"

"""A server on a free port with one service of its own, and a channel to it."""

from collections.abc import AsyncIterator

import grpc
import pytest

from appsupervisor.fleet.v1 import fleet_pb2
from appsupervisor.fleet.v1.fleet_pb2_grpc import add_FleetServicer_to_server
from services.rpc.errors import SupervisorError
from services.rpc.health import ResourceHealth
from services.rpc.pipeline.call import Call
from services.rpc.server import RpcServer, Service


class SomeFleet:
    """One method that works and others that are there and do not."""

    async def GetNode(self, request: fleet_pb2.GetNodeRequest, call: Call) -> fleet_pb2.Node:  # noqa: N802
        return fleet_pb2.Node(name=request.name)

    def __getattr__(self, name: str) -> object:
        async def refuse(request: object, call: Call) -> None:
            raise SupervisorError("NODE_NOT_FOUND", "There is none.")

        return refuse


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    service = Service("appsupervisor.fleet.v1.Fleet", add_FleetServicer_to_server, SomeFleet())
    health = ResourceHealth({"apps/shop": True, "apps/ill": False}.get)
    server = RpcServer([service], health)
    port = await server.start("127.0.0.1:0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(0)

"""The Fleet service over the core."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from appsupervisor.fleet.v1 import fleet_pb2 as pb
from services.control_plane.fleet.fleet import FleetService
from services.rpc.pipeline.call import Call


class FleetServicer:
    """Serves Fleet."""

    def __init__(self, fleet: FleetService) -> None:
        self._fleet = fleet

    async def CreateEnvironment(self, request: pb.CreateEnvironmentRequest, call: Call) -> pb.Environment:
        """Serve Fleet.CreateEnvironment."""
        return await self._fleet.create_environment(request, call.caller())

    async def GetEnvironment(self, request: pb.GetEnvironmentRequest, call: Call) -> pb.Environment:
        """Serve Fleet.GetEnvironment."""
        return self._fleet.get_environment(request)

    async def ListEnvironments(
        self, request: pb.ListEnvironmentsRequest, call: Call
    ) -> pb.ListEnvironmentsResponse:
        """Serve Fleet.ListEnvironments."""
        return self._fleet.list_environments(request)

    async def DeleteEnvironment(self, request: pb.DeleteEnvironmentRequest, call: Call) -> Empty:
        """Serve Fleet.DeleteEnvironment."""
        await self._fleet.delete_environment(request, call.caller())
        return Empty()

    async def RegisterNode(self, request: pb.RegisterNodeRequest, call: Call) -> pb.RegisterNodeResponse:
        """Serve Fleet.RegisterNode."""
        return await self._fleet.register_node(request, call.caller())

    async def GetNode(self, request: pb.GetNodeRequest, call: Call) -> pb.Node:
        """Serve Fleet.GetNode."""
        return self._fleet.get_node(request)

    async def ListNodes(self, request: pb.ListNodesRequest, call: Call) -> pb.ListNodesResponse:
        """Serve Fleet.ListNodes."""
        return self._fleet.list_nodes(request)

"""The Fleet service over the core."""

from __future__ import annotations

from typing import Any

from google.protobuf.empty_pb2 import Empty

from appsupervisor.fleet.v1 import fleet_pb2 as pb
from appsupervisor.fleet.v1.fleet_pb2_grpc import FleetServicer as GeneratedServicer
from services.control_plane.fleet.fleet import FleetService
from services.control_plane.servicers.calls import caller_of


class FleetServicer(GeneratedServicer):
    """Serves Fleet."""

    def __init__(self, fleet: FleetService) -> None:
        self._fleet = fleet

    async def CreateEnvironment(self, request: pb.CreateEnvironmentRequest, context: Any) -> pb.Environment:
        """Serve Fleet.CreateEnvironment."""
        return await self._fleet.create_environment(request, caller_of(context))

    async def GetEnvironment(self, request: pb.GetEnvironmentRequest, context: Any) -> pb.Environment:
        """Serve Fleet.GetEnvironment."""
        return self._fleet.get_environment(request)

    async def ListEnvironments(
        self, request: pb.ListEnvironmentsRequest, context: Any
    ) -> pb.ListEnvironmentsResponse:
        """Serve Fleet.ListEnvironments."""
        return self._fleet.list_environments(request)

    async def DeleteEnvironment(self, request: pb.DeleteEnvironmentRequest, context: Any) -> Empty:
        """Serve Fleet.DeleteEnvironment."""
        await self._fleet.delete_environment(request, caller_of(context))
        return Empty()

    async def RegisterNode(self, request: pb.RegisterNodeRequest, context: Any) -> pb.RegisterNodeResponse:
        """Serve Fleet.RegisterNode."""
        return await self._fleet.register_node(request, caller_of(context))

    async def GetNode(self, request: pb.GetNodeRequest, context: Any) -> pb.Node:
        """Serve Fleet.GetNode."""
        return self._fleet.get_node(request)

    async def ListNodes(self, request: pb.ListNodesRequest, context: Any) -> pb.ListNodesResponse:
        """Serve Fleet.ListNodes."""
        return self._fleet.list_nodes(request)

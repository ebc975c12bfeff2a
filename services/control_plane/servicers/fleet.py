"""The Fleet service over the core."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.longrunning.operations_pb2 import Operation
from google.protobuf.empty_pb2 import Empty

from appsupervisor.fleet.v1 import fleet_pb2 as pb
from services.control_plane.fleet.database_servers import DatabaseServers
from services.control_plane.fleet.environment_commands import EnvironmentCommands
from services.control_plane.fleet.explanations import explain_placement
from services.control_plane.fleet.fleet import FleetService
from services.control_plane.fleet.node_commands import NodeCommands
from services.control_plane.fleet.node_watch import watch_nodes
from services.control_plane.store.interface import CatalogStore
from services.rpc.pipeline.call import Call


class FleetServicer:
    """Serves Fleet."""

    def __init__(
        self,
        store: CatalogStore,
        fleet: FleetService,
        environments: EnvironmentCommands,
        nodes: NodeCommands,
        servers: DatabaseServers,
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._environments = environments
        self._nodes = nodes
        self._servers = servers

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

    async def UpdateEnvironment(self, request: pb.UpdateEnvironmentRequest, call: Call) -> pb.Environment:
        """Serve Fleet.UpdateEnvironment."""
        return await self._fleet.update_environment(request, call.caller())

    async def DeleteEnvironment(self, request: pb.DeleteEnvironmentRequest, call: Call) -> Empty:
        """Serve Fleet.DeleteEnvironment."""
        await self._fleet.delete_environment(request, call.caller())
        return Empty()

    async def RebalanceEnvironment(self, request: pb.RebalanceEnvironmentRequest, call: Call) -> Operation:
        """Serve Fleet.RebalanceEnvironment."""
        return await self._environments.rebalance(request, call.caller())

    async def DrainEnvironment(self, request: pb.DrainEnvironmentRequest, call: Call) -> Operation:
        """Serve Fleet.DrainEnvironment."""
        return await self._environments.drain(request, call.caller())

    async def RegisterNode(self, request: pb.RegisterNodeRequest, call: Call) -> pb.RegisterNodeResponse:
        """Serve Fleet.RegisterNode."""
        return await self._fleet.register_node(request, call.caller())

    async def GetNode(self, request: pb.GetNodeRequest, call: Call) -> pb.Node:
        """Serve Fleet.GetNode."""
        return self._fleet.get_node(request)

    async def ListNodes(self, request: pb.ListNodesRequest, call: Call) -> pb.ListNodesResponse:
        """Serve Fleet.ListNodes."""
        return self._fleet.list_nodes(request)

    async def WatchNodes(
        self, request: pb.WatchNodesRequest, call: Call
    ) -> AsyncIterator[pb.WatchNodesResponse]:
        """Serve Fleet.WatchNodes."""
        async for message in watch_nodes(self._store, request):
            yield message

    async def CordonNode(self, request: pb.CordonNodeRequest, call: Call) -> pb.Node:
        """Serve Fleet.CordonNode."""
        return await self._nodes.cordon(request, call.caller())

    async def UncordonNode(self, request: pb.UncordonNodeRequest, call: Call) -> pb.Node:
        """Serve Fleet.UncordonNode."""
        return await self._nodes.uncordon(request, call.caller())

    async def DrainNode(self, request: pb.DrainNodeRequest, call: Call) -> Operation:
        """Serve Fleet.DrainNode."""
        return await self._nodes.drain(request, call.caller())

    async def DeleteNode(self, request: pb.DeleteNodeRequest, call: Call) -> Empty:
        """Serve Fleet.DeleteNode."""
        await self._nodes.delete(request, call.caller())
        return Empty()

    async def ExplainPlacement(
        self, request: pb.ExplainPlacementRequest, call: Call
    ) -> pb.ExplainPlacementResponse:
        """Serve Fleet.ExplainPlacement."""
        return explain_placement(self._store.mirror, request)

    async def CreateDatabaseServer(
        self, request: pb.CreateDatabaseServerRequest, call: Call
    ) -> pb.DatabaseServer:
        """Serve Fleet.CreateDatabaseServer."""
        return await self._servers.create(request, call.caller())

    async def GetDatabaseServer(self, request: pb.GetDatabaseServerRequest, call: Call) -> pb.DatabaseServer:
        """Serve Fleet.GetDatabaseServer."""
        return self._servers.get(request)

    async def ListDatabaseServers(
        self, request: pb.ListDatabaseServersRequest, call: Call
    ) -> pb.ListDatabaseServersResponse:
        """Serve Fleet.ListDatabaseServers."""
        return self._servers.list_servers(request)

    async def UpdateDatabaseServer(
        self, request: pb.UpdateDatabaseServerRequest, call: Call
    ) -> pb.DatabaseServer:
        """Serve Fleet.UpdateDatabaseServer."""
        return await self._servers.update(request, call.caller())

    async def DeleteDatabaseServer(self, request: pb.DeleteDatabaseServerRequest, call: Call) -> Empty:
        """Serve Fleet.DeleteDatabaseServer."""
        await self._servers.delete(request, call.caller())
        return Empty()

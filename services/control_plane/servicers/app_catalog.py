"""The AppCatalog service over the core."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.longrunning.operations_pb2 import Operation

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from services.control_plane.catalog.batches import BatchCommands
from services.control_plane.catalog.commands import AppCommands
from services.control_plane.catalog.queries import AppQueries
from services.control_plane.catalog.timelines import AppTimelines
from services.control_plane.nodes.tails import AppTails
from services.rpc.pipeline.call import Call


class CatalogServicer:
    """Serves AppCatalog."""

    def __init__(
        self,
        commands: AppCommands,
        batches: BatchCommands,
        queries: AppQueries,
        timelines: AppTimelines,
        tails: AppTails,
    ) -> None:
        self._commands = commands
        self._batches = batches
        self._queries = queries
        self._timelines = timelines
        self._tails = tails

    async def CreateApp(self, request: pb.CreateAppRequest, call: Call) -> Operation:
        """Serve AppCatalog.CreateApp."""
        return await self._commands.create(request, call.caller())

    async def GetApp(self, request: pb.GetAppRequest, call: Call) -> bytes:
        """Serve AppCatalog.GetApp."""
        return await self._queries.get(request, call)

    async def ListApps(self, request: pb.ListAppsRequest, call: Call) -> bytes:
        """Serve AppCatalog.ListApps."""
        return await self._queries.list_apps(request, call)

    async def UpdateApp(self, request: pb.UpdateAppRequest, call: Call) -> Operation:
        """Serve AppCatalog.UpdateApp."""
        return await self._commands.update(request, call.caller())

    async def DeleteApp(self, request: pb.DeleteAppRequest, call: Call) -> Operation:
        """Serve AppCatalog.DeleteApp."""
        return await self._commands.delete(request, call.caller())

    async def StartApp(self, request: pb.StartAppRequest, call: Call) -> Operation:
        """Serve AppCatalog.StartApp."""
        return await self._commands.start(request, call.caller())

    async def StopApp(self, request: pb.StopAppRequest, call: Call) -> Operation:
        """Serve AppCatalog.StopApp."""
        return await self._commands.stop(request, call.caller())

    async def RestartApp(self, request: pb.RestartAppRequest, call: Call) -> Operation:
        """Serve AppCatalog.RestartApp."""
        return await self._commands.restart(request, call.caller())

    async def RecoverApp(self, request: pb.RecoverAppRequest, call: Call) -> Operation:
        """Serve AppCatalog.RecoverApp."""
        return await self._commands.recover(request, call.caller())

    async def BatchCreateApps(self, request: pb.BatchCreateAppsRequest, call: Call) -> Operation:
        """Serve AppCatalog.BatchCreateApps."""
        return await self._batches.begin(request, call.caller())

    async def BatchUpdateApps(self, request: pb.BatchUpdateAppsRequest, call: Call) -> Operation:
        """Serve AppCatalog.BatchUpdateApps."""
        return await self._batches.begin(request, call.caller())

    async def BatchDeleteApps(self, request: pb.BatchDeleteAppsRequest, call: Call) -> Operation:
        """Serve AppCatalog.BatchDeleteApps."""
        return await self._batches.begin(request, call.caller())

    async def BatchStartApps(self, request: pb.BatchStartAppsRequest, call: Call) -> Operation:
        """Serve AppCatalog.BatchStartApps."""
        return await self._batches.begin(request, call.caller())

    async def BatchStopApps(self, request: pb.BatchStopAppsRequest, call: Call) -> Operation:
        """Serve AppCatalog.BatchStopApps."""
        return await self._batches.begin(request, call.caller())

    async def BatchRestartApps(self, request: pb.BatchRestartAppsRequest, call: Call) -> Operation:
        """Serve AppCatalog.BatchRestartApps."""
        return await self._batches.begin(request, call.caller())

    async def BatchMoveApps(self, request: pb.BatchMoveAppsRequest, call: Call) -> Operation:
        """Serve AppCatalog.BatchMoveApps."""
        return await self._batches.begin(request, call.caller())

    async def MoveApp(self, request: pb.MoveAppRequest, call: Call) -> Operation:
        """Serve AppCatalog.MoveApp."""
        return await self._commands.move(request, call.caller())

    async def WatchApps(
        self, request: pb.WatchAppsRequest, call: Call
    ) -> AsyncIterator[pb.WatchAppsResponse]:
        """Serve AppCatalog.WatchApps."""
        async for message in self._queries.watch(request):
            yield message

    async def TailAppLogs(
        self, request: pb.TailAppLogsRequest, call: Call
    ) -> AsyncIterator[pb.TailAppLogsResponse]:
        """Serve AppCatalog.TailAppLogs."""
        async for message in self._tails.tail(request):
            yield message

    async def ListAppEvents(self, request: pb.ListAppEventsRequest, call: Call) -> pb.ListAppEventsResponse:
        """Serve AppCatalog.ListAppEvents."""
        return await self._timelines.list_events(request, call.caller())

    async def WatchAppEvents(
        self, request: pb.WatchAppEventsRequest, call: Call
    ) -> AsyncIterator[pb.WatchAppEventsResponse]:
        """Serve AppCatalog.WatchAppEvents."""
        async for message in self._timelines.watch(request):
            yield message

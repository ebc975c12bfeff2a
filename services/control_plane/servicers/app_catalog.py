"""The AppCatalog service over the core."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from google.longrunning.operations_pb2 import Operation

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.catalog.v1.app_catalog_pb2_grpc import AppCatalogServicer
from services.control_plane.catalog.commands import AppCommands
from services.control_plane.catalog.queries import AppQueries
from services.control_plane.nodes.tails import AppTails
from services.control_plane.servicers.calls import caller_of


class CatalogServicer(AppCatalogServicer):
    """Serves AppCatalog."""

    def __init__(self, commands: AppCommands, queries: AppQueries, tails: AppTails) -> None:
        self._commands = commands
        self._queries = queries
        self._tails = tails

    async def CreateApp(self, request: pb.CreateAppRequest, context: Any) -> Operation:
        """Serve AppCatalog.CreateApp."""
        return await self._commands.create(request, caller_of(context))

    async def GetApp(self, request: pb.GetAppRequest, context: Any) -> pb.App:
        """Serve AppCatalog.GetApp."""
        return self._queries.get(request.name)

    async def ListApps(self, request: pb.ListAppsRequest, context: Any) -> pb.ListAppsResponse:
        """Serve AppCatalog.ListApps."""
        return await self._queries.list_apps(request, caller_of(context))

    async def UpdateApp(self, request: pb.UpdateAppRequest, context: Any) -> Operation:
        """Serve AppCatalog.UpdateApp."""
        return await self._commands.update(request, caller_of(context))

    async def DeleteApp(self, request: pb.DeleteAppRequest, context: Any) -> Operation:
        """Serve AppCatalog.DeleteApp."""
        return await self._commands.delete(request, caller_of(context))

    async def StartApp(self, request: pb.StartAppRequest, context: Any) -> Operation:
        """Serve AppCatalog.StartApp."""
        return await self._commands.start(request, caller_of(context))

    async def StopApp(self, request: pb.StopAppRequest, context: Any) -> Operation:
        """Serve AppCatalog.StopApp."""
        return await self._commands.stop(request, caller_of(context))

    async def RestartApp(self, request: pb.RestartAppRequest, context: Any) -> Operation:
        """Serve AppCatalog.RestartApp."""
        return await self._commands.restart(request, caller_of(context))

    async def WatchApps(
        self, request: pb.WatchAppsRequest, context: Any
    ) -> AsyncIterator[pb.WatchAppsResponse]:
        """Serve AppCatalog.WatchApps."""
        async for message in self._queries.watch(request):
            yield message

    async def TailAppLogs(
        self, request: pb.TailAppLogsRequest, context: Any
    ) -> AsyncIterator[pb.TailAppLogsResponse]:
        """Serve AppCatalog.TailAppLogs."""
        async for message in self._tails.tail(request):
            yield message

    async def ListAppEvents(self, request: pb.ListAppEventsRequest, context: Any) -> pb.ListAppEventsResponse:
        """Serve AppCatalog.ListAppEvents."""
        return await self._queries.events(request)

"""The DataCatalog service over the core."""

from __future__ import annotations

from google.longrunning.operations_pb2 import Operation

from appsupervisor.catalog.v1 import retained_data_pb2 as pb
from services.control_plane.catalog.retained_data import RetainedDataService
from services.rpc.pipeline.call import Call


class DataCatalogServicer:
    """Serves DataCatalog."""

    def __init__(self, retained_data: RetainedDataService) -> None:
        self._retained_data = retained_data

    async def GetRetainedData(self, request: pb.GetRetainedDataRequest, call: Call) -> pb.RetainedData:
        """Serve DataCatalog.GetRetainedData."""
        return self._retained_data.get(request)

    async def ListRetainedData(
        self, request: pb.ListRetainedDataRequest, call: Call
    ) -> pb.ListRetainedDataResponse:
        """Serve DataCatalog.ListRetainedData."""
        return await self._retained_data.list(request, call.caller())

    async def AttachRetainedData(self, request: pb.AttachRetainedDataRequest, call: Call) -> Operation:
        """Serve DataCatalog.AttachRetainedData."""
        return await self._retained_data.attach(request, call.caller())

    async def PurgeRetainedData(self, request: pb.PurgeRetainedDataRequest, call: Call) -> Operation:
        """Serve DataCatalog.PurgeRetainedData."""
        return await self._retained_data.purge(request, call.caller())

"""The google.longrunning.Operations service over the core."""

from __future__ import annotations

from typing import Any

from google.longrunning import operations_pb2 as pb
from google.longrunning.operations_pb2_grpc import OperationsServicer as GeneratedServicer
from google.protobuf.empty_pb2 import Empty

from services.control_plane.operations.service import LONGEST_WAIT, OperationService
from services.control_plane.servicers.calls import caller_of


class OperationsServicer(GeneratedServicer):  # type: ignore[misc]  # generated without types
    """Serves Operations."""

    def __init__(self, operations: OperationService) -> None:
        self._operations = operations

    async def GetOperation(self, request: pb.GetOperationRequest, context: Any) -> pb.Operation:
        """Serve Operations.GetOperation."""
        return self._operations.get(request.name)

    async def ListOperations(
        self, request: pb.ListOperationsRequest, context: Any
    ) -> pb.ListOperationsResponse:
        """Serve Operations.ListOperations."""
        return self._operations.list(request)

    async def WaitOperation(self, request: pb.WaitOperationRequest, context: Any) -> pb.Operation:
        """Serve Operations.WaitOperation."""
        return await self._operations.wait(request, caller_of(context, LONGEST_WAIT))

    async def CancelOperation(self, request: pb.CancelOperationRequest, context: Any) -> Empty:
        """Serve Operations.CancelOperation."""
        await self._operations.cancel(request, caller_of(context))
        return Empty()

    async def DeleteOperation(self, request: pb.DeleteOperationRequest, context: Any) -> Empty:
        """Serve Operations.DeleteOperation."""
        await self._operations.delete(request, caller_of(context))
        return Empty()

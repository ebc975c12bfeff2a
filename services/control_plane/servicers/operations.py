"""The google.longrunning.Operations service over the core."""

from __future__ import annotations

from google.longrunning import operations_pb2 as pb
from google.protobuf.empty_pb2 import Empty

from services.control_plane.operations.service import LONGEST_WAIT, OperationService
from services.rpc.pipeline.call import Call


class OperationsServicer:
    """Serves Operations."""

    def __init__(self, operations: OperationService) -> None:
        self._operations = operations

    async def GetOperation(self, request: pb.GetOperationRequest, call: Call) -> pb.Operation:
        """Serve Operations.GetOperation."""
        return self._operations.get(request.name)

    async def ListOperations(
        self, request: pb.ListOperationsRequest, call: Call
    ) -> pb.ListOperationsResponse:
        """Serve Operations.ListOperations."""
        return await self._operations.list(request, call.caller())

    async def WaitOperation(self, request: pb.WaitOperationRequest, call: Call) -> pb.Operation:
        """Serve Operations.WaitOperation."""
        return await self._operations.wait(request, call.caller(LONGEST_WAIT))

    async def CancelOperation(self, request: pb.CancelOperationRequest, call: Call) -> Empty:
        """Serve Operations.CancelOperation."""
        await self._operations.cancel(request, call.caller())
        return Empty()

    async def DeleteOperation(self, request: pb.DeleteOperationRequest, call: Call) -> Empty:
        """Serve Operations.DeleteOperation."""
        await self._operations.delete(request, call.caller())
        return Empty()

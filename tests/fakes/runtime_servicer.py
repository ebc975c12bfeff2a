"""RuntimeEnvironment of a fake node over gRPC: each call is recorded and passed on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from appsupervisor.runtime.v1.runtime_environment_pb2_grpc import RuntimeEnvironmentServicer
from runtime_node import rules
from runtime_node.batches import one_by_one
from runtime_node.instances.feed import lease_message
from services.rpc.errors import SupervisorError

if TYPE_CHECKING:
    from tests.fakes.runtime_node import FakeNode


class FakeServicer(RuntimeEnvironmentServicer):
    """Records each call and passes it on."""

    def __init__(self, node: FakeNode) -> None:
        self._node = node

    def _take(self, method: str, request: Any) -> None:
        self._node.calls.append((method, request))
        if self._node.refuse is not None:
            raise self._node.refuse

    async def GetRuntimeStatus(self, request: pb.GetRuntimeStatusRequest, context: Any) -> pb.RuntimeStatus:  # noqa: N802
        self._take("GetRuntimeStatus", request)
        return self._node.status()

    async def RenewLease(self, request: pb.RenewLeaseRequest, context: Any) -> pb.RenewLeaseResponse:  # noqa: N802
        if self._node.refuse is not None:
            raise self._node.refuse
        self._node.answered_renewals += 1
        return pb.RenewLeaseResponse(lease=self._node.renew_lease(request))

    async def HoldLease(  # noqa: N802
        self, requests: AsyncIterator[pb.HoldLeaseRequest], context: Any
    ) -> pb.HoldLeaseResponse:
        self._node.lease_streams += 1
        if not self._node.knows_lease_streams:
            raise SupervisorError("METHOD_NOT_FOUND", "There is no method 'HoldLease' here.")
        lease = lease_message(self._node.lease)
        async for request in requests:
            if self._node.refuse is not None:
                raise self._node.refuse
            lease = self._node.renew_lease(request.renewal)
        return pb.HoldLeaseResponse(lease=lease)

    async def StartInstance(self, request: pb.StartInstanceRequest, context: Any) -> pb.StartInstanceResponse:  # noqa: N802
        return pb.StartInstanceResponse(instance=await self._start(request))

    async def StopInstance(self, request: pb.StopInstanceRequest, context: Any) -> pb.StopInstanceResponse:  # noqa: N802
        return pb.StopInstanceResponse(instance=await self._stop(request))

    async def BatchStartInstances(  # noqa: N802
        self, request: pb.BatchStartInstancesRequest, context: Any
    ) -> pb.BatchStartInstancesResponse:
        self._take_batch("BatchStartInstances", request)
        return pb.BatchStartInstancesResponse(
            results=await one_by_one(request.requests, self._start, context)
        )

    async def BatchStopInstances(  # noqa: N802
        self, request: pb.BatchStopInstancesRequest, context: Any
    ) -> pb.BatchStopInstancesResponse:
        self._take_batch("BatchStopInstances", request)
        return pb.BatchStopInstancesResponse(results=await one_by_one(request.requests, self._stop, context))

    def _take_batch(self, method: str, request: Any) -> None:
        self._node.calls.append((method, request))
        if not self._node.knows_batches:
            raise SupervisorError("METHOD_NOT_FOUND", f"There is no method {method!r} here.")
        rules.check_batch(len(request.requests))

    async def _start(self, request: pb.StartInstanceRequest) -> pb.Instance:
        # Also of a batch: a test looks for what was asked for, whichever way it came.
        self._take("StartInstance", request)
        return self._node.start_instance(
            request.spec, start_now=request.start_now, term=request.term, incarnation=request.incarnation
        )

    async def _stop(self, request: pb.StopInstanceRequest) -> pb.Instance | None:
        self._take("StopInstance", request)
        return self._node.stop_instance(request)

    async def RestartInstance(  # noqa: N802
        self, request: pb.RestartInstanceRequest, context: Any
    ) -> pb.RestartInstanceResponse:
        self._take("RestartInstance", request)
        return pb.RestartInstanceResponse(instance=self._node.restart_instance(request))

    async def GetInstance(self, request: pb.GetInstanceRequest, context: Any) -> pb.Instance:  # noqa: N802
        self._take("GetInstance", request)
        return self._node.get_instance(request.name)

    async def ListInstances(self, request: pb.ListInstancesRequest, context: Any) -> pb.ListInstancesResponse:  # noqa: N802
        self._take("ListInstances", request)
        await self._node.lists.wait()
        return self._node.list_instances(request)

    async def ListDataDirectories(  # noqa: N802
        self, request: pb.ListDataDirectoriesRequest, context: Any
    ) -> pb.ListDataDirectoriesResponse:
        self._take("ListDataDirectories", request)
        return self._node.list_data_directories(request)

    async def ClaimDataDirectory(  # noqa: N802
        self, request: pb.ClaimDataDirectoryRequest, context: Any
    ) -> pb.DataDirectory:
        self._take("ClaimDataDirectory", request)
        return self._node.claim_data_directory(request)

    async def WatchInstances(  # noqa: N802
        self, request: pb.WatchInstancesRequest, context: Any
    ) -> AsyncIterator[pb.WatchInstancesResponse]:
        self._node.calls.append(("WatchInstances", request))
        self._node.streams += 1
        try:
            async for message in self._node.feed.watch(request):
                yield message
        finally:
            self._node.streams -= 1
            self._node.last_stream_end = self._node.time()

    async def TailLogs(  # noqa: N802
        self, request: pb.TailLogsRequest, context: Any
    ) -> AsyncIterator[pb.TailLogsResponse]:
        self._take("TailLogs", request)
        async for message in self._node.logs.tail(request):
            yield message

"""RuntimeEnvironment over gRPC: reads requests, calls the host, fills responses. Decides nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from appsupervisor.runtime.v1.runtime_environment_pb2_grpc import RuntimeEnvironmentServicer
from runtime_node.batches import at_once, one_by_one
from runtime_node.instances.data_directories import DataDirectories
from runtime_node.instances.feed import InstanceFeed, lease_message
from runtime_node.instances.host import InstanceHost
from runtime_node.instances.lease_keeper import LeaseKeeper
from runtime_node.logs.tail import Tails
from runtime_node.rules import check_batch, check_heartbeat
from services.spec.scalars import seconds

DEFAULT_HEARTBEAT = 1.0


class RuntimeServicer(RuntimeEnvironmentServicer):
    """Serves one node's instances. `status` tells what the node is and carries."""

    def __init__(
        self,
        host: InstanceHost,
        directories: DataDirectories,
        feed: InstanceFeed,
        tails: Tails,
        status: Callable[[], pb.RuntimeStatus],
        keeper: LeaseKeeper,
    ) -> None:
        self._host = host
        self._keeper = keeper
        self._lease = keeper.lease
        self._directories = directories
        self._feed = feed
        self._tails = tails
        self._status = status

    async def GetRuntimeStatus(self, request: pb.GetRuntimeStatusRequest, context: Any) -> pb.RuntimeStatus:
        """Return who this node is and what it carries."""
        return self._status()

    async def RenewLease(self, request: pb.RenewLeaseRequest, context: Any) -> pb.RenewLeaseResponse:
        """Hold the lease for longer."""
        self._keeper.renew(request)
        return pb.RenewLeaseResponse(lease=lease_message(self._lease))

    async def HoldLease(
        self, requests: AsyncIterator[pb.HoldLeaseRequest], context: Any
    ) -> pb.HoldLeaseResponse:
        """Hold the lease for longer with each message."""
        async for request in requests:
            self._keeper.renew(request.renewal)
        return pb.HoldLeaseResponse(lease=lease_message(self._lease))

    async def StartInstance(self, request: pb.StartInstanceRequest, context: Any) -> pb.StartInstanceResponse:
        """Accept an instance."""
        return pb.StartInstanceResponse(instance=await self._start(request))

    async def StopInstance(self, request: pb.StopInstanceRequest, context: Any) -> pb.StopInstanceResponse:
        """Begin to stop an instance."""
        return pb.StopInstanceResponse(instance=await self._stop(request))

    async def BatchStartInstances(
        self, request: pb.BatchStartInstancesRequest, context: Any
    ) -> pb.BatchStartInstancesResponse:
        """Accept instances, each whatever comes of the others."""
        check_batch(len(request.requests))
        results = await one_by_one(request.requests, self._start, context)
        return pb.BatchStartInstancesResponse(results=results)

    async def BatchStopInstances(
        self, request: pb.BatchStopInstancesRequest, context: Any
    ) -> pb.BatchStopInstancesResponse:
        """Begin to stop instances, each whatever comes of the others."""
        check_batch(len(request.requests))
        results = await at_once(request.requests, self._stop, context)
        return pb.BatchStopInstancesResponse(results=results)

    async def RestartInstance(
        self, request: pb.RestartInstanceRequest, context: Any
    ) -> pb.RestartInstanceResponse:
        """Begin to restart an instance."""
        self._lease.heed(request.term)
        instance = self._host.restart(request.name, request.epoch, request.request_id)
        return pb.RestartInstanceResponse(instance=instance)

    async def GetInstance(self, request: pb.GetInstanceRequest, context: Any) -> pb.Instance:
        """Return one instance."""
        return await self._host.get(request.name)

    async def ListInstances(self, request: pb.ListInstancesRequest, context: Any) -> pb.ListInstancesResponse:
        """Return a page of instances."""
        page, token = await self._host.list(request.parent, request.page_size, request.page_token)
        return pb.ListInstancesResponse(instances=page, next_page_token=token)

    async def WatchInstances(
        self, request: pb.WatchInstancesRequest, context: Any
    ) -> AsyncIterator[pb.WatchInstancesResponse]:
        """Stream instances, changes and heartbeats."""
        self._lease.heed(request.term)
        heartbeat = DEFAULT_HEARTBEAT
        if request.HasField("heartbeat_interval"):
            check_heartbeat(request.heartbeat_interval)
            heartbeat = seconds(request.heartbeat_interval)
        async for message in self._feed.watch(request.resume_token, heartbeat, batched=request.batched):
            yield message

    async def TailLogs(self, request: pb.TailLogsRequest, context: Any) -> AsyncIterator[pb.TailLogsResponse]:
        """Stream what an app has logged and printed."""
        async for message in self._tails.tail(request):
            yield message

    async def ListDataDirectories(
        self, request: pb.ListDataDirectoriesRequest, context: Any
    ) -> pb.ListDataDirectoriesResponse:
        """Return a page of data directories."""
        page, token = await self._directories.list(request)
        return pb.ListDataDirectoriesResponse(data_directories=page, next_page_token=token)

    async def ClaimDataDirectory(
        self, request: pb.ClaimDataDirectoryRequest, context: Any
    ) -> pb.DataDirectory:
        """Hand a data directory over to another app."""
        self._lease.heed(request.term)
        return await self._directories.claim(request)

    async def _start(self, request: pb.StartInstanceRequest) -> pb.Instance:
        self._lease.heed(request.term, request.incarnation)
        return self._host.start(request.spec, start_now=request.start_now)

    async def _stop(self, request: pb.StopInstanceRequest) -> pb.Instance | None:
        self._lease.heed(request.term)
        return await self._host.stop(request)

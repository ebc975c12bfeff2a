"""Calls one node's RuntimeEnvironment: a deadline on each call, bounded retries, typed errors.

Everything above sees `SupervisorError`s only: NODE_UNREACHABLE when the node did not answer, the
node's own reason when it refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TypeAlias, TypeVar

import grpc
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from appsupervisor.errors.v1.error_reason_pb2 import ErrorReason
from appsupervisor.runtime.v1 import data_transfers_pb2 as transfers
from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from appsupervisor.runtime.v1.data_transfers_pb2_grpc import DataTransfersStub
from appsupervisor.runtime.v1.runtime_environment_pb2_grpc import RuntimeEnvironmentStub
from services.control_plane.nodes.lease_stream import LeaseStream
from services.control_plane.nodes.silence import Silence
from services.control_plane.nodes.together import Again, Outcome, Together
from services.rpc.errors import SupervisorError
from services.rpc.server import UNMEASURED
from services.rpc.status import info_in, info_of

T = TypeVar("T")
BatchResponse: TypeAlias = pb.BatchStartInstancesResponse | pb.BatchStopInstancesResponse

CALL_SECONDS = 3.0
"""Deadline of one try of a unary call: a node answers at once or is in trouble."""

OFFER_SECONDS = 30.0
"""Deadline of an offer of data: its directory is walked first."""

FREEZE_SECONDS = 8.0
"""Deadline of a freeze, beside what the app may take to stop."""

REST_SECONDS = 60.0
"""Deadline of the rest of data: then the app has been down for too long, and goes on where it was."""

RENEW_SECONDS = 2.0
"""Deadline of a renewal of a lease: then another one is due."""

HEARTBEAT_SHARE = 0.4
"""Of the silence after which a stream counts as broken: one heartbeat may be missing."""

TRIES = 3
"""Tries of one call; the reconciler comes back for what is still wanted after these."""

TAIL_SILENCE = 6.0
"""Silence after which a stream of log lines counts as broken: a node says something every 2 s."""

RETRYABLE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
RETRYABLE_NUMBERS = frozenset(code.value[0] for code in RETRYABLE)

OPTIONS = (
    # A node that went silent is found out within 4 s, also when no packet comes back.
    ("grpc.keepalive_time_ms", 2_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.initial_reconnect_backoff_ms", 100),
    *UNMEASURED,
    # So what may be under way to here is this much instead: a snapshot of all that a node has is long.
    ("grpc.http2.lookahead_bytes", 1024 * 1024),
)


class NodeClient:
    """A client of one node. Belongs to the loop it was made on; cancelling a call cancels its RPC."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        self._stub = RuntimeEnvironmentStub(self._channel)
        self._transfers = DataTransfersStub(self._channel)
        self._lease_stream = LeaseStream(self._stub.HoldLease)
        self._starts = Together(self._start_alone, self._start_together, self._closed)
        self._stops = Together(self._stop_alone, self._stop_together, self._closed)

    async def status(self) -> pb.RuntimeStatus:
        """Return who the node is and which life of it this is; one try."""
        try:
            return await self._stub.GetRuntimeStatus(pb.GetRuntimeStatusRequest(), timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as failure:
            raise self._translate(failure) from None

    async def start(self, request: pb.StartInstanceRequest) -> pb.Instance:
        """Start an instance, in one call with others that are started now; safe to repeat."""
        return await self._starts.call(request)

    async def stop(self, request: pb.StopInstanceRequest) -> pb.Instance | None:
        """Stop an instance, as `start`; None when it isn't there. Safe to repeat."""
        return await self._stops.call(request)

    async def renew(self, request: pb.RenewLeaseRequest, *, answered: bool = True) -> pb.Lease | None:
        """Renew the node's lease; one try, for the next heartbeat brings another.

        Returns the lease, as the node has answered; None if it need not be `answered`, and was not.
        """
        lease = self._lease_stream
        try:
            if lease.is_open and not answered:
                await lease.send(request, RENEW_SECONDS)
                return None
            # Answered, as the first of a stream: only then is it known whether what follows can be taken.
            await lease.open()
            return (await self._stub.RenewLease(request, timeout=RENEW_SECONDS)).lease
        except TimeoutError:
            raise self._unreachable("it does not read what it is sent") from None
        except grpc.aio.AioRpcError as failure:
            raise self._translate(failure) from None

    @property
    def streams_renewals(self) -> bool:
        """Whether the next renewal that names no fences is a message of a stream."""
        return self._lease_stream.is_open

    async def watch(self, silence: float, term: int = 0) -> AsyncIterator[pb.WatchInstancesResponse]:
        """Yield the node's messages until it is silent for `silence` seconds or the stream breaks.

        Always ends with SupervisorError NODE_UNREACHABLE, or the node's own refusal.
        """
        request = pb.WatchInstancesRequest(term=term, batched=True)
        request.heartbeat_interval.FromMilliseconds(int(silence * 1000 * HEARTBEAT_SHARE))
        call = self._stub.WatchInstances(request)
        silent = Silence(silence, call.cancel)
        try:
            while True:
                message = await call.read()
                silent.heard()
                if not isinstance(message, pb.WatchInstancesResponse):
                    raise self._unreachable("it ended its stream")
                yield message
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not silent.is_over or (task is not None and task.cancelling()):
                raise
            raise self._unreachable(f"it was silent for {silence:g} s") from None
        except grpc.aio.AioRpcError as failure:
            raise self._translate(failure) from None
        finally:
            silent.end()
            call.cancel()
            self._lease_stream.end()  # a node that shuts down would wait for its end

    async def tail_logs(self, request: pb.TailLogsRequest) -> AsyncGenerator[pb.TailLogsResponse, None]:
        """Yield what the node tells of an app's log, until it has no more.

        Raises SupervisorError NODE_UNREACHABLE when the stream breaks or is silent for TAIL_SILENCE
        seconds, or the node's own refusal. Cancelling, or leaving the iteration, cancels the call.
        """
        call = self._stub.TailLogs(request)
        try:
            while True:
                message = await asyncio.wait_for(call.read(), TAIL_SILENCE)
                if not isinstance(message, pb.TailLogsResponse):
                    return
                yield message
        except TimeoutError:
            raise self._unreachable(f"it was silent for {TAIL_SILENCE:g} s") from None
        except grpc.aio.AioRpcError as failure:
            raise self._translate(failure) from None
        finally:
            call.cancel()

    async def instances(self, parent: str, seconds: float) -> AsyncIterator[pb.Instance]:
        """Yield an app's instances, or all (`apps/-`), page by page, each within `seconds`; one try."""
        request = pb.ListInstancesRequest(parent=parent, page_size=1000)
        while True:
            try:
                page = await self._stub.ListInstances(request, timeout=seconds)
            except grpc.aio.AioRpcError as failure:
                raise self._translate(failure) from None
            for instance in page.instances:
                yield instance
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def directories(self, parent: str) -> AsyncIterator[pb.DataDirectory]:
        """Yield the data directories of an app, or of all (`apps/-`), page by page."""
        request = pb.ListDataDirectoriesRequest(parent=parent, page_size=1000)
        while True:
            page = await self._retry(lambda: self._stub.ListDataDirectories(request, timeout=CALL_SECONDS))
            for directory in page.data_directories:
                yield directory
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def claim(self, request: pb.ClaimDataDirectoryRequest) -> pb.DataDirectory:
        """Have a data directory handed over to another app; safe to repeat."""
        return await self._retry(lambda: self._stub.ClaimDataDirectory(request, timeout=CALL_SECONDS))

    async def offer(self, request: transfers.OfferDataRequest) -> transfers.OfferDataResponse:
        """Have an app's data offered to who has a ticket; safe to repeat, one try."""
        return await self._once(self._transfers.OfferData(request, timeout=OFFER_SECONDS))

    async def freeze(
        self, request: transfers.FreezeDataRequest, stop_seconds: float
    ) -> transfers.FreezeDataResponse:
        """Have an app stopped whose data is offered, which may take its time; one try."""
        return await self._once(self._transfers.FreezeData(request, timeout=stop_seconds + FREEZE_SECONDS))

    async def receive(
        self, request: transfers.ReceiveDataRequest, *, rest: bool = False
    ) -> transfers.ReceiveDataResponse:
        """Have an app's data received, or its `rest` to the end; one try."""
        return await self._once(
            self._transfers.ReceiveData(request, timeout=REST_SECONDS if rest else CALL_SECONDS)
        )

    async def release(self, request: transfers.ReleaseDataRequest) -> transfers.ReleaseDataResponse:
        """End an offer of an app's data; safe to repeat."""
        return await self._retry(lambda: self._transfers.ReleaseData(request, timeout=CALL_SECONDS))

    async def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        await asyncio.gather(self._starts.close(), self._stops.close())
        await self._channel.close(None)

    async def _once(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except grpc.aio.AioRpcError as failure:
            raise self._translate(failure) from None

    async def _start_alone(self, request: pb.StartInstanceRequest) -> pb.Instance:
        response = await self._retry(lambda: self._stub.StartInstance(request, timeout=CALL_SECONDS))
        return response.instance

    async def _stop_alone(self, request: pb.StopInstanceRequest) -> pb.Instance | None:
        response = await self._retry(lambda: self._stub.StopInstance(request, timeout=CALL_SECONDS))
        return response.instance if response.HasField("instance") else None

    async def _start_together(
        self, requests: list[pb.StartInstanceRequest]
    ) -> list[Outcome[pb.Instance]] | None:
        batch = pb.BatchStartInstancesRequest(requests=requests)
        results = await self._results(lambda: self._stub.BatchStartInstances(batch, timeout=CALL_SECONDS))
        if results is None:
            return None
        return [self._refusal(it) or it.instance for it in results]

    async def _stop_together(
        self, requests: list[pb.StopInstanceRequest]
    ) -> list[Outcome[pb.Instance | None]] | None:
        batch = pb.BatchStopInstancesRequest(requests=requests)
        results = await self._results(lambda: self._stub.BatchStopInstances(batch, timeout=CALL_SECONDS))
        if results is None:
            return None
        return [self._refusal(it) or (it.instance if it.HasField("instance") else None) for it in results]

    async def _results(
        self, call: Callable[[], Awaitable[BatchResponse]]
    ) -> Sequence[pb.InstanceResult] | None:
        """Return what came of a batch; None of a node of a version that knows none."""
        try:
            return (await self._retry(call)).results
        except SupervisorError as refusal:
            if refusal.reason == "METHOD_NOT_FOUND":
                return None
            raise

    def _refusal(self, result: pb.InstanceResult) -> SupervisorError | Again | None:
        """Return why a request of a batch was refused, or that it is to be tried again on its own."""
        if not result.HasField("status"):
            return None
        if result.status.code in RETRYABLE_NUMBERS:
            return Again.ALONE
        return self._told(*info_in(result.status), result.status.message)

    def _closed(self) -> SupervisorError:
        return self._unreachable("it is not followed any more")

    async def _retry(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            return await call()
        except grpc.aio.AioRpcError as failure:
            if not _is_retryable(failure):
                raise self._translate(failure) from None
            failures = [failure]

        async def attempt() -> T:
            # What was tried above counts as the first try: a retrying costs as much as a call that succeeds.
            if failures:
                raise failures.pop()
            return await call()

        retrying = AsyncRetrying(
            stop=stop_after_attempt(TRIES),
            wait=wait_random_exponential(multiplier=0.05, max=1),
            retry=retry_if_exception(_is_retryable),
            reraise=True,
        )
        try:
            return await retrying(attempt)
        except grpc.aio.AioRpcError as failure:
            raise self._translate(failure) from None

    def _translate(self, failure: grpc.aio.AioRpcError) -> SupervisorError:
        if failure.code() is grpc.StatusCode.UNIMPLEMENTED:
            return SupervisorError("METHOD_NOT_FOUND", failure.details() or "It has no such method.")
        return self._told(*info_of(failure), failure.details() or failure.code().name)

    def _told(self, reason: str, metadata: Mapping[str, str], message: str) -> SupervisorError:
        """Return the error for what a node has told of a refusal."""
        if reason in ErrorReason.keys() and reason not in ("NODE_DRAINING", "SHUTTING_DOWN"):  # noqa: SIM118 - an enum, not a dict
            return SupervisorError(reason, message or reason, metadata=dict(metadata))
        return self._unreachable(message)

    def _unreachable(self, why: str) -> SupervisorError:
        return SupervisorError(
            "NODE_UNREACHABLE",
            f"The node at {self._address} cannot be heard: {why}.",
            metadata={"address": self._address, "why": why},
        )


def _is_retryable(failure: BaseException) -> bool:
    return isinstance(failure, grpc.aio.AioRpcError) and failure.code() in RETRYABLE

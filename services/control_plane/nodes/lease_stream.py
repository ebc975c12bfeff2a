"""The stream on which one node is told again and again that its lease lasts longer: HoldLease.

Nothing tells that what was sent has come. Whoever has to know it calls RenewLease.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeAlias

import grpc

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb

HoldLeaseCall: TypeAlias = "grpc.aio.StreamUnaryCall[pb.HoldLeaseRequest, pb.HoldLeaseResponse]"


class LeaseStream:
    """Of one client. Lives on its loop."""

    def __init__(self, begin: Callable[[], HoldLeaseCall]) -> None:
        """`begin` begins the call."""
        self._begin = begin
        self._call: HoldLeaseCall | None = None

    @property
    def is_open(self) -> bool:
        """Whether something can be sent. Of a node of an earlier version it never is for long."""
        return self._call is not None and not self._call.done()

    async def open(self) -> None:
        """Begin the stream, unless it is open, or the node has said that it knows none."""
        if self.is_open:
            return
        if self._call is not None and await self._call.code() is grpc.StatusCode.UNIMPLEMENTED:
            return
        self._call = self._begin()

    async def send(self, renewal: pb.RenewLeaseRequest, seconds: float) -> None:
        """Send one renewal within so many seconds, else end the stream.

        Raises AioRpcError if it breaks, or was ended by a refusal, and TimeoutError.
        """
        assert self._call is not None
        async with asyncio.timeout(seconds):
            await self._call.write(pb.HoldLeaseRequest(renewal=renewal))

    def end(self) -> None:
        """End the stream: the node is not heard any more. It can be begun again."""
        if self._call is not None:
            self._call.cancel()

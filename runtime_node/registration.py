"""Tells the control plane that this node is there, until somebody watches it; then only what has changed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Protocol

import grpc
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    wait_random,
    wait_random_exponential,
)

from appsupervisor.fleet.v1 import fleet_pb2
from appsupervisor.fleet.v1.fleet_pb2_grpc import FleetStub
from runtime_node.instances.feed import InstanceFeed
from services.rpc.status import reason_of
from services.spec.scalars import seconds

log = logging.getLogger("runtime_node.registration")

CALL_TIMEOUT = 5.0
DEFAULT_INTERVAL = 10.0
MAX_WAIT = 10.0
PATIENCE = 5.0
"""Seconds for which a control plane that does not answer yet is no news: both are often started at once."""
FIRST_PAUSES = wait_random(0.05, 0.4)
"""Seconds between tries for so long: growing pauses would cost who starts both several seconds."""
LATER_PAUSES = wait_random_exponential(multiplier=0.5, max=MAX_WAIT)


class Standing(Protocol):
    """Hears whether the node has the name that it registers."""

    def confirmed(self) -> None:
        """The node is registered under its name."""
        ...

    def refused(self, reason: str, message: str) -> None:
        """The node was refused; `reason` is an `ErrorReason`, or the name of a gRPC code."""
        ...


class Registration:
    """Registers a node and keeps it registered. `request` is what it says of itself.

    `control_plane` is `host:port`, or several of one catalog's, separated by commas: any of them will do, and
    the next one is asked where one fails.
    """

    def __init__(
        self,
        control_plane: str,
        request: Callable[[], fleet_pb2.RegisterNodeRequest],
        feed: InstanceFeed,
        standing: Standing,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._control_planes = control_plane.split(",")
        self._turn = 0
        self._request = request
        self._feed = feed
        self._standing = standing
        self._sleep = sleep
        self._told = ""
        self._registered: fleet_pb2.RegisterNodeRequest | None = None
        self._interval = DEFAULT_INTERVAL

    async def run(self) -> None:
        """Register; again when nobody watched for an interval, and when the node is not as told. Endless."""
        async with AsyncExitStack() as stack:
            # A channel each: gRPC's own list of addresses takes no host names, and stays with one that
            # answers, though it may only ever answer that it cannot.
            channels = [
                grpc.aio.insecure_channel(
                    address,
                    # A control plane that was away is found again in seconds, not in the default two minutes.
                    options=[
                        ("grpc.max_reconnect_backoff_ms", 2000),
                        ("grpc.initial_reconnect_backoff_ms", 200),
                    ],
                )
                for address in self._control_planes
            ]
            fleets = [FleetStub(await stack.enter_async_context(channel)) for channel in channels]
            while True:
                await self._register(fleets)
                silent_since = self._feed.clock()
                await self._sleep(self._interval)
                # What the node tells of itself may be another by now, as the code that it has.
                while self._request() == self._registered and (
                    self._feed.streams or self._silence(silent_since) < self._interval
                ):
                    await self._sleep(max(0.1, self._interval - self._silence(silent_since)))

    def _silence(self, since: float) -> float:
        if self._feed.streams:
            return 0.0
        return self._feed.clock() - max(since, self._feed.last_stream_end)

    @property
    def _control_plane(self) -> str:
        return self._control_planes[self._turn % len(self._control_planes)]

    async def _register(self, fleets: list[Any]) -> None:
        async for attempt in AsyncRetrying(
            # Every refusal can end: the environment is created, the name's former holder falls silent.
            retry=retry_if_exception_type(grpc.aio.AioRpcError),
            wait=_pause,
            before_sleep=self._tell_failure,
            sleep=self._sleep,
        ):
            with attempt:
                fleet = fleets[self._turn % len(fleets)]
                request = self._request()
                call: Any = fleet.RegisterNode(request, timeout=CALL_TIMEOUT)
                response: fleet_pb2.RegisterNodeResponse = await call
                self._registered = request
        interval = seconds(response.registration_interval)
        self._interval = interval if interval > 0 else DEFAULT_INTERVAL
        self._told = ""
        self._standing.confirmed()
        log.info(
            "registered",
            extra={
                "action": "node.registered",
                "node": response.node.name,
                "control_plane": self._control_plane,
            },
        )

    def _tell_failure(self, state: RetryCallState) -> None:
        """Log a failure once, and again only when it is another one; who is just starting is waited for."""
        fault = state.outcome.exception() if state.outcome is not None else None
        if not isinstance(fault, grpc.aio.AioRpcError):
            return
        reason = reason_of(fault) or fault.code().name
        self._standing.refused(reason, fault.details() or "")
        starting = (
            fault.code() == grpc.StatusCode.UNAVAILABLE and (state.seconds_since_start or 0.0) < PATIENCE
        )
        failed = self._control_plane
        self._turn += 1
        if reason == self._told or starting:
            return
        self._told = reason
        log.warning(
            "%s", fault.details() or "the control plane cannot be reached",
            extra={
                "action": "node.not_registered", "reason": reason, "control_plane": failed,
            },
        )  # fmt: skip


def _pause(state: RetryCallState) -> float:
    starting = (state.seconds_since_start or 0.0) < PATIENCE
    return FIRST_PAUSES(state) if starting else LATER_PAUSES(state)

"""The life of a gRPC server: services, reflection, health and channelz, from listening to draining."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_channelz.v1 import channelz, channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.rpc.background import kept_running
from services.rpc.health import HealthServicer, ResourceHealth
from services.rpc.pipeline.methods import Methods
from services.rpc.pipeline.pipeline import Pipeline
from services.rpc.reflection import ReflectionServicer
from services.rpc.reset_floods import FloodGuard

log = logging.getLogger("appsupervisor.rpc")

MAX_REQUEST_BYTES = 1024 * 1024
"""Largest request; an app with every field at its bound has a third of it. gRPC refuses larger ones."""

STREAMS_PER_CONNECTION = 1000
"""Calls and streams of one connection. It bounds what a client that opens and resets without end (rapid
reset) has waiting before everyone else's calls: with 100 they take 25 ms meanwhile, with 1,000 a third of a
second, without a bound most of them fail. But gRPC refuses some calls of an honest client at the bound, too.
"""

MAX_CALLS = 8192
"""Calls begun, those included whose request has not come yet; beyond it gRPC refuses without details."""

OPTIONS = (
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION),
    # Calls that wait for this process: beyond it gRPC drops some of everybody's at random. 1,000 by default.
    ("grpc.server.max_pending_requests", 4 * 4096),
    ("grpc.server.max_pending_requests_hard_limit", 4 * 8192),
    # What a stream that is not read holds in the transport, beside the message that is being written.
    ("grpc.http2.write_buffer_size", 16 * 1024),
    ("grpc.so_reuseport", 0),
    # A watcher behind a silent network is found out; a client may ping every second, as a control plane does
    # every 2 s: a node whose loop hangs must not be sent away by its own transport on top of it.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.keepalive_permit_without_calls", 1),
)

UNMEASURED = (("grpc.http2.bdp_probe", 0),)
"""Of a connection on which small messages come all the time: gRPC would send a ping after nearly each, to
measure how much may be under way, and that costs both sides as much as the message."""


@dataclass(frozen=True, slots=True)
class Service:
    """One service to serve: its full name, the generated registering function, its servicer."""

    name: str
    register: Callable[[Any, Any], None]
    servicer: object


class RpcServer:
    """A grpc.aio server on the running loop, on which every method runs: none may block.

    Health checks of names with a slash are answered by `resources`.
    """

    def __init__(
        self,
        services: Sequence[Service],
        resources: ResourceHealth | None = None,
        *,
        pipeline: Pipeline | None = None,
        max_request_bytes: int = MAX_REQUEST_BYTES,
        is_node: bool = False,
    ) -> None:
        """`is_node`: who calls is a control plane, with small messages all the time."""
        self._services = services
        self.pipeline = pipeline or Pipeline()
        self.methods = Methods(self.pipeline)
        options: dict[str, int] = dict(OPTIONS + UNMEASURED if is_node else OPTIONS)
        options["grpc.max_receive_message_length"] = max_request_bytes
        self._server = grpc.aio.server(options=tuple(options.items()), maximum_concurrent_rpcs=MAX_CALLS)
        self._guard: asyncio.Task[None] | None = None
        self._health = HealthServicer(resources)
        for service in services:
            service.register(service.servicer, self.methods)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.methods)
        channelz_pb2_grpc.add_ChannelzServicer_to_server(
            channelz.aio.ChannelzServicer(), self.methods.foreign
        )
        names = [service.name for service in services]
        names += [
            health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
            channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name,
        ]
        ReflectionServicer(names).add_to(self.methods)

    async def start(self, listen: str) -> int:
        """Listen on `host:port` (port 0: any free one), serve, and return the port.

        Raises OSError when the address cannot be bound.
        """
        self._server.add_generic_rpc_handlers((self.methods,))
        try:
            port = self._server.add_insecure_port(listen)
        except RuntimeError as refused:
            raise OSError(f"cannot listen on {listen}: the address is in use or not ours") from refused
        await self._server.start()
        guard = FloodGuard(self.pipeline.admission.bounds.resets_per_second)
        self._guard = kept_running(guard.run, "reset floods")
        self.set_serving(True)
        return int(port)

    def set_serving(self, serving: bool, service: str | None = None) -> None:
        """Tell health checkers whether a service, or all and the server as a whole, can be used."""
        state = (
            health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in [service] if service else ["", *(known.name for known in self._services)]:
            self._health.set(name, state)

    async def stop(self, grace: float) -> None:
        """Refuse new calls, let those under way end within `grace` seconds, then cancel them."""
        self._health.enter_graceful_shutdown()
        await self._server.stop(grace)
        if self._guard is not None:
            self._guard.cancel()
            await asyncio.wait({self._guard})

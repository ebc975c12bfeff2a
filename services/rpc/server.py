"""The life of a gRPC server: services, reflection, health and channelz, from listening to draining."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from grpc_channelz.v1 import channelz, channelz_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.rpc.guard import Guarded, tolerant_deserializer
from services.rpc.health import HealthServicer, ResourceHealth
from services.rpc.reflection import ReflectionServicer

T = TypeVar("T")

log = logging.getLogger("appsupervisor.rpc")

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""Largest request; gRPC's own default, named so that the error can tell it."""

MAX_CONCURRENT_CALLS = 4096
"""Calls and streams beyond these are answered RESOURCE_EXHAUSTED by the transport."""

OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
    # A watcher behind a silent network is found out; a client may ping every second, as a control plane does
    # every 2 s: a node whose loop hangs must not be sent away by its own transport on top of it.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


@dataclass(frozen=True, slots=True)
class Service:
    """One service to serve: its full name, the generated registering function, its servicer."""

    name: str
    register: Callable[[Any, Any], None]
    servicer: object


class RpcServer:
    """A grpc.aio server on the running loop. Synchronous methods run on worker threads: `threads` for those
    that only read, as many for the others.

    Health checks of names with a slash are answered by `resources`.
    """

    def __init__(
        self, services: Sequence[Service], resources: ResourceHealth | None = None, *, threads: int = 64
    ) -> None:
        self._services = services
        self._pool = _Threads(threads)
        self._server = grpc.aio.server(
            migration_thread_pool=self._pool,
            options=OPTIONS,
            maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS,
        )
        self._health = HealthServicer(resources)
        recorder = _Recorder(self._server)
        for service in services:
            service.register(Guarded(service.servicer), recorder)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        channelz.add_channelz_servicer(self._server)
        names = [service.name for service in services]
        names += [
            health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
            channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name,
        ]
        ReflectionServicer(names).add_to(self._server)

    async def start(self, listen: str) -> int:
        """Listen on `host:port` (port 0: any free one), serve, and return the port.

        Raises OSError when the address cannot be bound.
        """
        try:
            port = self._server.add_insecure_port(listen)
        except RuntimeError as refused:
            raise OSError(f"cannot listen on {listen}: the address is in use or not ours") from refused
        await self._server.start()
        await self.set_serving(True)
        return int(port)

    async def set_serving(self, serving: bool, service: str | None = None) -> None:
        """Tell health checkers whether a service, or all and the server as a whole, can be used."""
        state = (
            health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        names = [service] if service else ["", *(known.name for known in self._services)]
        for name in names:
            await self._health.set(name, state)

    async def stop(self, grace: float) -> None:
        """Refuse new calls, let those under way end within `grace` seconds, then cancel them."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace)
        self._pool.shutdown(wait=False, cancel_futures=True)


class _Threads(Executor):
    """Worker threads, with some for reads alone: they are answered while commands wait for a disk."""

    def __init__(self, threads: int) -> None:
        self._reading = ThreadPoolExecutor(threads, thread_name_prefix="rpc-read")
        self._others = ThreadPoolExecutor(threads, thread_name_prefix="rpc")

    def submit(self, call: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run a servicer's method; standard methods that read are told by their names (AIP-131, AIP-132)."""
        reads = getattr(call, "__name__", "").startswith(("Get", "List"))
        return (self._reading if reads else self._others).submit(call, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Begin nothing more."""
        for pool in (self._reading, self._others):
            pool.shutdown(wait, cancel_futures=cancel_futures)


class _Recorder:
    """Passes a service's generated handlers on with deserializers that never raise."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Register a service's methods."""
        self._server.add_generic_rpc_handlers(tuple(_Tolerant(handler) for handler in handlers))

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Do nothing: only newer generated code calls this, with the same handlers by name."""


class _Tolerant(grpc.GenericRpcHandler):
    """Finds a service's methods as another handler does, and gives each a deserializer that never raises."""

    def __init__(self, handler: grpc.GenericRpcHandler) -> None:
        self._handler = handler

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of one call, or None for a method that is not ours."""
        found: Any = self._handler.service(handler_call_details)
        if found is None:
            return None
        return found._replace(request_deserializer=tolerant_deserializer(found.request_deserializer))

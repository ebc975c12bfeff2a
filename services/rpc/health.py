"""grpc.health.v1 for the server's services, and for the resources that a source knows, when asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as aio_health

from services.rpc.errors import SupervisorError
from services.rpc.status import DETAILS_KEY, to_status

Response = health_pb2.HealthCheckResponse

RECHECK_SECONDS = 30.0
"""How often a watch looks again without having been told of a change."""


class ResourceHealth:
    """Tells whether resources can be used. `check` returns None for one that is not known.

    Nothing is kept of a resource but who waits for its next change. Belongs to the server's loop.
    """

    def __init__(self, check: Callable[[str], bool | None]) -> None:
        self.check = check
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self.closed = False

    @property
    def watched(self) -> int:
        """How many resources are watched."""
        return len(self._waiting)

    def changed(self, name: str) -> None:
        """Let those who watch a resource look again."""
        for waiter in self._waiting.get(name, ()):
            if not waiter.done():
                waiter.set_result(None)

    def close(self) -> None:
        """Let every watch tell that nothing can be used any more, and end: a drain would wait for it."""
        self.closed = True
        for name in list(self._waiting):
            self.changed(name)

    def status(self, name: str) -> int:
        """Return a resource's status."""
        serving = self.check(name)
        if serving is None:
            return int(Response.SERVICE_UNKNOWN)
        return int(Response.SERVING if serving and not self.closed else Response.NOT_SERVING)

    async def watch(self, name: str) -> AsyncIterator[int]:
        """Yield a resource's status, then each other one that it takes, until closed."""
        told: int | None = None
        waiters = self._waiting.setdefault(name, set())
        waiter: asyncio.Future[None] | None = None
        try:
            while True:
                waiter = asyncio.get_running_loop().create_future()
                waiters.add(waiter)
                closed = self.closed
                if (status := self.status(name)) != told:
                    told = status
                    yield status
                if closed:
                    return
                await asyncio.wait({waiter}, timeout=RECHECK_SECONDS)
                waiters.discard(waiter)
        finally:
            if waiter is not None:
                waiters.discard(waiter)
            if not waiters and self._waiting.get(name) is waiters:
                del self._waiting[name]


class HealthServicer(aio_health.HealthServicer):  # type: ignore[misc]  # published without types
    """Serves grpc.health.v1. Names with a slash are resources, if there is a source for them."""

    def __init__(self, resources: ResourceHealth | None = None) -> None:
        super().__init__()
        self._resources = resources
        # The published Watch writes under a lock: one client that takes nothing would hold up all others.
        self._services = ResourceHealth(self._serves)

    async def set(self, service: str, status: int) -> None:
        """Set the status of one of the server's services."""
        await super().set(service, status)
        self._services.changed(service)

    async def enter_graceful_shutdown(self) -> None:
        """Set every status to NOT_SERVING, for good, and end the watches."""
        await super().enter_graceful_shutdown()
        self._services.close()

    def _serves(self, service: str) -> bool | None:
        status = self._server_status.get(service)
        return None if status is None else bool(status == Response.SERVING)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> Any:  # noqa: N802
        """Serve Health.Check: NOT_FOUND for what is not known."""
        if self._resources is None or "/" not in request.service:
            return await super().Check(request, context)
        status = self._resources.status(request.service)
        if status == Response.SERVICE_UNKNOWN:
            kind = "INSTANCE_NOT_FOUND" if "/instances/" in request.service else "APP_NOT_FOUND"
            error = SupervisorError(kind, f"{request.service[:200]} is not known here.")
            context.set_trailing_metadata(((DETAILS_KEY, to_status(error).SerializeToString()),))
            await context.abort(grpc.StatusCode.NOT_FOUND, error.message)
        return Response(status=status)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> Any:  # noqa: N802
        """Serve Health.Watch: SERVICE_UNKNOWN for what is not known, now or any more."""
        source = self._services
        if self._resources is not None and "/" in request.service:
            source = self._resources
        async for status in source.watch(request.service):
            await context.write(Response(status=status))

"""grpc.health.v1 for the server's services, and for the resources that a source knows, when asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from grpc_health.v1 import health_pb2

from services.rpc.errors import SupervisorError
from services.rpc.pipeline.call import Call

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


class HealthServicer:
    """Serves grpc.health.v1. Names with a slash are resources, if there is a source for them."""

    def __init__(self, resources: ResourceHealth | None = None) -> None:
        self._resources = resources
        self._statuses: dict[str, int] = {"": int(Response.SERVING)}
        self._services = ResourceHealth(self._serves)

    def set(self, service: str, status: int) -> None:
        """Set the status of one of the server's services."""
        self._statuses[service] = status
        self._services.changed(service)

    def enter_graceful_shutdown(self) -> None:
        """Set every status to NOT_SERVING, for good, and end the watches."""
        self._services.close()

    def _serves(self, service: str) -> bool | None:
        status = self._statuses.get(service)
        return None if status is None else status == Response.SERVING

    def _source(self, name: str) -> ResourceHealth:
        return self._resources if self._resources is not None and "/" in name else self._services

    async def Check(self, request: health_pb2.HealthCheckRequest, call: Call) -> Any:  # noqa: N802
        """Serve Health.Check: NOT_FOUND for what is not known."""
        name = request.service
        status = self._source(name).status(name)
        if status != Response.SERVICE_UNKNOWN:
            return Response(status=status)
        reason = "SERVICE_NOT_FOUND"
        if self._source(name) is self._resources:
            reason = "INSTANCE_NOT_FOUND" if "/instances/" in name else "APP_NOT_FOUND"
        shown = name[:200]
        raise SupervisorError(reason, f"{shown} is not known here.", resource=shown)

    async def List(self, request: health_pb2.HealthListRequest, call: Call) -> Any:  # noqa: N802
        """Serve Health.List: the services of the server; resources have lists of their own."""
        response = health_pb2.HealthListResponse()
        for name in self._statuses:
            response.statuses[name].status = self._services.status(name)
        return response

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, call: Call
    ) -> AsyncIterator[Any]:
        """Serve Health.Watch: SERVICE_UNKNOWN for what is not known, now or any more."""
        async for status in self._source(request.service).watch(request.service):
            yield Response(status=status)

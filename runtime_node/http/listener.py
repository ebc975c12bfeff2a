"""The listener on the front loop: what all its connections share, and the sweep of their deadlines."""

from __future__ import annotations

import asyncio
import logging
import time
from email.utils import formatdate
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.server import ServerState

from runtime_node.http.connection import FrontConnection
from runtime_node.http.exchange import Exchange
from runtime_node.http.forwarded import TrustedProxies
from runtime_node.http.limits import FrontLimits
from runtime_node.http.problems import NODE_DRAINING, REQUEST_TIMEOUT, Problem
from runtime_node.http.router import Router
from runtime_node.http.websocket import FrontWebSocket

_logger = logging.getLogger(__name__)

_TICK = 0.1
_DRAIN_STEP = 0.02
_BACKLOG = 2048


async def _no_app(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("the front routes by itself")


class Listener:
    """Accepts connections on one loop, and ends those whose time is up. All of it belongs to that loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        router: Router,
        limits: FrontLimits,
        trusted: TrustedProxies | None,
    ) -> None:
        self.loop = loop
        self.router = router
        self.limits = limits
        self.trusted = trusted
        self.config = Config(
            _no_app, log_config=None, access_log=False, lifespan="off", proxy_headers=False, ws=FrontWebSocket
        )
        self.config.load()
        self.server_state = ServerState()
        self.connections = cast("set[FrontConnection | FrontWebSocket]", self.server_state.connections)
        self.orphans: set[Exchange] = set()
        self.now = time.monotonic()
        self.date_line = b""
        self.draining = False
        self.refused_connections = 0
        self.refusals: dict[str, int] = {}
        self._server: asyncio.Server | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._next_date = 0.0

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen; return the bound address. Raises OSError."""
        self._tick()
        self._server = await self.loop.create_server(
            lambda: FrontConnection(self), host, port, backlog=_BACKLOG, reuse_address=True
        )
        address = self._server.sockets[0].getsockname()
        return str(address[0]), int(address[1])

    async def drain(self, timeout: float) -> int:
        """Accept no more, let what is served finish, cut it after `timeout` seconds; return how many."""
        deadline = time.monotonic() + timeout
        self.draining = True
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self.connections):
            connection.shutdown()
        while self.connections and time.monotonic() < deadline:  # noqa: ASYNC110
            # Connections end in many places, and a drain is rare: looking costs less than telling.
            await asyncio.sleep(_DRAIN_STEP)
        left = list(self.connections)
        for connection in left:
            if isinstance(connection, FrontWebSocket):
                connection.cut(NODE_DRAINING)
            else:
                if connection.exchange is not None:
                    connection.exchange.cut(NODE_DRAINING)
                connection.transport.close()
        if left:
            await asyncio.sleep(_DRAIN_STEP)
            for connection in list(self.connections):
                connection.transport.abort()
            await asyncio.sleep(0)
        return len(left)

    def stop(self) -> None:
        """End the sweep."""
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None

    def count(self, problem: Problem) -> None:
        """Count an answer of the node's own, by reason."""
        self.refusals[problem.reason] = self.refusals.get(problem.reason, 0) + 1

    def _tick(self) -> None:
        self._ticker = self.loop.call_later(_TICK, self._tick)
        self.now = now = time.monotonic()
        if now >= self._next_date:
            self._next_date = now + 1.0
            self.date_line = b"date: " + formatdate(time.time(), usegmt=True).encode("ascii") + b"\r\n"
        for connection in [c for c in self.connections if c.deadline <= now]:
            try:
                connection.expire(now)
            except Exception:
                _logger.exception("sweep failed", extra={"action": "http.sweep"})
                connection.transport.abort()
        for exchange in [e for e in self.orphans if e.deadline <= now]:
            self.orphans.discard(exchange)
            exchange.cut(REQUEST_TIMEOUT, timeout=True)

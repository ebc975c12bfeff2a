"""The listener on the front loop: accepts connections, and ends those whose time is up."""

from __future__ import annotations

import asyncio
import logging
import socket
import time

from runtime_node.http.connection import FrontConnection
from runtime_node.http.problems import NODE_DRAINING, REQUEST_TIMEOUT
from runtime_node.http.shared import FrontShared

_logger = logging.getLogger(__name__)

_TICK = 0.1
_DRAIN_STEP = 0.02
_BACKLOG = 2048
_PROBES = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""A client that is silent and does not answer for 30 s has vanished without a word: in seconds, and times."""


class Listener:
    """Accepts connections on one loop and sweeps their deadlines. All of it belongs to that loop."""

    def __init__(self, shared: FrontShared) -> None:
        self.shared = shared
        self._server: asyncio.Server | None = None
        self._ticker: asyncio.TimerHandle | None = None

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen; return the bound address. Raises OSError."""
        self._tick()
        shared = self.shared
        self._server = await shared.loop.create_server(
            lambda: FrontConnection(shared), host, port, backlog=_BACKLOG, reuse_address=True
        )
        for listening in self._server.sockets:
            _probe(listening)
        address = self._server.sockets[0].getsockname()
        return str(address[0]), int(address[1])

    async def drain(self, timeout: float) -> int:
        """Accept no more, let what is served finish, cut it after `timeout` seconds; return how many."""
        deadline = time.monotonic() + timeout
        connections = self.shared.connections
        self.shared.draining = True
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(connections):
            connection.shutdown()
        while connections and time.monotonic() < deadline:  # noqa: ASYNC110
            # Connections end in many places, and a drain is rare: looking costs less than telling.
            await asyncio.sleep(_DRAIN_STEP)
        left = list(connections)
        for connection in left:
            connection.cut(NODE_DRAINING)
        if left:
            await asyncio.sleep(_DRAIN_STEP)
            for connection in list(connections):
                connection.transport.abort()
            await asyncio.sleep(0)
        return len(left)

    def stop(self) -> None:
        """End the sweep."""
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None

    def _tick(self) -> None:
        shared = self.shared
        self._ticker = shared.loop.call_later(_TICK, self._tick)
        shared.tick()
        now = shared.now
        for connection in [c for c in shared.connections if c.deadline <= now]:
            try:
                connection.expire(now)
            except Exception:
                _logger.exception("sweep failed", extra={"action": "http.sweep"})
                connection.transport.abort()
        for exchange in [e for e in shared.orphans if e.deadline <= now]:
            shared.orphans.discard(exchange)
            exchange.cut(REQUEST_TIMEOUT, timeout=True)
        gave_way = shared.shares.spare_descriptors()
        if gave_way:
            _logger.warning(
                "the process is short of descriptors: idle connections were closed",
                extra={"action": "http.short_of_descriptors", "closed": gave_way},
            )


def _probe(listening: socket.socket) -> None:
    """Have the kernel ask silent clients whether they are there; what is accepted inherits it."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _PROBES.items():
        if (number := getattr(socket, option, None)) is not None:  # Linux has all of them
            listening.setsockopt(socket.IPPROTO_TCP, number, value)

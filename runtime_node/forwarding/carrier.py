"""The connections to other nodes that forwarded requests share, and what bounds and counts them all.

Belongs to the front loop, but for the figures, which any thread may read.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from runtime_node.forwarding.link import Link
from runtime_node.forwarding.target import Target
from services.rpc.errors import SupervisorError

CONNECT_SECONDS = 2.0
_PROBES = {"TCP_KEEPIDLE": 2, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 4000}
"""Broken after 4 s in which nothing that was sent is confirmed: in seconds, the last one in milliseconds."""
IDLE_SECONDS = 2.0
"""Less than a front keeps an idle connection: it is closed from this side, not under the next request."""
_IDLE_PER_TARGET = 8
_IDLE = 64


@dataclass(frozen=True, slots=True)
class CarrierLimits:
    """Bounds over all apps that are forwarded; each app's own are those of its gate."""

    max_requests: int = 512
    """At the same time. Each holds at most about 200 KiB of what a slow side has not taken."""
    max_websockets: int = 1024
    max_held_bytes: int = 32 * 1024 * 1024
    """Of WebSocket messages whose end has not come from the other node."""


class Carrier:
    """Hands out connections to nodes, and takes them back."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        node: str,
        limits: CarrierLimits = CarrierLimits(),
    ) -> None:
        """`node` is this node's name, which a forwarded request carries."""
        self.loop = loop
        self.node = node.encode("ascii")
        self.limits = limits
        self.requests = 0
        """Forwarded now."""
        self.websockets = 0
        self.held = 0
        """Bytes of WebSocket messages whose end has not come."""
        self._idle: dict[tuple[str, int], list[Link]] = {}
        self._idle_count = 0
        self._closed = False

    @contextlib.contextmanager
    def place_for_request(self) -> Iterator[None]:
        """Count a request while it is forwarded. Raises SERVER_BUSY where no more may be."""
        if self.requests >= self.limits.max_requests:
            raise _busy()
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    @contextlib.contextmanager
    def place_for_websocket(self) -> Iterator[None]:
        """Count a WebSocket while it is forwarded. Raises SERVER_BUSY where no more may be."""
        if self.websockets >= self.limits.max_websockets:
            raise _busy()
        self.websockets += 1
        try:
            yield
        finally:
            self.websockets -= 1

    async def connect(self, target: Target, *, fresh: bool) -> Link:
        """Return a connection to a node, one that was used before unless it is to be `fresh`.

        Raises OSError, or TimeoutError after CONNECT_SECONDS.
        """
        idle = self._idle.get((target.host, target.port))
        while idle and not fresh:
            link = idle.pop()
            self._idle_count -= 1
            if link.idle is not None:
                link.idle.cancel()
                link.idle = None
            if link.reusable:
                return link
        async with asyncio.timeout(CONNECT_SECONDS):
            transport, link = await self.loop.create_connection(
                lambda: Link(self.loop), target.host, target.port
            )
        _give_up_early(transport.get_extra_info("socket"))
        return link

    def give_back(self, target: Target, link: Link) -> None:
        """Keep a connection for the next request, if it can carry one."""
        idle = self._idle.setdefault((target.host, target.port), [])
        if not link.reusable or self._closed or len(idle) >= _IDLE_PER_TARGET or self._idle_count >= _IDLE:
            link.transport.close() if link.reusable else link.transport.abort()
            if not idle:
                del self._idle[target.host, target.port]
            return
        link.used = True
        link.idle = self.loop.call_later(IDLE_SECONDS, self._end_idle, target, link)
        idle.append(link)
        self._idle_count += 1

    def _end_idle(self, target: Target, link: Link) -> None:
        link.idle = None
        link.transport.close()
        idle = self._idle.get((target.host, target.port), [])
        if link in idle:
            idle.remove(link)
            self._idle_count -= 1
            if not idle:
                del self._idle[target.host, target.port]

    async def close(self) -> None:
        """Close what is idle; what is carrying goes on."""
        self._closed = True
        for links in self._idle.values():
            for link in links:
                if link.idle is not None:
                    link.idle.cancel()
                    link.idle = None
                link.transport.close()
        self._idle.clear()
        self._idle_count = 0
        await asyncio.sleep(0)  # for the connections to be closed while there is a loop


def _give_up_early(connection: socket.socket) -> None:
    """Have the kernel break a connection to a machine that is cut off, whether we send to it or wait for it.

    Else a request on a connection that was kept would wait for its own time limit and not be told why. One to
    a process that stands still stays: its kernel answers.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _PROBES.items():
        if (number := getattr(socket, option, None)) is not None:  # Linux has all of them
            connection.setsockopt(socket.IPPROTO_TCP, number, value)


def _busy() -> SupervisorError:
    return SupervisorError("SERVER_BUSY", "The node forwards as many requests as it may.", retry_after=1.0)

"""Connections of one protocol to other nodes: made anew, or taken from those that wait for a request."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Generic, TypeVar

from runtime_node.forwarding.http2_link import Http2Link
from runtime_node.forwarding.link import UNCONFIRMED_SECONDS, Link, break_unconfirmed
from runtime_node.forwarding.target import Target

CONNECT_SECONDS = 2.0
_PROBES = {"TCP_KEEPIDLE": 2, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 3}
"""Broken after 5 s in which a peer that is silent has not answered: in seconds."""
IDLE_SECONDS = 2.0
"""Less than a front keeps an idle connection: it is closed from this side, not under the next request."""
_IDLE_PER_TARGET = 8
_IDLE = 64

_Link = TypeVar("_Link", Link, Http2Link)


class Pool(Generic[_Link]):
    """Hands out connections to nodes, and takes them back. Belongs to the front loop."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, make: Callable[[asyncio.AbstractEventLoop], _Link]
    ) -> None:
        self._loop = loop
        self._make: Callable[[asyncio.AbstractEventLoop], _Link] = make
        self._idle: dict[tuple[str, int], list[_Link]] = {}
        self._idle_count = 0
        self._closed = False

    async def take(self, target: Target, *, fresh: bool) -> _Link:
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
            transport, link = await self._loop.create_connection(
                lambda: self._make(self._loop), target.host, target.port
            )
        _give_up_early(transport.get_extra_info("socket"))
        return link

    def give_back(self, target: Target, link: _Link) -> None:
        """Keep a connection for the next request, if it can carry one."""
        idle = self._idle.setdefault((target.host, target.port), [])
        if not link.reusable or self._closed or len(idle) >= _IDLE_PER_TARGET or self._idle_count >= _IDLE:
            link.transport.close() if link.reusable else link.abort()
            if not idle:
                del self._idle[target.host, target.port]
            return
        link.used = True
        link.idle = self._loop.call_later(IDLE_SECONDS, self._end_idle, target, link)
        idle.append(link)
        self._idle_count += 1

    def _end_idle(self, target: Target, link: _Link) -> None:
        link.idle = None
        link.transport.close()
        idle = self._idle.get((target.host, target.port), [])
        if link in idle:
            idle.remove(link)
            self._idle_count -= 1
            if not idle:
                del self._idle[target.host, target.port]

    def close(self) -> None:
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


def _give_up_early(connection: socket.socket) -> None:
    """Have the kernel break a connection to a machine that is cut off, whether we send to it or wait for it.

    Else a request on a connection that was kept would wait for its own time limit and not be told why. One to
    a process that stands still stays: its kernel answers.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _PROBES.items():
        if (number := getattr(socket, option, None)) is not None:  # Linux has all of them
            connection.setsockopt(socket.IPPROTO_TCP, number, value)
    break_unconfirmed(connection, UNCONFIRMED_SECONDS)

"""What a connection to another node carries of one request: its response, as it comes and is read.

Of either protocol; how bytes become a response is that of the link which this is a part of.
"""

from __future__ import annotations

import asyncio

from runtime_node.http.flow import Flow

Fields = list[tuple[bytes, bytes]]

HIGH_WATER = 64 * 1024
"""Bytes that wait on either side; then no more is read."""
MAX_HEAD_BYTES = 256 * 1024
CLOSED = "the connection was closed"


class BrokenLinkError(Exception):
    """The other node closed the connection, or sent what is no response."""


class Carried:
    """The response to the request that a connection carries, one at a time. Belongs to the front loop."""

    transport: asyncio.Transport
    flow: Flow

    def __init__(self) -> None:
        self.lost = False
        self.used = False
        """It has carried a request before."""
        self.idle: asyncio.TimerHandle | None = None
        """Ends it while nobody has it."""
        self._news = asyncio.Event()
        self._expect()

    def _expect(self) -> None:
        """Begin with the next response."""
        self.status = 0
        self.headers: Fields = []
        self.heard = False
        """Something of the response has come."""
        self.complete = False
        self._parts: list[bytes] = []
        self._fault = ""

    def _taken(self) -> None:
        """Make room on the way for more: what had come was taken."""
        raise NotImplementedError

    async def drain(self) -> None:
        """Wait until the node has taken enough of what was sent."""
        await self.flow.drain()

    async def read(self) -> bytes:
        """Return what has come of the body, b"" at its end. Raises BrokenLinkError when it is broken off."""
        while not self._parts:
            if self.complete:
                return b""
            await self._wait()
        return self.take()

    def take(self) -> bytes:
        """Return what is there of the body, and read on."""
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        self._taken()
        return data

    @property
    def has_ended(self) -> bool:
        """Whether all of the body was taken."""
        return self.complete and not self._parts

    @property
    def has_news(self) -> bool:
        """Whether `read` returns at once."""
        return bool(self._parts) or self.complete

    async def _wait(self) -> None:
        if self._fault or self.lost:
            raise BrokenLinkError(self._fault or CLOSED)
        self._news.clear()
        await self._news.wait()

    def abort(self) -> None:
        """Break off: the node learns that nobody wants it any more."""
        self.transport.abort()

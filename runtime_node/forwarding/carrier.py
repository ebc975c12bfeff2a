"""The connections to other nodes that forwarded requests share, and what bounds and counts them all.

Belongs to the front loop, but for the figures, which any thread may read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from runtime_node.forwarding.http2_link import Http2Link
from runtime_node.forwarding.link import Link
from runtime_node.forwarding.pool import Pool
from runtime_node.forwarding.target import Target
from services.rpc.errors import SupervisorError


@dataclass(frozen=True, slots=True)
class CarrierLimits:
    """Bounds over all apps that are forwarded; each app's own are those of its gate."""

    max_requests: int = 512
    """At the same time. Each holds at most about 330 KiB of what a slow side has not taken."""
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
        self._links = Pool(loop, Link)
        self._http2_links = Pool(loop, Http2Link)

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
        """Return a connection of HTTP/1.1 to a node, one that was used before unless it is to be `fresh`.

        Raises OSError, or TimeoutError after CONNECT_SECONDS.
        """
        return await self._links.take(target, fresh=fresh)

    async def connect_http2(self, target: Target, *, fresh: bool) -> Http2Link:
        """Return a connection of HTTP/2, as `connect` does."""
        return await self._http2_links.take(target, fresh=fresh)

    def give_back(self, target: Target, link: Link | Http2Link) -> None:
        """Keep a connection for the next request, if it can carry one."""
        if isinstance(link, Http2Link):
            self._http2_links.give_back(target, link)
        else:
            self._links.give_back(target, link)

    async def close(self) -> None:
        """Close what is idle; what is carrying goes on."""
        self._links.close()
        self._http2_links.close()
        await asyncio.sleep(0)  # for the connections to be closed while there is a loop


def _busy() -> SupervisorError:
    return SupervisorError("SERVER_BUSY", "The node forwards as many requests as it may.", retry_after=1.0)

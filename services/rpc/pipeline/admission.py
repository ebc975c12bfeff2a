"""Bounds what callers may have under way: calls, streams, and bytes in either direction, by address.

At a bound the newcomer is refused with RetryInfo, and everyone else is served as before.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from services.rpc.errors import SupervisorError
from services.rpc.pipeline.call import Call

MIB = 1024 * 1024

SMALL = 16 * 1024
"""Requests up to this size are not counted as bytes: with the bound on calls they are 64 MiB at most."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What all callers together, and those of one address, may have under way."""

    calls: int = 4096
    """Calls and streams of all callers."""
    streams_per_peer: int = 1000
    """Streams of one address; an idle one costs about 30 KB."""
    request_bytes: int = 64 * MIB
    """Bytes of requests of all callers that are being served."""
    request_bytes_per_peer: int = 16 * MIB
    unread_bytes_per_peer: int = 4 * MIB
    """Bytes of streams of one address that its transport has not taken yet."""
    unread_seconds: float = 10.0
    """How long a stream waits for its address to read what its other streams sent."""
    resets_per_second: int = 500
    """Calls of one address that may end without an answer in a second, if they are most of its calls. Nobody
    feels 500; with 2,000 others wait for 0.3 s at worst, with 10,000 for 9 s (2 cores, load 20)."""


@dataclass(slots=True)
class Peer:
    """What one address has under way."""

    host: str
    calls: int = 0
    streams: int = 0
    request_bytes: int = 0
    unread: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)


class Admission:
    """Counts calls in and out. Belongs to the server's loop."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self.bounds = bounds or Bounds()
        self._peers: dict[str, Peer] = {}
        self.calls = 0
        self.request_bytes = 0

    def enter(self, call: Call) -> Peer | None:
        """Count a call in; of a small unary one nothing is kept by address, and None is returned.

        Raises SERVER_BUSY or TOO_MANY_STREAMS; then it is not counted.
        """
        if self.calls >= self.bounds.calls:
            raise busy(f"The server has {self.calls:,} calls under way", self.bounds.calls)
        if not call.streams and call.size <= SMALL:
            self.calls += 1
            return None
        host = call.peer.rpartition(":")[0] or call.peer
        peer = self._peers.get(host) or Peer(host)
        self._check(call, peer)
        self._peers[host] = peer
        self.calls += 1
        peer.calls += 1
        peer.streams += call.streams
        if call.size > SMALL:
            self.request_bytes += call.size
            peer.request_bytes += call.size
        return peer

    def _check(self, call: Call, peer: Peer) -> None:
        bounds = self.bounds
        if call.streams and peer.streams >= bounds.streams_per_peer:
            raise SupervisorError(
                "TOO_MANY_STREAMS",
                f"{peer.host} has {bounds.streams_per_peer:,} streams open, its share; close some.",
                metadata={"limit": str(bounds.streams_per_peer), "peer": peer.host},
                retry_after=10.0,
            )
        if call.size > SMALL:
            if self.request_bytes + call.size > bounds.request_bytes:
                raise busy(
                    "The server has as many bytes of requests under way as it takes", bounds.request_bytes
                )
            if peer.request_bytes + call.size > bounds.request_bytes_per_peer:
                limit = bounds.request_bytes_per_peer
                raise busy(f"{peer.host} has as many bytes of requests under way as one address may", limit)

    def leave(self, call: Call, peer: Peer | None) -> None:
        """Count a call out."""
        self.calls -= 1
        if peer is None:
            return
        peer.calls -= 1
        peer.streams -= call.streams
        if call.size > SMALL:
            self.request_bytes -= call.size
            peer.request_bytes -= call.size
        if not peer.calls:
            self._peers.pop(peer.host, None)

    async def room(self, peer: Peer, size: int) -> None:
        """Wait until `size` more bytes may be under way to an address; who sends them counts them in.

        Raises UNREAD_STREAMS when its streams have taken nothing for a while. Safe to cancel.
        """
        bounds = self.bounds
        while peer.unread and peer.unread + max(size, 1) > bounds.unread_bytes_per_peer:
            waiter = asyncio.get_running_loop().create_future()
            peer.waiting.append(waiter)
            try:
                done, _ = await asyncio.wait({waiter}, timeout=bounds.unread_seconds)
            finally:
                if not waiter.done():
                    peer.waiting.remove(waiter)
            if not done:
                raise SupervisorError(
                    "UNREAD_STREAMS",
                    f"{peer.host} leaves {bounds.unread_bytes_per_peer:,} bytes of its streams unread; "
                    "read or close them.",
                    metadata={"limit": str(bounds.unread_bytes_per_peer), "peer": peer.host},
                    retry_after=bounds.unread_seconds,
                )

    def sent(self, peer: Peer, size: int) -> None:
        """Count out bytes that the transport has taken, and wake those who wait."""
        peer.unread -= size
        while peer.waiting:
            waiter = peer.waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)


def busy(what: str, limit: int) -> SupervisorError:
    """Return the error for a call that comes while the server, or its caller's share of it, is full."""
    return SupervisorError(
        "SERVER_BUSY",
        f"{what}; try again in a second.",
        metadata={"limit": str(limit), "what": what},
        retry_after=1.0,
    )

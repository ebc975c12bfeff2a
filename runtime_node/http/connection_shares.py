"""Who holds how many of the node's connections, and which of them give way at a bound.

A connection without a head (new, half a head, idle) gives way to a new one; one that is served never does.
"""

from __future__ import annotations

import errno
import heapq
import os
import resource
from collections.abc import Collection
from ipaddress import IPv6Address, ip_address
from typing import Protocol

from runtime_node.http.limits import FrontLimits

_RESERVED_DESCRIPTORS = 128
_BATCH_SHARE = 64
"""One in so many gives way at a time: finding them looks at all connections."""


class Holder(Protocol):
    """A connection, as its share sees it."""

    peer: str | None
    waiting_place: int | None
    """Its place among those without a head, the oldest first; None while it is served."""
    head_bytes: int
    """Held of a head that is not complete."""

    def give_way(self) -> None:
        """Close, to make room for another; forget that it was counted."""
        ...


def peer_key(address: str) -> str:
    """Return what counts as one peer: an IPv4 address, or the /64 that an IPv6 customer is given."""
    if ":" not in address:
        return address
    ip = ip_address(address.partition("%")[0])
    if not isinstance(ip, IPv6Address):
        return address
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return ip.packed[:8].hex()


class ConnectionShares:
    """Counts connections per peer. Belongs to the front loop."""

    def __init__(self, limits: FrontLimits, connections: Collection[Holder]) -> None:
        """`connections` are those open now; the caller keeps it."""
        self._connections = connections
        self._peers: dict[str, int] = {}
        self.streams = 0
        """Requests on connections of HTTP/2."""
        self._descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        # Databases, logs and other processes need descriptors, too.
        self._reserved = min(_RESERVED_DESCRIPTORS, self._descriptors // 2)
        self.most = min(limits.max_connections, self._descriptors - self._reserved)
        """Connections that the node keeps open."""
        self.most_per_peer = max(1, int(self.most * limits.peer_share))
        """Of these, by one peer."""
        self.most_per_app = max(1, int(self.most * limits.app_share))
        """Of these, by the requests and WebSockets of one app."""

    def enter(self, holder: Holder) -> bool:
        """Count a connection that is open now; make room for it if need be, and tell whether there is."""
        peer = holder.peer
        if peer is not None:
            count = self._peers.get(peer, 0) + 1
            self._peers[peer] = count
            if count > self.most_per_peer and not self._make_room(self.most_per_peer, holder, peer):
                return False
        return len(self._connections) <= self.most or self._make_room(self.most, holder, None)

    def leave(self, holder: Holder) -> None:
        """Forget a connection that was counted."""
        peer, holder.peer = holder.peer, None
        if peer is not None:
            self._uncount(peer)

    def _uncount(self, peer: str) -> None:
        count = self._peers[peer] - 1
        if count:
            self._peers[peer] = count
        else:
            del self._peers[peer]

    def enter_stream(self, peer: str | None) -> bool:
        """Count one more request of HTTP/2 as if it were a connection; tell whether it may be.

        Nobody gives way to it: its client is told to come again.
        """
        if self.streams >= self.most:
            return False
        if peer is not None:
            count = self._peers.get(peer, 0)
            if count >= self.most_per_peer:
                return False
            self._peers[peer] = count + 1
        self.streams += 1
        return True

    def leave_stream(self, peer: str | None) -> None:
        """Forget a request that was counted for a peer."""
        self.streams -= 1
        if peer is not None:
            self._uncount(peer)

    def _make_room(self, bound: int, newcomer: Holder, peer: str | None) -> bool:
        waiting = [
            holder
            for holder in self._connections
            if holder.waiting_place is not None
            and holder is not newcomer
            and (peer is None or holder.peer == peer)
        ]
        return self._oldest_give_way(waiting, bound)

    def _oldest_give_way(self, waiting: list[Holder], bound: int) -> bool:
        batch = max(1, bound // _BATCH_SHARE)
        oldest = heapq.nsmallest(batch, waiting, key=lambda holder: holder.waiting_place or 0)
        for holder in oldest:
            holder.give_way()
        return bool(oldest)

    def shed_heads(self) -> None:
        """Let the oldest connections with a part of a head give way: together they hold too much."""
        self._oldest_give_way([holder for holder in self._connections if holder.head_bytes], self.most)

    def spare_descriptors(self) -> int:
        """Let idle connections give way when the process is short of descriptors; return how many did.

        The lowest free number tells how many are in use at least.
        """
        try:
            lowest = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                return 0
            lowest = self._descriptors
        else:
            os.close(lowest)
        short = lowest - (self._descriptors - self._reserved // 2)
        if short <= 0:
            return 0
        before = len(self._connections)
        waiting = [holder for holder in self._connections if holder.waiting_place is not None]
        self._oldest_give_way(waiting, short * _BATCH_SHARE)
        return before - len(self._connections)

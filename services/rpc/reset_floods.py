"""Ends the connections of an address that opens calls and resets them without end (HTTP/2 rapid reset).

gRPC's core refuses and delays such calls, but has no means to end their connection. Its channelz tells which
one it is, and the operating system ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from grpc_channelz.v1 import channelz, channelz_pb2

log = logging.getLogger("appsupervisor.rpc")

LOOK_SECONDS = 1.0

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Connection:
    """One connection of a server, as channelz counts it."""

    peer: Address
    reset: int
    """Calls so far that ended without an answer."""
    answered: int

    def since(self, before: Connection | None) -> tuple[int, int]:
        """Return how many calls were ended without an answer since an earlier look, and how many with one."""
        if before is None:  # it was made since
            return self.reset, self.answered
        return self.reset - before.reset, self.answered - before.answered


class ResetFloods:
    """Finds, look by look, who floods. Pure but for what its callables do."""

    def __init__(
        self,
        failed: Callable[[], int],
        connections: Callable[[], dict[int, Connection]],
        limit: int,
    ) -> None:
        """`failed` tells how many calls of all have failed in any way so far; `connections` each one's state.

        That one is dear, 0.5 ms of CPU for each. `limit` is how many calls of one address, on all its
        connections, may be reset between two looks.
        """
        self._failed = failed
        self._connections = connections
        self._limit = limit
        self._last = 0
        self._known: dict[int, Connection] | None = None

    def look(self) -> list[Address]:
        """Return the connections that flood, of addresses that went beyond the limit. Call once a second.

        Two seconds in a row: from the first on it is known what each connection does, also a new one.
        """
        failed = self._failed()
        busy, self._last = failed - self._last > self._limit, failed
        if not busy:
            self._known = None
            return []
        before, self._known = self._known, self._connections()
        if before is None:
            return []
        counted = [(now.peer, *now.since(before.get(number))) for number, now in self._known.items()]
        resets: Counter[str] = Counter()
        answers: Counter[str] = Counter()
        for (host, _), reset, answered in counted:
            resets[host] += reset
            answers[host] += answered
        floods = {host for host, count in resets.items() if count > max(self._limit, answers[host])}
        return [peer for peer, reset, answered in counted if peer[0] in floods and reset > answered]


class FloodGuard:
    """Looks at this process's server every second, and ends the connections that flood it."""

    def __init__(self, limit: int) -> None:
        self._floods = ResetFloods(_calls_failed, _connections, limit=limit)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            # In a thread: a look at very many connections would hold up the calls of all.
            ended = await asyncio.to_thread(self._look)
            for host, count in ended.items():
                log.warning(
                    "ended %d connections of %s: it opens calls and resets them without end", count, host,
                    extra={"action": "rpc.reset_flood", "peer": host, "connections": count},
                )  # fmt: skip

    def _look(self) -> Counter[str]:
        floods = self._floods.look()
        return end_connections(floods) if floods else Counter()


def end_connections(peers: Collection[Address]) -> Counter[str]:
    """Shut down this process's connections with these addresses, both ways; count them by host."""
    ended: Counter[str] = Counter()
    for number in os.listdir("/dev/fd"):
        # A descriptor of our own: meanwhile the number may have come to mean something else.
        with contextlib.suppress(OSError, ValueError):
            own = os.dup(int(number))
            if not stat.S_ISSOCK(os.fstat(own).st_mode):
                os.close(own)
                continue
            with socket.socket(fileno=own) as connection:
                peer = _address_of(connection.getpeername())
                if peer is not None and peer in peers:
                    connection.shutdown(socket.SHUT_RDWR)
                    ended[peer[0]] += 1
    return ended


def _address_of(name: Any) -> Address | None:
    if not isinstance(name, tuple):  # a Unix socket
        return None
    return _plain(ip_address(name[0])), name[1]


def _plain(host: IPv4Address | IPv6Address) -> str:
    # gRPC listens on IPv6 sockets for IPv4 as well.
    mapped = host.ipv4_mapped if isinstance(host, IPv6Address) else None
    return str(mapped or host)


class _NoContext:
    """What channelz answers through; a refusal is told as None."""

    def set_code(self, code: object) -> None: ...

    def set_details(self, details: object) -> None: ...


def _ask(method: str, **fields: Any) -> Any:
    request = getattr(channelz_pb2, f"{method}Request")(**fields)
    return getattr(channelz.ChannelzServicer, method)(request, _NoContext())


def _servers() -> list[Any]:
    return list(_ask("GetServers", start_server_id=0).server)


def _calls_failed() -> int:
    return sum(int(server.data.calls_failed) for server in _servers())


def _connections() -> dict[int, Connection]:
    connections = {}
    for number in (one for server in _servers() for one in _sockets_of(server.ref.server_id)):
        # None: it has been closed meanwhile.
        if (found := _ask("GetSocket", socket_id=number)) is None:
            continue
        address, data = found.socket.remote.tcpip_address, found.socket.data
        if address.ip_address:
            peer = _plain(ip_address(address.ip_address)), address.port
            connections[number] = Connection(peer, data.streams_failed, data.streams_succeeded)
    return connections


def _sockets_of(server: int) -> Iterator[int]:
    start = 0
    while (page := _ask("GetServerSockets", server_id=server, start_socket_id=start)) is not None:
        for one in page.socket_ref:
            yield one.socket_id
            start = one.socket_id + 1
        if page.end or not page.socket_ref:
            return

"""Ends connections whose client opens calls and resets them without end (HTTP/2 rapid reset).

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
from collections.abc import Callable, Iterator
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

    def floods(self, before: Connection, limit: int) -> bool:
        """Tell whether more than `limit` calls, and most of all, were ended without an answer meanwhile."""
        reset = self.reset - before.reset
        return reset > limit and reset > self.answered - before.answered


class ResetFloods:
    """Finds, look by look, who floods. Pure but for what its callables do."""

    def __init__(
        self,
        begun: Callable[[], int],
        connections: Callable[[], dict[int, Connection]],
        limit: int,
    ) -> None:
        """`begun` tells the calls of all connections so far; `connections`, which is dear, each one's state.

        `limit` is how many calls of one connection may be reset between two looks.
        """
        self._begun = begun
        self._connections = connections
        self._limit = limit
        self._last = 0
        self._known: dict[int, Connection] = {}

    def look(self) -> list[Address]:
        """Return who has gone beyond the limit since the last look. Call once a second."""
        begun = self._begun()
        busy, self._last = begun - self._last > self._limit, begun
        if not busy:
            self._known = {}
            return []
        before, self._known = self._known, self._connections()
        return [
            now.peer
            for number, now in self._known.items()
            if number in before and now.floods(before[number], self._limit)
        ]


class FloodGuard:
    """Looks at this process's server every second, and ends the connections that flood it."""

    def __init__(self, limit: int) -> None:
        self._floods = ResetFloods(_calls_begun, _connections, limit=limit)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for peer in self._floods.look():
                if end_connection(peer):
                    log.warning(
                        "ended the connection of %s:%d: it opens calls and resets them without end", *peer,
                        extra={"action": "rpc.reset_flood", "peer": f"{peer[0]}:{peer[1]}"},
                    )  # fmt: skip


def end_connection(peer: Address) -> bool:
    """Shut down this process's connections with an address, both ways; tell whether there was one."""
    ended = False
    for number in os.listdir("/dev/fd"):
        # A descriptor of our own: meanwhile the number may have come to mean something else.
        with contextlib.suppress(OSError, ValueError):
            own = os.dup(int(number))
            if not stat.S_ISSOCK(os.fstat(own).st_mode):
                os.close(own)
                continue
            with socket.socket(fileno=own) as connection:
                if _address_of(connection.getpeername()) == peer:
                    connection.shutdown(socket.SHUT_RDWR)
                    ended = True
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


def _calls_begun() -> int:
    return sum(int(server.data.calls_started) for server in _servers())


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

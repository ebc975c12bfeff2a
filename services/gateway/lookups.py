"""Looks up, again and again, the host names of nodes that gRPC clients call: they are told IP addresses."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable

log = logging.getLogger("appsupervisor.gateway")

REFRESH_SECONDS = 5.0
"""As Envoy has it for the names that it looks up itself."""
LOOKUP_SECONDS = 5.0
"""After which a lookup is given up, and what was found before stays."""
AT_A_TIME = 8

Resolve = Callable[[str], Awaitable[tuple[str, ...]]]
"""Returns the IP addresses of a host name. Raises OSError."""


async def resolve(host: str) -> tuple[str, ...]:
    """Return a host's addresses, sorted: of IPv4, and only where it has none of IPv6. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    # Nodes that listen on 0.0.0.0 or 127.0.0.1 answer nobody who took a name's other address.
    for family in (socket.AF_INET, socket.AF_INET6):
        if addresses := {str(entry[4][0]) for entry in found if entry[0] == family}:
            return tuple(sorted(addresses))
    return ()


class HostLookups:
    """The addresses of the host names that are in use, as last found. Belongs to one event loop."""

    def __init__(
        self,
        in_use: Callable[[], Iterable[str]],
        changed: Callable[[str], None],
        resolve: Resolve = resolve,
    ) -> None:
        """`changed` is told of each name that has other addresses than before."""
        self._in_use = in_use
        self._changed = changed
        self._resolve = resolve
        self._found: dict[str, tuple[str, ...]] = {}
        self._failing: set[str] = set()
        self._missing = asyncio.Event()

    def addresses(self, host: str) -> tuple[str, ...] | None:
        """Return the addresses last found; None for a host that has not been looked up, which it will be."""
        found = self._found.get(host)
        if found is None:
            self._missing.set()
        return found

    async def run(self) -> None:
        """Look names up without end: those in use every few seconds, and a new one at once."""
        bound = asyncio.Semaphore(AT_A_TIME)
        while True:
            self._missing.clear()
            hosts = set(self._in_use())
            for host in self._found.keys() - hosts:
                del self._found[host]
            self._failing &= hosts
            async with asyncio.TaskGroup() as lookups:
                for host in hosts:
                    lookups.create_task(self._look_up(host, bound))
            with contextlib.suppress(TimeoutError):  # it is time again
                async with asyncio.timeout(REFRESH_SECONDS):
                    await self._missing.wait()

    async def _look_up(self, host: str, bound: asyncio.Semaphore) -> None:
        before = self._found.get(host)
        async with bound:
            try:
                async with asyncio.timeout(LOOKUP_SECONDS):
                    found = await self._resolve(host)
            except (OSError, UnicodeError) as failed:
                if host not in self._failing:
                    self._failing.add(host)
                    log.warning(
                        "a node's host name is not found: %s (%r); what was found before stays", host, failed,
                        extra={"action": "gateway.host_not_found", "host": host},
                    )  # fmt: skip
                found = before or ()
            else:
                self._failing.discard(host)
        self._found[host] = found
        if found != before:
            self._changed(host)

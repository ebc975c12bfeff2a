"""Databases made ahead on each server for apps that get one of their own: it is renamed, and not created.

What there is, the servers themselves tell by its name; so nothing is lost or given twice, whoever ends when.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Iterable
from contextlib import suppress
from typing import Protocol

from psycopg.sql import SQL, Identifier

from appsupervisor.fleet.v1.fleet_pb2 import DatabaseServer
from services.control_plane.databases.connecting import Connection, connected
from services.control_plane.store.records import DatabaseServerRecord
from services.rpc.errors import SupervisorError

LOOK_SECONDS = 10.0
"""Between two looks at all servers; one whose spare was taken is looked at at once."""

log = logging.getLogger("appsupervisor.databases")


class Servers(Protocol):
    """The servers that are registered, as their feed tells them."""

    def values(self) -> Iterable[DatabaseServerRecord]:
        """Tell all of them."""
        ...


def prefix_of(server: DatabaseServerRecord) -> str:
    """Return how the names of a registration's spare databases begin: no app's begins so."""
    return f"as_spare_{server.server.uid.replace('-', '')}_"


async def take(connection: Connection, server: DatabaseServerRecord, owner: str) -> bool:
    """Give an app one of its server's spare databases; in a transaction. False if there is none."""
    prefix = prefix_of(server)
    if not server.server.spare_databases:
        return False
    # One at a time: two that take the same would hold each other up, and one of them fail.
    await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (prefix,))
    names = await names_of(connection, prefix)
    if not names:
        return False
    name = Identifier(owner)
    await connection.execute(SQL("ALTER DATABASE {} RENAME TO {}").format(Identifier(names[0]), name))
    await connection.execute(SQL("ALTER DATABASE {0} OWNER TO {0}").format(name))
    return True


async def names_of(connection: Connection, prefix: str) -> list[str]:
    """Return the names of the spare databases that there are."""
    query = "SELECT datname::text FROM pg_database WHERE starts_with(datname::text, %s) ORDER BY datname"
    cursor = await connection.execute(query, (prefix,))
    return [name for (name,) in await cursor.fetchall()]


async def fill(server: DatabaseServerRecord, wanted: int) -> None:
    """Bring the number of a server's spare databases to what is wanted. Raises as `connected`."""
    prefix = prefix_of(server)
    async with connected(server) as connection:
        names = await names_of(connection, prefix)
        for name in names[wanted:]:
            # One that an app has been given meanwhile has another name.
            await connection.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(name)))
        for _ in range(wanted - len(names)):
            name = f"{prefix}{secrets.token_hex(4)}"
            await connection.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
            await connection.execute(SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(Identifier(name)))
        if len(names) != wanted:
            log.info("spare databases: %s has %d", server.name, wanted,
                     extra={"action": "databases.spares", "server": server.name})  # fmt: skip


class SparePool:
    """Keeps the servers' spare databases at their numbers. Lives on one loop."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._known: dict[str, DatabaseServerRecord] = {}
        """By uid, those that may have spare databases."""
        self._taken = asyncio.Event()

    def look(self) -> None:
        """Have all servers looked at: one has fewer than before, or is wanted otherwise."""
        self._taken.set()

    async def run(self) -> None:
        """Look for ever."""
        while True:
            self._taken.clear()
            await self.look_at_all()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._taken.wait()

    async def look_at_all(self) -> None:
        """Look at every server once; what fails is told, and left for the next time."""
        servers = {it.server.uid: it for it in self._servers.values()}
        gone = [it for uid, it in self._known.items() if uid not in servers]
        wanted = [it for uid, it in servers.items() if it.server.spare_databases or uid in self._known]
        await asyncio.gather(*(self._look_at(it, forgotten=True) for it in gone))
        await asyncio.gather(*(self._look_at(it, forgotten=False) for it in wanted))

    async def _look_at(self, server: DatabaseServerRecord, *, forgotten: bool) -> None:
        uid = server.server.uid
        if not forgotten:
            self._known[uid] = server
            if server.server.state != DatabaseServer.REACHABLE:
                return
        wanted = 0 if forgotten else server.server.spare_databases
        try:
            await fill(server, wanted)
        except SupervisorError as failure:
            log.warning("spare databases: %s: %s", server.name, failure.message,
                        extra={"action": "databases.spares_failed", "server": server.name})  # fmt: skip
            if not forgotten:
                return
        if not wanted:
            # Of one that is forgotten this was the only try: nobody has its URL any more.
            self._known.pop(uid, None)

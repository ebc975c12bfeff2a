"""Asks each registered server, again and again, whether it can be used, and stores what has changed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from appsupervisor.fleet.v1.fleet_pb2 import DatabaseServer
from services.control_plane.store.interface import Transaction
from services.control_plane.store.records import DatabaseServerRecord, timestamp
from services.rpc.errors import SupervisorError
from services.rpc.feed import ChangeFeed

ASK_SECONDS = 10.0
"""Time between looks; a server that is new or was changed is asked at once."""

ASK_AT_ONCE = 8
OLDEST = 150_000
"""Of PostgreSQL: from 15 on a database's owner, and nobody else, may write its schema `public`."""

log = logging.getLogger("appsupervisor.databases")


@dataclass(frozen=True, slots=True)
class Health:
    """What is known of a server."""

    state: DatabaseServer.State.ValueType
    reason: str = ""
    version: str = ""


async def look(server: DatabaseServerRecord) -> Health:
    """Ask a server whether apps can have their databases there."""
    # With psycopg, which most control planes have no use for.
    from services.control_plane.databases import steps  # noqa: PLC0415
    from services.control_plane.databases.connecting import connected  # noqa: PLC0415

    try:
        async with connected(server) as connection:
            await steps.refuse_catalog(connection, server.name)
            cursor = await connection.execute(
                "SELECT current_setting('server_version_num')::int, current_setting('server_version'),"
                " (SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user),"
                " has_database_privilege(current_database(), 'CREATE'),"
                " (SELECT array_agg(datname::text) FROM pg_database WHERE datname = ANY(%s::name[]))",
                (list(server.server.templates),),
            )
            (told,) = await cursor.fetchall()
    except SupervisorError as failure:
        silent = failure.reason == "DATABASE_SERVER_UNREACHABLE"
        state = DatabaseServer.UNREACHABLE if silent else DatabaseServer.UNUSABLE
        return Health(state, failure.message)
    number, version, makes_roles, makes_schemas, templates = told
    if number < OLDEST:
        return Health(DatabaseServer.UNUSABLE, "It is older than PostgreSQL 15.", version)
    if not makes_roles or not makes_schemas:
        lacks = "roles (CREATEROLE)" if not makes_roles else "schemas (CREATE on its database)"
        return Health(DatabaseServer.UNUSABLE, f"Its administrator may not create {lacks}.", version)
    lacking = [name for name in server.server.templates if name not in (templates or ())]
    reason = f"It does not have the templates {', '.join(lacking)}." if lacking else ""
    return Health(DatabaseServer.REACHABLE, reason, version)


class ServerWatch:
    """Keeps the states of servers true. Lives on one loop."""

    def __init__(
        self,
        servers: ChangeFeed[DatabaseServerRecord],
        write: Callable[[Callable[[Transaction], Any]], Future[Any]],
        ask: Callable[[DatabaseServerRecord], Any] = look,
    ) -> None:
        """`write` stores what has changed."""
        self._servers = servers
        self._write = write
        self._ask = ask
        self._room = asyncio.Semaphore(ASK_AT_ONCE)

    async def run(self) -> None:
        """Look for ever."""
        while True:
            position = self._servers.revision
            try:
                await asyncio.gather(*(self._look_at(server) for server in self._servers.values()))
            except SupervisorError as failure:
                log.warning("state not stored: %s", failure.message, extra={"action": "databases.not_stored"})
            except Exception:
                log.exception("a look at database servers failed", extra={"action": "databases.look_failed"})
            await self._rest(position)

    async def _rest(self, position: int) -> None:
        """Wait for a time, or until a server is new or was changed by somebody else."""
        known = {server.name: server.admin_url for server in self._servers.values()}
        deadline = asyncio.get_running_loop().time() + ASK_SECONDS
        while (left := deadline - asyncio.get_running_loop().time()) > 0:
            if self._servers.closed:
                await asyncio.sleep(left)
            await self._servers.wait(position, left)
            position = self._servers.revision
            if {server.name: server.admin_url for server in self._servers.values()} != known:
                return

    async def _look_at(self, server: DatabaseServerRecord) -> None:
        async with self._room:
            health = await self._ask(server)
        known = server.server
        if (known.state, known.state_reason, known.server_version) != (
            health.state,
            health.reason,
            health.version or known.server_version,
        ):
            told = partial(_told, name=server.name, uid=known.uid, health=health)
            await asyncio.wrap_future(self._write(told))


def _told(tx: Transaction, name: str, uid: str, health: Health) -> None:
    record = tx.database_server(name)
    if record is None or record.server.uid != uid:
        return
    server = DatabaseServer()
    server.CopyFrom(record.server)
    server.state, server.state_reason = health.state, health.reason
    server.server_version = health.version or server.server_version
    server.update_time.CopyFrom(timestamp(tx.now))
    tx.put_database_server(replace(record, server=server))

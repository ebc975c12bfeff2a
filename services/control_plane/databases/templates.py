"""Has an app's database begin as a copy of a prepared one: all of it there and the app's own, or nothing.

It is made under a name that nobody asks for, and is given the app's once it is complete. What a try has left,
whoever was killed in it, is dropped by the next one, or with the app.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import dataclass
from typing import Final

import psycopg
from psycopg.sql import SQL, Identifier

from services.control_plane.databases import steps
from services.control_plane.databases.connecting import STEP_SECONDS, Connection, connected
from services.control_plane.databases.ownership import give_all
from services.control_plane.databases.steps import Claim
from services.control_plane.store.records import DatabaseServerRecord
from services.rpc.errors import SupervisorError

AT_ONCE = 2
"""Copies that are made on one server at a time: each is bound by its disk."""

COPY_SECONDS = 60
"""How long one copy may take."""

LARGE_BYTES = 64 * 2**20
"""From here on files are copied, between two checkpoints; what is smaller is written to the log,
which holds up nobody. Of 64 MB they take 0.2 and 0.5 s, of 600 MB 1 and 5.5 s."""

IN_USE_SECONDS = 2.0
"""How long sessions in a template are waited for: one that was closed is there for a moment still."""

_POLL = 0.05
_COPY: Final = "_copy"
"""In the name of a copy that is not complete, between the owner's and a random end."""

log = logging.getLogger("appsupervisor.databases")


@dataclass(frozen=True, slots=True)
class _Template:
    """What is known of a prepared database."""

    size: int
    """Bytes; 0 where the administrator may not know."""
    sessions: int
    foreign: str
    """A role of an app that owns it, or something in it; empty if none does."""


async def begin_as_copy(
    connection: Connection, server: DatabaseServerRecord, owner: str, claim: Claim, template: str
) -> None:
    """Make an app's database, unless it is there, as a copy of a template; not in a transaction.

    All in it is the owner's then, but what belongs to its extensions. Raises SupervisorError
    DATABASE_TEMPLATE_UNUSABLE, and as `connected` and `steps.claim`; after any of them there is none, and a
    repeat begins anew.
    """
    if template not in server.server.templates:
        raise _unusable(server, template, "it is none of the templates that the server is registered with")
    await _alone(connection, server, owner, claim)
    if await steps.has_database(connection, owner):
        return
    strategy = await _check(connection, server, template)
    copy = f"{owner}{_COPY}{secrets.token_hex(4)[:7]}"
    try:
        await _copy(connection, server, owner, template, copy, strategy)
        async with connected(server, copy) as inside:
            if await steps.is_catalog(inside):
                raise _unusable(server, template, "it is a catalog of AppSupervisor")
            try:
                await give_all(inside, owner)
            except psycopg.errors.InsufficientPrivilege as refusal:
                why = "the server's administrator may not give all that is in it away: it has to own it"
                raise _unusable(server, template, why, refusal) from None
        async with connection.transaction():
            await steps.claim(connection, owner, claim)
            rename = SQL("ALTER DATABASE {} RENAME TO {}").format(Identifier(copy), Identifier(owner))
            await connection.execute(rename)
    except (SupervisorError, psycopg.Error):
        await _drop(connection, copy)
        raise
    log.info("database: %s begins as a copy of %s", owner, template,
             extra={"action": "databases.copied", "server": server.name})  # fmt: skip


async def drop_copies(connection: Connection, server: DatabaseServerRecord, owner: str, claim: Claim) -> None:
    """Drop what tries have left, of an app that ends. Raises as `begin_as_copy`."""
    await _alone(connection, server, owner, claim, make=False)


async def _alone(
    connection: Connection, server: DatabaseServerRecord, owner: str, claim: Claim, *, make: bool = True
) -> None:
    """Wait for a try that may be under way, let no other begin, and drop what is left."""
    try:
        # PostgreSQL goes on with a copy whose client was killed: until the end, with the lock of its session.
        lock = "SELECT pg_advisory_lock(hashtextextended(%s, 0))"
        await connection.execute(lock, (f"{owner}{_COPY}",))
    except psycopg.errors.LockNotAvailable:
        text = f"{server.name} makes a copy for the app still, for a control plane that has ended."
        raise SupervisorError("DATABASE_TEMPLATE_UNUSABLE", text, resource=server.name) from None
    async with connection.transaction():
        await steps.claim(connection, owner, claim, make=make)
    query = "SELECT datname::text FROM pg_database WHERE starts_with(datname::text, %s)"
    cursor = await connection.execute(query, (f"{owner}{_COPY}",))
    for (left,) in await cursor.fetchall():
        await connection.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(left)))


async def _check(connection: Connection, server: DatabaseServerRecord, name: str) -> SQL:
    """Return how a template is copied best. Raises DATABASE_TEMPLATE_UNUSABLE if it is not to be."""
    if name == connection.info.dbname:
        raise _unusable(server, name, "apps have their schemas in it")
    end = asyncio.get_running_loop().time() + IN_USE_SECONDS
    while template := await _look_at(connection, name):
        if template.foreign:
            raise _unusable(server, name, f"what is in it belongs to an app's role, {template.foreign}")
        if not template.sessions:
            return SQL("FILE_COPY" if template.size >= LARGE_BYTES else "WAL_LOG")
        if asyncio.get_running_loop().time() > end:
            raise _unusable(server, name, f"it is in use, by sessions: {template.sessions}")
        await asyncio.sleep(_POLL)
    raise _unusable(server, name, "it does not exist")


async def _look_at(connection: Connection, name: str) -> _Template | None:
    cursor = await connection.execute(
        """
        SELECT CASE WHEN has_database_privilege(d.oid, 'CONNECT') THEN pg_database_size(d.oid) ELSE 0 END,
            -- Of those that have a user: PostgreSQL itself ends its own that stand in the way.
            (SELECT count(*) FROM pg_stat_activity AS a WHERE a.datid = d.oid AND a.usesysid IS NOT NULL),
            (SELECT min(r.rolname) FROM pg_roles AS r
             WHERE r.rolname ~ '^as_.*_[0-9a-f]{32}(_e.*)?$' AND (r.oid = d.datdba OR r.oid IN (
                SELECT s.refobjid FROM pg_shdepend AS s
                WHERE s.dbid = d.oid AND s.refclassid = 'pg_authid'::regclass AND s.deptype = 'o')))
        FROM pg_database AS d WHERE d.datname = %s
        """,
        (name,),
    )
    found = await cursor.fetchone()
    return _Template(found[0], found[1], found[2] or "") if found is not None else None


async def _copy(
    connection: Connection, server: DatabaseServerRecord, owner: str, template: str, copy: str, strategy: SQL
) -> None:
    names = {"copy": Identifier(copy), "owner": Identifier(owner), "template": Identifier(template)}
    create = SQL(
        "CREATE DATABASE {copy} OWNER {owner} TEMPLATE {template} STRATEGY {strategy}"
        # By default anybody may log in to what is new; here there is something to see.
        " ALLOW_CONNECTIONS false"
    )
    try:
        await connection.execute(f"SET statement_timeout = '{COPY_SECONDS}s'".encode())
        await connection.execute(create.format(**names, strategy=strategy))
        await connection.execute(f"SET statement_timeout = '{STEP_SECONDS}s'".encode())
    except psycopg.errors.QueryCanceled:
        why = f"no copy of it was made within {COPY_SECONDS} s"
        raise _unusable(server, template, why) from None
    except psycopg.errors.ObjectInUse as refusal:  # for the 5 s that PostgreSQL waits
        raise _unusable(server, template, "it is in use", refusal) from None
    except psycopg.errors.InsufficientPrivilege as refusal:
        why = "the server's administrator may not copy it: it has to own it"
        raise _unusable(server, template, why, refusal) from None
    await connection.execute(SQL("REVOKE ALL ON DATABASE {copy} FROM PUBLIC").format(**names))
    await connection.execute(SQL("ALTER DATABASE {copy} ALLOW_CONNECTIONS true").format(**names))


async def _drop(connection: Connection, copy: str) -> None:
    """Drop a copy that is not given, if that can be: else the next try does."""
    try:
        await connection.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(copy)))
    except psycopg.Error as failure:
        log.warning("a copy stays: %s: %s", copy, failure.sqlstate,
                    extra={"action": "databases.copy_stays", "database": copy})  # fmt: skip


def _unusable(
    server: DatabaseServerRecord, template: str, why: str, refusal: psycopg.Error | None = None
) -> SupervisorError:
    told = refusal.diag.message_primary if refusal is not None else None
    because = f"{why} ({told})" if told else why
    return SupervisorError(
        "DATABASE_TEMPLATE_UNUSABLE",
        f"No database begins as a copy of {template} on {server.name} now: {because}.",
        resource=server.name,
        metadata={"template": template, "why": because},
    )

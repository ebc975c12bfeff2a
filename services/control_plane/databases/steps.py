"""The steps by which an app's database is made, guarded and dropped. Each may be repeated, after any failure.

One role without a login owns all; each epoch logs in under a role of its own, which acts as the owner. A
login that is taken away gets in no more, and its sessions are ended before anything else begins.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql
from psycopg.sql import SQL, Identifier, Literal

from services.control_plane.databases.connecting import Connection
from services.rpc.errors import SupervisorError

log = logging.getLogger("appsupervisor.databases")

FENCE_SECONDS = 5.0
"""How long sessions that were told to end are waited for."""

_POLL = 0.005
_QUIET_POLLS = 2
"""Looks in a row that have to find no session: one that was just being made shows a moment later."""


@dataclass(frozen=True, slots=True)
class Login:
    """A role to log in under, and how many connections it may have."""

    name: str
    password: str
    connections: int


@dataclass(frozen=True, slots=True)
class Claim:
    """Whose an app's database is, and which leader works on it."""

    mark: str
    leader: int
    """Rises from leader to leader."""


async def refuse_catalog(connection: Connection, server: str) -> None:
    """Raise DATABASE_UNAVAILABLE if the connection's database is a catalog's own."""
    found = await _one(
        connection, "SELECT to_regclass('meta'), to_regclass('histories'), to_regclass('leadership')"
    )
    if found is not None and all(found):
        text = f"The admin_url of {server} leads to a catalog of AppSupervisor; give apps another database."
        raise SupervisorError("DATABASE_UNAVAILABLE", text, resource=server)


async def claim(connection: Connection, owner: str, claimed: Claim, *, make: bool = True) -> bool:
    """Lock an app's names until the transaction ends, and tell whether it has an owner on the server.

    `make` makes the owner. Raises DATABASE_UNAVAILABLE if it is somebody else's, LEADERSHIP_LOST if a later
    leader was here: what the catalog of this one says of the app is old.
    """
    await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (owner,))
    query = "SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = %s"
    found = await _one(connection, query, owner)
    if found is None and not make:
        return False
    if found is None:
        await connection.execute(SQL("CREATE ROLE {} NOLOGIN").format(Identifier(owner)))
        leader = 0
    else:
        told = str(found[0] or "")
        number = told.removeprefix(claimed.mark)
        if not told.startswith(claimed.mark) or not number.isdecimal():
            raise _foreign(owner)
        leader = int(number)
    if leader > claimed.leader:
        text = "A later leader works on the app's database; this one's view of it is old."
        raise SupervisorError("LEADERSHIP_LOST", text)
    if leader < claimed.leader:
        comment = Literal(f"{claimed.mark}{claimed.leader}")
        await connection.execute(SQL("COMMENT ON ROLE {} IS {}").format(Identifier(owner), comment))
    return True


async def make_schema(connection: Connection, owner: str, *, must_exist: bool) -> None:
    """Make the schema of an app, unless it is there.

    Raises DATA_MISSING if it `must_exist` and does not, DATABASE_UNAVAILABLE if it is somebody else's.
    """
    query = "SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = %s"
    found = await _one(connection, query, owner)
    if found is None:
        if must_exist:
            raise _missing(owner)
        await connection.execute(SQL("CREATE SCHEMA {0} AUTHORIZATION {0}").format(Identifier(owner)))
    elif found[0] != owner:
        raise _foreign(owner)


async def make_database(connection: Connection, owner: str, *, must_exist: bool) -> None:
    """Make the database of an app, unless it is there, for its owner alone; outside of a transaction.

    Raises as `make_schema`.
    """
    query = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s"
    found = await _one(connection, query, owner)
    if found is None:
        if must_exist:
            raise _missing(owner)
        await connection.execute(SQL("CREATE DATABASE {0} OWNER {0}").format(Identifier(owner)))
    elif found[0] != owner:
        raise _foreign(owner)
    await connection.execute(SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(Identifier(owner)))


async def make_login(connection: Connection, owner: str, login: Login, *, schema: bool) -> None:
    """Let an epoch log in as its owner; `schema`: into the schema of that name."""
    verifier = connection.pgconn.encrypt_password(
        login.password.encode(), login.name.encode(), b"scram-sha-256"
    ).decode()
    role, owns = Identifier(login.name), Identifier(owner)
    if await _one(connection, "SELECT 1 FROM pg_roles WHERE rolname = %s", login.name) is None:
        await connection.execute(SQL("CREATE ROLE {} NOLOGIN").format(role))
    await connection.execute(
        SQL("ALTER ROLE {} LOGIN PASSWORD {} CONNECTION LIMIT {}").format(
            role, Literal(verifier), Literal(login.connections)
        )
    )
    await connection.execute(SQL("GRANT {} TO {}").format(owns, role))
    # What it makes is the owner's, so that the next epoch's login may change it.
    await connection.execute(SQL("ALTER ROLE {} SET role = {}").format(role, owns))
    if schema:
        await connection.execute(SQL("ALTER ROLE {} SET search_path = {}").format(role, owns))


async def logins_of(connection: Connection, owner: str) -> list[str]:
    """Return the names of the roles under which epochs of an app log in, or did."""
    query = "SELECT rolname FROM pg_roles WHERE starts_with(rolname::text, %s) ORDER BY rolname"
    cursor = await connection.execute(query, (f"{owner}_e",))
    return [name for (name,) in await cursor.fetchall()]


async def shut_out(connection: Connection, owner: str, keep: Collection[str]) -> list[str]:
    """Take every login of an app away but those to `keep`, and return them; their sessions are open still."""
    shut = [login for login in await logins_of(connection, owner) if login not in keep]
    for login in shut:
        await connection.execute(SQL("ALTER ROLE {} NOLOGIN").format(Identifier(login)))
        # One that is just being logged in gets in, and finds that it may do nothing.
        await connection.execute(SQL("REVOKE {} FROM {}").format(Identifier(owner), Identifier(login)))
    return shut


async def end_sessions(connection: Connection, owner: str, logins: Sequence[str]) -> None:
    """End the sessions of logins that were taken away, and return once there is none; not in a transaction.

    Raises DATABASE_UNAVAILABLE if they do not end in time.
    """
    # By looking again, not by the function's own waiting, which takes 100 ms for each session.
    query = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = ANY(%s)"
    quiet = 0 if logins else _QUIET_POLLS
    try:
        async with asyncio.timeout(FENCE_SECONDS):
            while quiet < _QUIET_POLLS:
                found = await _one(connection, query, list(logins))
                quiet = quiet + 1 if found == (0,) else 0
                await asyncio.sleep(_POLL)
    except TimeoutError:
        text = f"Sessions of an older epoch of {owner} have not ended within {FENCE_SECONDS:g} s."
        raise SupervisorError("DATABASE_UNAVAILABLE", text, metadata={"owner": owner}) from None


async def forget_logins(connection: Connection, owner: str, logins: Collection[str]) -> None:
    """Drop roles that were shut out. One that cannot be stays, shut out: it harms nobody.

    The connection is to the database that they could log in to.
    """
    for login in logins:
        role = Identifier(login)
        try:
            async with connection.transaction():
                await connection.execute(SQL("REASSIGN OWNED BY {} TO {}").format(role, Identifier(owner)))
                await connection.execute(SQL("DROP OWNED BY {}").format(role))
                await connection.execute(SQL("DROP ROLE {}").format(role))
        except psycopg.Error as failure:
            if connection.broken:
                raise
            log.warning("a login stays: %s: %s", login, failure.sqlstate,
                        extra={"action": "databases.login_stays", "login": login})  # fmt: skip


async def drop_schema(connection: Connection, owner: str) -> None:
    """Drop an app's schema with all that is in it, and its owner; in a transaction."""
    await connection.execute(SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(Identifier(owner)))
    await _drop_owner(connection, owner)


async def drop_database(connection: Connection, owner: str) -> None:
    """Drop an app's database, and its owner; outside of a transaction."""
    await connection.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(owner)))
    async with connection.transaction():
        await _drop_owner(connection, owner)


async def _drop_owner(connection: Connection, owner: str) -> None:
    await connection.execute(SQL("DROP OWNED BY {} CASCADE").format(Identifier(owner)))
    await connection.execute(SQL("DROP ROLE {}").format(Identifier(owner)))


async def _one(connection: Connection, query: str, *parameters: object) -> tuple[object, ...] | None:
    cursor = await connection.execute(sql.SQL(query), parameters or None)
    return await cursor.fetchone()


def _missing(owner: str) -> SupervisorError:
    return SupervisorError(
        "DATA_MISSING",
        f"The app has served before, and its database {owner} is not on its server. Restore it, or start the "
        "app with accept_data_loss to let it begin on a new, empty one.",
        metadata={"owner": owner},
    )


def _foreign(owner: str) -> SupervisorError:
    return SupervisorError(
        "DATABASE_UNAVAILABLE",
        f"What is called {owner} on the server is not this app's.",
        metadata={"owner": owner},
    )

"""The steps by which an app's database is made, guarded and dropped. Each may be repeated, after any failure.

One role without a login owns all; each epoch logs in under a role of its own, which acts as the owner. A
login that is taken away gets in no more, and its sessions are ended before anything else begins.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import os
import secrets
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql
from psycopg.sql import SQL, Composed, Identifier, Literal

from services.control_plane.databases.connecting import Connection
from services.rpc.errors import SupervisorError

log = logging.getLogger("appsupervisor.databases")

FENCE_SECONDS = 5.0
"""How long sessions that were told to end are waited for."""

_GONE = "_gone"
"""In the name of an app's database that is to be dropped, between the owner's and a random end."""

_POLL = 0.005
_QUIET_POLLS = 2
"""Looks in a row that have to find no session: one that was just being made shows a moment later."""


@dataclass(frozen=True, slots=True)
class Login:
    """A role to log in under, and how many connections it may have."""

    name: str
    password: str
    connections: int
    uses: str = ""
    """A schema beside the app's own in which it looks for what it names."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Whose an app's database is, and which leader works on it."""

    mark: str
    leader: int
    """Rises from leader to leader."""

    @property
    def comment(self) -> str:
        """What the owner is marked with."""
        return f"{self.mark}{self.leader}"


async def is_catalog(connection: Connection) -> bool:
    """Tell whether the connection's database is a catalog's own."""
    # Where a catalog makes them by itself: in a schema of its own an app may have what it likes.
    query = """
        SELECT n.nspname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname IN ('public', current_user) AND c.relkind = 'r'
            AND c.relname IN ('meta', 'histories', 'leadership')
        GROUP BY n.nspname HAVING count(*) = 3
    """
    return await _one(connection, query) is not None


async def refuse_catalog(connection: Connection, server: str) -> None:
    """Raise DATABASE_UNAVAILABLE if the connection's database is a catalog's own."""
    if await is_catalog(connection):
        text = f"The admin_url of {server} leads to a catalog of AppSupervisor; give apps another database."
        raise SupervisorError("DATABASE_UNAVAILABLE", text, resource=server)


async def lock(connection: Connection, owners: Collection[str]) -> None:
    """Lock the names of apps until the transaction ends."""
    # In one order: two that hold what the other wants would wait for ever.
    query = "SELECT pg_advisory_xact_lock(hashtextextended(owner, 0)) FROM unnest(%s::text[]) AS owner"
    await connection.execute(query, (sorted(owners),))


async def claim(connection: Connection, owner: str, claimed: Claim, *, make: bool = True) -> bool:
    """Lock an app's names until the transaction ends, and tell whether it has an owner on the server.

    `make` makes the owner. Raises as `is_older`.
    """
    await lock(connection, [owner])
    query = "SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = %s"
    found = await _one(connection, query, owner)
    if found is None and not make:
        return False
    if is_older(owner, str(found[0] or "") if found is not None else None, claimed):
        if found is None:
            await connection.execute(SQL("CREATE ROLE {} NOLOGIN").format(Identifier(owner)))
        comment = Literal(claimed.comment)
        await connection.execute(SQL("COMMENT ON ROLE {} IS {}").format(Identifier(owner), comment))
    return True


def is_older(owner: str, comment: str | None, claimed: Claim) -> bool:
    """Tell whether an app's owner, None if there is none, is not marked with this leader yet.

    Raises DATABASE_UNAVAILABLE if it is somebody else's, LEADERSHIP_LOST if a later leader was here: what the
    catalog of this one says of the app is old.
    """
    if comment is None:
        return True
    number = comment.removeprefix(claimed.mark)
    if not comment.startswith(claimed.mark) or not number.isdecimal():
        raise foreign(owner)
    if int(number) > claimed.leader:
        text = "A later leader works on the app's database; this one's view of it is old."
        raise SupervisorError("LEADERSHIP_LOST", text)
    return int(number) < claimed.leader


async def make_database(connection: Connection, owner: str, *, must_exist: bool) -> None:
    """Make the database of an app, unless it is there, for its owner alone; outside of a transaction.

    Raises DATA_MISSING if it `must_exist` and does not, DATABASE_UNAVAILABLE if it is somebody else's.
    """
    query = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s"
    found = await _one(connection, query, owner)
    if found is None:
        if must_exist:
            raise missing(owner)
        await connection.execute(SQL("CREATE DATABASE {0} OWNER {0}").format(Identifier(owner)))
    elif found[0] != owner:
        raise foreign(owner)
    await connection.execute(SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(Identifier(owner)))


async def has_database(connection: Connection, owner: str) -> bool:
    """Tell whether an app has its database."""
    return await _one(connection, "SELECT 1 FROM pg_database WHERE datname = %s", owner) is not None


async def make_login(connection: Connection, owner: str, login: Login, *, schema: bool = False) -> None:
    """Let an epoch log in as its owner; `schema`: in the schema of that name."""
    if await _one(connection, "SELECT 1 FROM pg_roles WHERE rolname = %s", login.name) is None:
        await connection.execute(SQL("CREATE ROLE {} NOLOGIN").format(Identifier(login.name)))
    for command in letting_in(owner, login, schema=schema):
        await connection.execute(command)


def letting_in(owner: str, login: Login, *, schema: bool) -> Iterator[Composed]:
    """Yield the commands that let a role log in and be its owner; `schema`: in the schema of that name."""
    role, owns = Identifier(login.name), Identifier(owner)
    yield SQL("ALTER ROLE {} LOGIN PASSWORD {} CONNECTION LIMIT {}").format(
        role, Literal(verifier_of(login)), Literal(login.connections)
    )
    yield SQL("GRANT {} TO {}").format(owns, role)
    # What it makes is the owner's, so that the next epoch's login may change it.
    yield SQL("ALTER ROLE {} SET role = {}").format(role, owns)
    if schema:
        path = SQL(", ").join([owns, *([Identifier(login.uses)] if login.uses else [])])
        yield SQL("ALTER ROLE {} SET search_path = {}").format(role, path)


def verifier_of(login: Login) -> str:
    """Return what a server keeps of a login's password (RFC 5803), not enough to log in.

    Hashed once: the password is 256 random bits, which nobody finds by trying. Hashed 4,096 times, as usual,
    each start takes 5 ms of the server, which looks whether it is that of an empty one, each connection more.
    """
    salt = os.urandom(16)
    salted = hmac.digest(login.password.encode(), salt + b"\0\0\0\1", "sha256")
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    encoded = (base64.b64encode(part).decode() for part in (salt, stored, server))
    return "SCRAM-SHA-256$1:{}${}:{}".format(*encoded)


async def logins_of(connection: Connection, owner: str) -> list[str]:
    """Return the names of the roles under which epochs of an app, and its moves, log in, or did."""
    # A range, for which there is an index: a server has thousands of roles.
    query = "SELECT rolname FROM pg_roles WHERE rolname >= %s::name AND rolname < %s::name ORDER BY rolname"
    cursor = await connection.execute(query, (f"{owner}_e", f"{owner}_f"))
    return [name for (name,) in await cursor.fetchall()]


async def shut_out(connection: Connection, owner: str, keep: Collection[str]) -> list[str]:
    """Take every login of an app away but those to `keep`, and return them; their sessions are open still."""
    shut = [login for login in await logins_of(connection, owner) if login not in keep]
    for login in shut:
        for command in taking_away(owner, login):
            await connection.execute(command)
    return shut


def taking_away(owner: str, login: str) -> Iterator[Composed]:
    """Yield the commands after which a role logs in no more."""
    yield SQL("ALTER ROLE {} NOLOGIN").format(Identifier(login))
    # One that is just being logged in gets in, and finds that it may do nothing.
    yield SQL("REVOKE {} FROM {}").format(Identifier(owner), Identifier(login))


async def end_sessions(connection: Connection, shut: Mapping[str, Sequence[str]]) -> AsyncIterator[str]:
    """End the sessions of logins that were taken away, and yield each owner once it has none; not in a
    transaction. Those that are not yielded within FENCE_SECONDS have some still.
    """
    # By looking again, not by the function's own waiting, which takes 100 ms for each session.
    query = """
        SELECT usename::text, pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE usename = ANY(%s::name[])
    """
    left = dict.fromkeys((owner for owner, logins in shut.items() if logins), _QUIET_POLLS)
    for owner in shut.keys() - left.keys():
        yield owner
    end = asyncio.get_running_loop().time() + FENCE_SECONDS
    while left and asyncio.get_running_loop().time() < end:
        cursor = await connection.execute(query, ([login for owner in left for login in shut[owner]],))
        seen = {login for login, _ in await cursor.fetchall()}
        for owner, looks in list(left.items()):
            left[owner] = _QUIET_POLLS if seen.intersection(shut[owner]) else looks - 1
            if not left[owner]:
                del left[owner]
                yield owner
        if left:
            await asyncio.sleep(_POLL)


def not_ended(owner: str) -> SupervisorError:
    """Return the error for sessions that were told to end, and have not."""
    text = f"Sessions of an older epoch of {owner} have not ended within {FENCE_SECONDS:g} s."
    return SupervisorError("DATABASE_UNAVAILABLE", text, metadata={"owner": owner})


async def forget_logins(connection: Connection, shut: Mapping[str, Sequence[str]]) -> None:
    """Drop roles that were shut out, by owner. One that cannot be stays, shut out: it harms nobody.

    The connection is to the database that they could log in to.
    """
    try:
        await _forget(connection, shut)
    except psycopg.Error as failure:
        if connection.broken:
            raise
        if len(shut) > 1 or any(len(logins) > 1 for logins in shut.values()):
            for owner, logins in shut.items():  # nothing tells which of them it was
                for login in logins:
                    await forget_logins(connection, {owner: [login]})
            return
        for login in (one for logins in shut.values() for one in logins):
            log.warning("a login stays: %s: %s", login, failure.sqlstate,
                        extra={"action": "databases.login_stays", "login": login})  # fmt: skip


async def _forget(connection: Connection, shut: Mapping[str, Sequence[str]]) -> None:
    todo = [
        SQL("REASSIGN OWNED BY {0} TO {1}; DROP OWNED BY {0}; DROP ROLE {0}").format(
            Identifier(login), Identifier(owner)
        )
        for owner, logins in shut.items()
        for login in logins
    ]
    if todo:
        async with connection.transaction():
            await lock(connection, list(shut))
            await connection.execute(SQL("; ").join(todo))


async def drop_schema(connection: Connection, owner: str) -> None:
    """Drop an app's schema with all that is in it, and its owner; in a transaction."""
    await connection.execute(SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(Identifier(owner)))
    await _drop_owner(connection, owner)


async def empty_schema(connection: Connection, owner: str) -> None:
    """Have an app have a schema with nothing in it; in a transaction. Raises DATABASE_UNAVAILABLE."""
    query = "SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = %s"
    found = await _one(connection, query, owner)
    if found is not None and found[0] != owner:
        raise foreign(owner)
    await connection.execute(SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(Identifier(owner)))
    await connection.execute(SQL("CREATE SCHEMA {0} AUTHORIZATION {0}").format(Identifier(owner)))


async def drop_database(connection: Connection, owner: str, claimed: Claim) -> None:
    """Drop an app's database, and its owner; outside of a transaction. Raises as `is_older`."""
    await empty_database(connection, owner, claimed)
    # Those that could not be dropped from within it: what stood in their way is gone.
    await forget_logins(connection, {owner: await logins_of(connection, owner)})
    async with connection.transaction():
        if await claim(connection, owner, claimed, make=False):
            await _drop_owner(connection, owner)


async def empty_database(connection: Connection, owner: str, claimed: Claim) -> None:
    """Drop an app's database, but not its owner; outside of a transaction. Raises as `is_older`."""
    # Under a name that nobody asks for it is dropped safely: no transaction binds a drop to the claim, and a
    # leader that woke in between would drop what a later one has made.
    gone = f"{owner}{_GONE}{secrets.token_hex(4)[:7]}"
    query = """
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE usename >= %s::name AND usename < %s::name
    """
    await connection.execute(query, (f"{owner}_e", f"{owner}_f"))
    async with connection.transaction():
        await claim(connection, owner, claimed, make=False)
        query = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s"
        found = await _one(connection, query, owner)
        if found is not None and found[0] != owner:
            raise foreign(owner)
        if found is not None:
            rename = SQL("ALTER DATABASE {} RENAME TO {}").format(Identifier(owner), Identifier(gone))
            await connection.execute(rename)
    query = "SELECT datname FROM pg_database WHERE starts_with(datname::text, %s)"
    cursor = await connection.execute(query, (f"{owner}{_GONE}",))
    for (name,) in await cursor.fetchall():
        await connection.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(name)))


async def _drop_owner(connection: Connection, owner: str) -> None:
    await connection.execute(SQL("DROP OWNED BY {} CASCADE").format(Identifier(owner)))
    await connection.execute(SQL("DROP ROLE {}").format(Identifier(owner)))


async def _one(connection: Connection, query: str, *parameters: object) -> tuple[object, ...] | None:
    cursor = await connection.execute(sql.SQL(query), parameters or None)
    return await cursor.fetchone()


def missing(owner: str) -> SupervisorError:
    """Return the error for an app whose database is to be there, and is not."""
    return SupervisorError(
        "DATA_MISSING",
        f"The app has served before, and its database {owner} is not on its server. Restore it, or start the "
        "app with accept_data_loss to let it begin on a new one.",
        metadata={"owner": owner},
    )


def foreign(owner: str) -> SupervisorError:
    """Return the error for a name that is another's."""
    return SupervisorError(
        "DATABASE_UNAVAILABLE",
        f"What is called {owner} on the server is not this app's.",
        metadata={"owner": owner},
    )

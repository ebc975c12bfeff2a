"""One app's database on its way to another server: looked into, copied, compared.

Who may do that, and when, is decided elsewhere: nothing but this may write either while it is copied. What a
try leaves at the target belongs to nobody, and the next one begins with nothing there.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, LiteralString

from psycopg.sql import SQL, Identifier

from services.control_plane.databases import extensions, health, steps
from services.control_plane.databases.connecting import Connection, connected, inside
from services.control_plane.databases.contents import Contents, contents_of, first_difference
from services.control_plane.databases.dump_stream import stream
from services.control_plane.databases.names import move_login_of, password_of, url_of
from services.control_plane.databases.postgres_tools import PostgresTools, find_tools
from services.control_plane.databases.steps import Claim, Login
from services.control_plane.store.records import DatabaseServerRecord
from services.rpc.errors import SupervisorError

LOGIN_CONNECTIONS = 4
"""Of a move at each server: the program's, and that which compares."""


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is known of a server."""

    identifier: int
    """The cluster's own: what is registered twice is one."""
    major: int
    creates_databases: bool
    extensions: frozenset[str]
    encoding: str


@dataclass(frozen=True, slots=True)
class Relocation:
    """The way from one server to another."""

    source: DatabaseServerRecord
    target: DatabaseServerRecord
    owner: str
    claim: Claim
    in_schema: bool
    was_made: bool
    """Whether the app has ever had its database: else there may be nothing to bring."""
    asked: tuple[str, ...] = ()
    """The extensions that it asks for."""

    async def check(self, directory: str) -> tuple[PostgresTools, int]:
        """Return what a copy takes: the programs, and how many bytes there are. Changes nothing.

        `directory` is where the programs are, or empty. Raises SupervisorError DATABASE_NOT_MOVED,
        DATA_MISSING, DATABASE_SERVER_UNREACHABLE and DATABASE_UNAVAILABLE.
        """
        async with connected(self.source) as at_source, connected(self.target) as at_target:
            await steps.refuse_catalog(at_target, self.target.name)
            source, target = await _facts(at_source), await _facts(at_target)
            if source.identifier == target.identifier:
                raise self._refused("both are one and the same PostgreSQL server")
            if target.major * 10_000 < health.OLDEST:
                raise self._refused(f"{self.target.name} is older than PostgreSQL 15")
            if target.major < source.major:
                older = f"from PostgreSQL {source.major} to {target.major}"
                raise self._refused(f"it would go {older}, which is older")
            if not self.in_schema and not target.creates_databases:
                administrator = f"the administrator of {self.target.name}"
                raise self._refused(f"{administrator} may not create databases (CREATEDB)")
            if source.encoding != target.encoding:
                raise self._refused(f"its encoding is {source.encoding}, there it would be {target.encoding}")
            size = await self._size(at_source)
        needed = frozenset(self.asked)
        if not self.in_schema and size:
            async with inside(self.source, self.owner) as own:
                needed |= {name for name, _, _ in await extensions.there_are(own, self.owner)}
        if lacking := needed - target.extensions:
            named = ", ".join(sorted(lacking))
            raise self._refused(f"{self.target.name} lacks the extensions {named}")
        return await find_tools(directory, source.major, target.major), size

    async def copy(self, tools: PostgresTools, copied: Callable[[int], None]) -> int:
        """Bring everything to the target and compare it; return the bytes of the dump.

        No login of the app may be open at the source. `copied` is told the bytes so far. Raises as `check`;
        cancelled, it ends what runs.
        """
        word = secrets.token_hex(4)[:7]
        source = await self._open_source(word)
        target = await self._open_target(word)
        if source is None:
            if self.was_made:
                raise steps.missing(self.owner)
            return 0
        schema = self.owner if self.in_schema else ""
        await self._bring_extensions()
        size = await stream(tools, source, target, schema, copied)
        there: Contents = await contents_of(source, schema)
        different = first_difference(there, await contents_of(target, schema))
        if different:
            raise self._refused(f"the copy is not the same: {different}")
        return size

    async def _bring_extensions(self) -> None:
        """Have the target have what the database depends on: apps make no extensions, but trusted ones."""
        if self.in_schema:
            if self.asked:
                async with connected(self.target) as connection:
                    await extensions.provide(connection, self.asked, extensions.SCHEMA)
            return
        async with inside(self.source, self.owner) as there:
            known = await extensions.there_are(there, self.owner)
        if known:
            async with inside(self.target, self.owner) as here:
                for name, schema, own in known:
                    make = SQL("CREATE SCHEMA IF NOT EXISTS {} AUTHORIZATION {}")
                    await here.execute(make.format(Identifier(schema), Identifier(self.owner)))
                    await extensions.provide(here, [name], schema, self.owner if own else "")

    async def _open_source(self, word: str) -> str | None:
        """Return the URL that a try reads by; None where the app has nothing. All others are shut out."""
        async with connected(self.source) as connection:
            async with connection.transaction():
                if not await steps.claim(connection, self.owner, self.claim, make=False):
                    return None
                if not await self._is_there(connection):
                    return None
                shut = await steps.shut_out(connection, self.owner, ())
                url = await self._let_in(connection, self.source, word)
            await self._end(connection, shut)
        return url

    async def _open_target(self, word: str) -> str:
        """Return the URL that a try writes by, into nothing. What tries before it have left is dropped."""
        async with connected(self.target) as connection:
            async with connection.transaction():
                await steps.claim(connection, self.owner, self.claim)
                shut = await steps.shut_out(connection, self.owner, ())
            await self._end(connection, shut)
            if self.in_schema:
                async with connection.transaction():
                    await steps.claim(connection, self.owner, self.claim)
                    await steps.empty_schema(connection, self.owner)
                    return await self._let_in(connection, self.target, word)
            await steps.empty_database(connection, self.owner, self.claim)
            await steps.make_database(connection, self.owner, must_exist=False)
            async with connection.transaction():
                await steps.claim(connection, self.owner, self.claim)
                return await self._let_in(connection, self.target, word)

    async def _let_in(self, connection: Connection, server: DatabaseServerRecord, word: str) -> str:
        name = move_login_of(self.owner, word)
        login = Login(name, password_of(server.key, name), LOGIN_CONNECTIONS)
        await steps.make_login(connection, self.owner, login, schema=self.in_schema)
        database = connection.info.dbname if self.in_schema else self.owner
        return url_of(server.admin_url, name, login.password, database)

    async def _end(self, connection: Connection, shut: list[str]) -> None:
        if not [it async for it in steps.end_sessions(connection, {self.owner: shut})]:
            raise steps.not_ended(self.owner)

    async def _is_there(self, connection: Connection) -> bool:
        schema = "SELECT count(*) FROM pg_namespace WHERE nspname = %s"
        database = "SELECT count(*) FROM pg_database WHERE datname = %s"
        return bool(await _value(connection, schema if self.in_schema else database, self.owner))

    async def _size(self, connection: Connection) -> int:
        """Return how many bytes the app has at the source, about. Raises as `check`."""
        async with connection.transaction():
            if not await steps.claim(connection, self.owner, self.claim, make=False) or not (
                await self._is_there(connection)
            ):
                if self.was_made:
                    raise steps.missing(self.owner)
                return 0
        if not self.in_schema:
            return int(await _value(connection, "SELECT pg_database_size(%s)", self.owner))
        query = """
            SELECT count(*) FROM pg_largeobject_metadata AS l JOIN pg_roles AS r ON r.oid = l.lomowner
            WHERE r.rolname = %s
        """
        if await _value(connection, query, self.owner):
            # In one database with those of others, of which no dump tells them apart.
            raise self._refused("it has large objects, which move with mode DATABASE alone")
        query = """
            SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)
            FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
            WHERE n.nspname = %s AND c.relkind IN ('r', 'm')
        """
        return int(await _value(connection, query, self.owner))

    def _refused(self, why: str) -> SupervisorError:
        text = f"Its database stays on {self.source.name}: {why}."
        facts = {"why": why, "source": self.source.name}
        return SupervisorError("DATABASE_NOT_MOVED", text, resource=self.target.name, metadata=facts)


async def _facts(connection: Connection) -> _Facts:
    cursor = await connection.execute(
        "SELECT (SELECT system_identifier FROM pg_control_system()),"
        " current_setting('server_version_num')::int / 10000,"
        " (SELECT rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = current_user),"
        " (SELECT array_agg(name::text) FROM pg_available_extensions),"
        " (SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = current_database())"
    )
    ((identifier, major, creates, extensions, encoding),) = await cursor.fetchall()
    return _Facts(identifier, major, creates, frozenset(extensions or ()), encoding)


async def _value(connection: Connection, query: LiteralString, *parameters: object) -> Any:
    cursor = await connection.execute(query, parameters)
    ((value,),) = await cursor.fetchall()
    return value

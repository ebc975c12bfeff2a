"""Schemas and logins of many apps made and guarded in one transaction: all of a lost node at a time.

What is there is looked at first, and decided on app by app; so one that is refused takes nothing from the
others. Each step may be repeated, after any failure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import psycopg
from psycopg.sql import SQL, Composable, Identifier, Literal

from services.control_plane.databases import steps
from services.control_plane.databases.connecting import Connection, failed
from services.control_plane.databases.steps import Claim, Login
from services.control_plane.store.records import DatabaseServerRecord
from services.rpc.errors import SupervisorError


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be so of one app: no login of its schema is open but the new one and those to `keep`."""

    owner: str
    claim: Claim
    keep: frozenset[str]
    login: Login | None = None
    """Of a start, for which the schema is made, too."""
    must_exist: bool = False
    """The schema has to be there already."""


@dataclass(frozen=True, slots=True)
class _Found:
    mark: str | None
    """The comment on its owner; None if it has no owner."""
    schema_owner: str | None
    """Who owns its schema; None if it has none."""
    logins: tuple[str, ...]


Shut: TypeAlias = tuple[str, ...]
"""The logins of an app that were taken away; their sessions may be open still."""


async def guard(
    connection: Connection, server: DatabaseServerRecord, orders: Sequence[Order]
) -> dict[str, Shut | SupervisorError]:
    """Make and guard the schemas of several apps; return what came of each, by owner.

    In one transaction; if a step of that fails, in one for each app, for nothing tells whose it was. Raises
    `psycopg.Error` when the connection is broken, or there is one app alone.
    """
    try:
        async with connection.transaction():
            return await _guard(connection, orders)
    except psycopg.Error:
        if connection.broken or len(orders) == 1:
            raise
    told: dict[str, Shut | SupervisorError] = {}
    for order in orders:
        try:
            async with connection.transaction():
                told |= await _guard(connection, [order])
        except psycopg.Error as failure:
            if connection.broken:
                raise
            told[order.owner] = failed(server, failure)
    return told


async def _guard(connection: Connection, orders: Sequence[Order]) -> dict[str, Shut | SupervisorError]:
    owners = [order.owner for order in orders]
    await steps.lock(connection, owners)
    there = await _look(connection, owners)
    told: dict[str, Shut | SupervisorError] = {}
    todo: list[Composable] = []
    for order in orders:
        found = there[order.owner]
        try:
            commands = [*_commands(order, found)]
        except SupervisorError as refusal:
            told[order.owner] = refusal
        else:
            todo += commands
            told[order.owner] = _shut(order, found)
    if todo:
        await connection.execute(SQL("; ").join(todo))
    return told


async def _look(connection: Connection, owners: list[str]) -> dict[str, _Found]:
    cursor = await connection.execute(
        """
        SELECT owner, r.oid IS NOT NULL, shobj_description(r.oid, 'pg_authid'), pg_get_userbyid(n.nspowner)
        FROM unnest(%s::text[]) AS owner
        LEFT JOIN pg_roles AS r ON r.rolname = owner::name
        LEFT JOIN pg_namespace AS n ON n.nspname = owner::name
        """,
        (owners,),
    )
    rows = await cursor.fetchall()
    logins: dict[str, list[str]] = defaultdict(list)
    cursor = await connection.execute(
        """
        SELECT owner, r.rolname::text FROM unnest(%s::text[]) AS owner
        JOIN pg_roles AS r ON r.rolname >= (owner || '_e')::name AND r.rolname < (owner || '_f')::name
        ORDER BY r.rolname
        """,
        (owners,),
    )
    for owner, login in await cursor.fetchall():
        logins[owner].append(login)
    return {
        owner: _Found((mark or "") if there else None, schema, tuple(logins[owner]))
        for owner, there, mark, schema in rows
    }


def _shut(order: Order, found: _Found) -> Shut:
    return tuple(login for login in found.logins if login not in order.keep)


def _commands(order: Order, found: _Found) -> Iterator[Composable]:
    """Yield what is to be done for an app, in order. Raises SupervisorError as its single steps do."""
    if found.mark is None and order.login is None:
        return
    owner = Identifier(order.owner)
    if steps.is_older(order.owner, found.mark, order.claim):
        if found.mark is None:
            yield SQL("CREATE ROLE {} NOLOGIN").format(owner)
        yield SQL("COMMENT ON ROLE {} IS {}").format(owner, Literal(order.claim.comment))
    for login in _shut(order, found):
        yield from steps.taking_away(order.owner, login)
    if order.login is None:
        return
    if found.schema_owner is None:
        if order.must_exist:
            raise steps.missing(order.owner)
        yield SQL("CREATE SCHEMA {0} AUTHORIZATION {0}").format(owner)
    elif found.schema_owner != order.owner:
        raise steps.foreign(order.owner)
    if order.login.name not in found.logins:
        yield SQL("CREATE ROLE {} NOLOGIN").format(Identifier(order.login.name))
    yield from steps.letting_in(order.owner, order.login, schema=True)

"""Databases made ahead: given once, replaced, and nobody's while something has ended in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import psycopg
import pytest

from appsupervisor.fleet.v1.fleet_pb2 import DatabaseServer
from services.control_plane.databases import spares, steps
from services.control_plane.databases.names import owner_of
from services.control_plane.databases.spares import SparePool, prefix_of
from services.control_plane.store.records import DatabaseServerRecord
from services.rpc.errors import SupervisorError
from tests.integration.databases.conftest import DATABASE, NAME, Sql, app, ask
from tests.postgresql import Server

UID = "7d3cf8a4-0f0e-4f0a-9a51-3f5a7e2a1b11"


class Registered(Sql):
    """A server whose administrator is no superuser, with two spare databases."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.want(2)

    def want(self, number: int) -> None:
        server = DatabaseServer()
        server.CopyFrom(self.servers[NAME].server)
        server.uid, server.state, server.spare_databases = UID, DatabaseServer.REACHABLE, number
        self.servers[NAME] = replace(self.servers[NAME], server=server)

    def pool(self) -> SparePool:
        return SparePool(self)

    def values(self) -> list[DatabaseServerRecord]:
        return list(self.servers.values())

    def there(self) -> dict[str, int]:
        query = "SELECT datname, oid::int FROM pg_database WHERE starts_with(datname::text, %s)"
        return dict(self.admin(query, prefix_of(DatabaseServerRecord(DatabaseServer(uid=UID), "", b""))))


@pytest.fixture
def registered(postgresql: Server) -> Iterator[Registered]:
    with ExitStack() as stack:
        url = postgresql.create_database(stack)
        with psycopg.connect(postgresql.url, autocommit=True) as admin:
            for command in (
                "DROP ROLE IF EXISTS keeper",
                "CREATE ROLE keeper LOGIN CREATEDB CREATEROLE PASSWORD 'keeper'",
                "GRANT pg_signal_backend TO keeper",
            ):
                admin.execute(command)  # type: ignore[arg-type]
            name = url.rpartition("/")[2].partition("?")[0]
            admin.execute(f'ALTER DATABASE "{name}" OWNER TO keeper')  # type: ignore[arg-type]
        server = Registered(url.replace("postgres:", "keeper:", 1))
        yield server
        with psycopg.connect(postgresql.url, autocommit=True) as admin:
            for left in server.there():
                admin.execute(f'DROP DATABASE "{left}" WITH (FORCE)')  # type: ignore[arg-type]
            admin.execute(f'ALTER DATABASE "{name}" OWNER TO CURRENT_USER')  # type: ignore[arg-type]
            admin.execute("DROP OWNED BY keeper CASCADE")
            admin.execute("DROP ROLE keeper")


def other_database(url: str, other: str) -> str:
    return urlsplit(url)._replace(path=urlsplit(other).path).geturl()


def oid_of(server: Sql, record: Any) -> int:
    name = owner_of(record.name, record.uid)
    return int(server.admin("SELECT oid::int FROM pg_database WHERE datname = %s", name)[0][0])


async def test_apps_are_given_spare_databases_once_each_and_they_are_replaced(registered: Registered) -> None:
    pool, databases = registered.pool(), registered.databases()
    await pool.look_at_all()
    made = registered.there()
    assert len(made) == 2
    apps = [app(name, DATABASE) for name in ("shop", "blog", "wiki")]
    provided = await asyncio.gather(
        *(databases.prepare(it, 1, (), must_exist=False) for it in apps)
    )  # of two spare ones the third app is made one
    given = {oid_of(registered, it) for it in apps}
    assert len(given) == 3
    assert set(made.values()) < given
    assert registered.there() == {}
    for it in provided:
        ask(it.url, "CREATE TABLE note AS SELECT 7 AS id")
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        ask(other_database(provided[0].url, provided[1].url), "SELECT 1")
    await pool.look_at_all()
    assert len(registered.there()) == 2
    registered.want(1)
    await pool.look_at_all()
    assert len(registered.there()) == 1
    for it in apps:
        await databases.end(it, drop=True)
    registered.servers.clear()
    await pool.look_at_all()
    assert registered.there() == {}


async def test_a_spare_database_whose_giving_was_cut_off_is_still_a_spare_one(registered: Registered) -> None:
    pool, databases, shop = registered.pool(), registered.databases(), app("shop", DATABASE)
    await pool.look_at_all()
    made, taking = registered.there(), spares.take

    async def cut_off(*arguments: Any) -> bool:
        await taking(*arguments)
        raise SupervisorError("LEADERSHIP_LOST", "Killed.")

    with patch.object(spares, "take", cut_off), pytest.raises(SupervisorError):
        await databases.prepare(shop, 1, (), must_exist=False)
    assert registered.there() == made
    # Given, and cut off before it was guarded: it is the app's, and nobody else's.
    killed = patch.object(steps, "make_database", side_effect=SupervisorError("LEADERSHIP_LOST", "Killed."))
    with killed, pytest.raises(SupervisorError):
        await databases.prepare(shop, 1, (), must_exist=False)
    assert len(registered.there()) == 1
    provided = await registered.databases(2).prepare(shop, 1, (), must_exist=False)
    assert oid_of(registered, shop) in made.values()
    assert ask(provided.url, "SELECT 1") == [(1,)]
    assert len(registered.there()) == 1
    await registered.databases(2).end(shop, drop=True)

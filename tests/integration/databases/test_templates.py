"""Apps' databases that begin as a copy of a prepared one: the app's own and nobody else's, or not there."""

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
from services.control_plane.databases import connecting, templates
from services.control_plane.databases.health import look
from services.control_plane.databases.names import owner_of
from services.control_plane.store.records import AppRecord
from services.rpc.errors import SupervisorError
from tests.eventually import eventually
from tests.integration.databases.conftest import DATABASE, NAME, Sql, app, ask
from tests.postgresql import Server

# One of each kind that an app may own, made by the server's superuser and by a role that owns the template.
PREPARED = """
CREATE SCHEMA parts;
CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE DOMAIN parts.percent AS int CHECK (VALUE BETWEEN 0 AND 100);
CREATE TYPE pair AS (one int, two int);
CREATE TYPE span AS RANGE (subtype = float8);
CREATE TABLE note (id serial PRIMARY KEY, at int GENERATED ALWAYS AS IDENTITY, feels mood, text text);
CREATE TABLE parts.part (note int REFERENCES note, share parts.percent) PARTITION BY RANGE (share);
CREATE TABLE parts.low PARTITION OF parts.part FOR VALUES FROM (0) TO (50);
CREATE SEQUENCE parts.free;
CREATE VIEW "The view" AS SELECT text FROM note;
CREATE MATERIALIZED VIEW summed AS SELECT count(*) FROM note;
CREATE FUNCTION double(n int) RETURNS int LANGUAGE sql AS 'SELECT 2 * n';
CREATE FUNCTION same(a pair, b pair) RETURNS bool LANGUAGE sql AS 'SELECT a.one = b.one';
CREATE PROCEDURE nothing() LANGUAGE sql AS '';
CREATE AGGREGATE total(int) (sfunc = int4pl, stype = int);
CREATE OPERATOR parts.=== (leftarg = pair, rightarg = pair, function = same);
CREATE STATISTICS counted ON id, at FROM note;
CREATE TEXT SEARCH CONFIGURATION words (COPY = simple);
CREATE COLLATION plain FROM "C";
INSERT INTO note (feels, text) VALUES ('good', 'prepared');
SELECT lo_from_bytea(0, 'large');
"""
OWNERS = """
SELECT relname::text, pg_get_userbyid(relowner) FROM pg_class
    WHERE relnamespace IN ('public'::regnamespace, 'parts'::regnamespace)
UNION ALL SELECT nspname, pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = 'parts'
UNION ALL SELECT typname, pg_get_userbyid(typowner) FROM pg_type WHERE typnamespace >= 2200
    AND typnamespace IN ('public'::regnamespace, 'parts'::regnamespace)
UNION ALL SELECT proname, pg_get_userbyid(proowner) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
UNION ALL SELECT oprname, pg_get_userbyid(oprowner) FROM pg_operator WHERE oid >= 16384
UNION ALL SELECT stxname, pg_get_userbyid(stxowner) FROM pg_statistic_ext
UNION ALL SELECT cfgname, pg_get_userbyid(cfgowner) FROM pg_ts_config WHERE oid >= 16384
UNION ALL SELECT collname, pg_get_userbyid(collowner) FROM pg_collation WHERE oid >= 16384
UNION ALL SELECT 'large object', pg_get_userbyid(lomowner) FROM pg_largeobject_metadata
"""


class Prepared(Sql):
    """A server with a template, whose name is `template`."""

    template = ""

    def offer(self, *names: str) -> None:
        server = DatabaseServer()
        server.CopyFrom(self.servers[NAME].server)
        del server.templates[:]
        server.templates.extend(names)
        self.servers[NAME] = replace(self.servers[NAME], server=server)

    def inside(self, database: str) -> str:
        return urlsplit(self.url)._replace(path=f"/{database}").geturl()

    def databases_of(self, record: AppRecord) -> list[str]:
        owner = owner_of(record.name, record.uid)
        named = "SELECT datname::text FROM pg_database WHERE starts_with(datname::text, %s) ORDER BY 1"
        return [name.removeprefix(owner) for (name,) in self.admin(named, owner)]


def name_of(url: str) -> str:
    return urlsplit(url).path.removeprefix("/")


def from_template(name: str, template: str) -> AppRecord:
    record = app(name, DATABASE)
    record.spec.database.postgres.template = template
    return record


@pytest.fixture(scope="module")
def prepared(postgresql: Server) -> Iterator[Prepared]:
    with ExitStack() as stack:
        server = Prepared(postgresql.create_database(stack))
        server.template = name_of(postgresql.create_database(stack))
        ask(server.inside(server.template), PREPARED)
        server.offer(server.template)
        yield server


async def test_an_app_begins_on_a_copy_that_is_all_its_own(prepared: Prepared) -> None:
    databases = prepared.databases()
    shop, blog = (from_template(name, prepared.template) for name in ("shop", "blog"))
    first, other = await asyncio.gather(
        *(databases.prepare(it, 1, (), must_exist=False) for it in (shop, blog))
    )
    assert ask(first.url, "SELECT text, double(id) FROM note") == [("prepared", 2)]
    owners = dict(ask(first.url, OWNERS))
    assert len(owners) > 20
    assert set(owners.values()) == {owner_of(shop.name, shop.uid)}
    # As its owner it changes and drops what it was given, and makes more beside it.
    ask(first.url, "ALTER TABLE note ADD COLUMN more int; INSERT INTO note (more) VALUES (1)")
    ask(first.url, "CREATE TABLE parts.mine (id int); DROP SCHEMA parts CASCADE; DROP TYPE mood CASCADE")
    assert ask(other.url, "SELECT text FROM note") == [("prepared",)]
    assert ask(prepared.inside(prepared.template), "SELECT text FROM note") == [("prepared",)]
    second = await databases.prepare(shop, 2, (), must_exist=True)
    assert ask(second.url, "SELECT max(more) FROM note") == [(1,)]
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        ask(
            other.url.replace(owner_of(blog.name, blog.uid) + "?", owner_of(shop.name, shop.uid) + "?"),
            "SELECT 1",
        )
    for it in (shop, blog):
        await databases.end(it, drop=True)
        assert (prepared.databases_of(it), prepared.roles(it)) == ([], [])


STEPS = ("_alone", "_check", "_copy", "give_all")


@pytest.mark.parametrize("step", STEPS)
async def test_a_try_that_is_cut_off_after_any_step_leaves_no_database_and_the_next_goes_on(
    prepared: Prepared, step: str
) -> None:
    shop = from_template("shop", prepared.template)
    real = getattr(templates, step)

    async def failing(*arguments: Any, **options: Any) -> None:
        await real(*arguments, **options)
        raise psycopg.errors.DiskFull

    async def killed(*arguments: Any, **options: Any) -> None:
        await real(*arguments, **options)
        raise asyncio.CancelledError

    for fault, told in ((failing, SupervisorError), (killed, asyncio.CancelledError)):
        with patch.object(templates, step, fault), pytest.raises(told):
            await prepared.databases().prepare(shop, 1, (), must_exist=False)
        assert "" not in prepared.databases_of(shop)
    # Of one that was killed something may be left, which nobody may log in to; the next leader drops it.
    provided = await prepared.databases(2).prepare(shop, 1, (), must_exist=False)
    assert ask(provided.url, "SELECT text FROM note") == [("prepared",)]
    assert prepared.databases_of(shop) == [""]
    await prepared.databases(2).end(shop, drop=True)


async def test_what_a_killed_try_has_left_goes_with_its_app_and_an_older_leader_makes_nothing(
    prepared: Prepared,
) -> None:
    shop, late = from_template("shop", prepared.template), prepared.databases(1)
    with (
        patch.object(templates, "give_all", side_effect=asyncio.CancelledError),
        pytest.raises(asyncio.CancelledError),
    ):
        await late.prepare(shop, 1, (), must_exist=False)
    assert len(prepared.databases_of(shop)) == 1
    await prepared.databases(2).end(shop, drop=False)
    assert prepared.databases_of(shop) == []
    with pytest.raises(SupervisorError) as refused:
        await late.prepare(shop, 1, (), must_exist=False)
    assert (refused.value.reason, prepared.databases_of(shop)) == ("LEADERSHIP_LOST", [])
    await prepared.databases(2).end(shop, drop=True)


async def test_a_leader_that_was_replaced_while_it_copied_drops_what_it_made(prepared: Prepared) -> None:
    shop, real = from_template("shop", prepared.template), templates.give_all

    async def meanwhile(*arguments: Any) -> None:
        await real(*arguments)
        prepared.admin(
            f'COMMENT ON ROLE "{owner_of(shop.name, shop.uid)}"'
            f" IS 'AppSupervisor: {shop.name} {shop.uid} leader 2'"
        )

    with patch.object(templates, "give_all", meanwhile), pytest.raises(SupervisorError) as refused:
        await prepared.databases(1).prepare(shop, 1, (), must_exist=False)
    assert (refused.value.reason, prepared.databases_of(shop)) == ("LEADERSHIP_LOST", [])
    await prepared.databases(2).end(shop, drop=True)


async def test_a_copy_that_postgresql_makes_still_for_a_killed_leader_is_waited_for_and_dropped(
    prepared: Prepared,
) -> None:
    shop = from_template("shop", prepared.template)
    copy = f"{owner_of(shop.name, shop.uid)}_copy"
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    patient = patch.object(connecting, "_OPTIONS", "-c lock_timeout=60s")
    with patient, psycopg.connect(prepared.url, autocommit=True) as killed:
        killed.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", (copy,))
        begun = asyncio.create_task(prepared.databases(2).prepare(shop, 1, (), must_exist=False))
        await eventually(lambda: asyncio.to_thread(prepared.admin, waiting), [(1,)].__eq__)
        prepared.admin(f'CREATE DATABASE "{copy}abc" TEMPLATE "{prepared.template}"')
        killed.close()
        provided = await begun
    assert ask(provided.url, "SELECT text FROM note") == [("prepared",)]
    assert prepared.databases_of(shop) == [""]
    await prepared.databases(2).end(shop, drop=True)
    busy = patch.object(connecting, "_OPTIONS", "-c lock_timeout=10ms")
    with busy, psycopg.connect(prepared.url, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", (copy,))
        with pytest.raises(SupervisorError) as refused:
            await prepared.databases(2).prepare(shop, 1, (), must_exist=False)
    assert "makes a copy for the app still" in refused.value.message


async def refusal(server: Prepared, template: str) -> str:
    """Return why no app begins as a copy of a template; there is none of it."""
    shop = from_template("shop", template)
    with pytest.raises(SupervisorError) as refused:
        await server.databases().prepare(shop, 1, (), must_exist=False)
    assert refused.value.reason == "DATABASE_TEMPLATE_UNUSABLE"
    assert server.databases_of(shop) == []
    await server.databases().end(shop, drop=True)
    return refused.value.message


async def test_what_must_not_or_cannot_be_copied_is_refused_with_the_rule(
    prepared: Prepared, postgresql: Server
) -> None:
    with ExitStack() as stack:
        catalog, others = (postgresql.create_database(stack) for _ in range(2))
        ask(catalog, "CREATE TABLE meta (); CREATE TABLE histories (); CREATE TABLE leadership ()")
        role = owner_of("apps/shop", "6d0ac2c8-6d0c-4f3d-9b0c-3f1d9c1f3e11")
        ask(
            others,
            f'CREATE ROLE "{role}"; CREATE TABLE theirs (id int); ALTER TABLE theirs OWNER TO "{role}"',
        )
        stack.callback(prepared.admin, f'DROP ROLE "{role}"')
        stack.callback(ask, others, f'DROP OWNED BY "{role}"')
        own = name_of(prepared.url)
        stack.callback(prepared.offer, prepared.template)
        prepared.offer("none", name_of(catalog), name_of(others), own, prepared.template)
        assert "it does not exist" in await refusal(prepared, "none")
        assert "it is a catalog of AppSupervisor" in await refusal(prepared, name_of(catalog))
        assert f"belongs to an app's role, {role}" in await refusal(prepared, name_of(others))
        assert "apps have their schemas in it" in await refusal(prepared, own)
        assert "it is none of the templates" in await refusal(prepared, "postgres")
        told = await look(prepared.servers[NAME])
        assert (told.state, told.reason) == (DatabaseServer.REACHABLE, "It does not have the templates none.")
        hasty = patch.object(templates, "IN_USE_SECONDS", 0.0)
        with hasty, psycopg.connect(prepared.inside(prepared.template)):
            assert "it is in use, by sessions:" in await refusal(prepared, prepared.template)


async def test_an_administrator_that_is_no_superuser_gives_what_it_owns_and_tells_what_it_does_not(
    prepared: Prepared, postgresql: Server
) -> None:
    with ExitStack() as stack:
        url = postgresql.create_database(stack)
        prepared.admin("CREATE ROLE preparer LOGIN CREATEDB CREATEROLE; GRANT pg_signal_backend TO preparer")
        stack.callback(prepared.admin, "DROP ROLE preparer")
        stack.callback(prepared.admin, "REASSIGN OWNED BY preparer TO CURRENT_USER; DROP OWNED BY preparer")
        names = [name_of(postgresql.create_database(stack)) for _ in range(2)]
        for name in (name_of(url), *names):
            prepared.admin(f'ALTER DATABASE "{name}" OWNER TO preparer')
        server = Prepared(url.replace("postgres:", "preparer:", 1))
        server.offer(prepared.template, *names)
        ask(server.inside(names[0]), "CREATE TABLE note AS SELECT 7 AS id")
        ask(prepared.inside(names[1]), "CREATE TABLE note AS SELECT 7 AS id")
        shop = from_template("shop", names[0])
        provided = await server.databases().prepare(shop, 1, (), must_exist=False)
        ask(provided.url, "ALTER TABLE note ADD COLUMN text text")
        # What else the same role owns is its own still.
        assert ask(server.inside(names[0]), "SELECT tableowner FROM pg_tables WHERE tablename = 'note'") == [
            ("preparer",)
        ]
        await server.databases().end(shop, drop=True)
        assert "may not give all that is in it away" in await refusal(server, names[1])
        assert "may not copy it" in await refusal(server, prepared.template)

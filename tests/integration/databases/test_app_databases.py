"""Apps' own databases on a real PostgreSQL: made, kept apart, fenced by epoch, dropped, each repeated."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import psycopg
import pytest
from psycopg import errors, sql

from appsupervisor.fleet.v1.fleet_pb2 import DatabaseServer
from services.control_plane.databases import schemas, steps
from services.control_plane.databases.app_databases import AppDatabases, Provided
from services.control_plane.databases.connecting import connected
from services.control_plane.databases.health import look
from services.control_plane.databases.names import owner_of, url_of
from services.control_plane.store.records import AppRecord
from services.rpc.errors import SupervisorError
from tests.eventually import eventually
from tests.integration.databases.conftest import DATABASE, NAME, SCHEMA, Sql, app, ask, login_in
from tests.postgresql import Server

CONNECTED = "services.control_plane.databases.turns.connected"
MODES = pytest.mark.parametrize("mode", [SCHEMA, DATABASE], ids=["schema", "database"])


async def prepared(databases: AppDatabases, record: AppRecord, epoch: int = 1, **options: Any) -> Provided:
    options = {"keep": (), "must_exist": False, **options}
    return await databases.prepare(record, epoch, **options)


@MODES
async def test_an_app_works_with_what_is_its_own_and_finds_it_again(server: Sql, mode: Any) -> None:
    databases, shop = server.databases(), app("shop", mode)
    first = await prepared(databases, shop)
    assert first.pool == 3
    ask(first.url, "CREATE TABLE note (id int)")
    ask(first.url, "INSERT INTO note VALUES (7)")
    again = await prepared(databases, shop)
    assert again == first
    # What is stored of a password, and what the server may log of it, is of no use to who reads it.
    stored = server.admin("SELECT rolpassword FROM pg_authid WHERE rolname = %s", login_in(first.url))
    assert stored[0][0].startswith("SCRAM-SHA-256$1:")
    second = await prepared(databases, shop, 2, must_exist=True)
    assert second.url != first.url
    assert ask(second.url, "SELECT id FROM note") == [(7,)]
    # What one epoch has made the next may change.
    ask(second.url, "ALTER TABLE note ADD COLUMN text text")
    await databases.end(shop, drop=True)


@MODES
async def test_a_neighbour_can_neither_read_nor_write_nor_be(server: Sql, mode: Any) -> None:
    databases, shop, blog = server.databases(), app("shop", mode), app("blog", mode)
    mine, other = await prepared(databases, shop), await prepared(databases, blog)
    ask(mine.url, "CREATE TABLE note (id int)")
    owner = owner_of(shop.name, shop.uid)
    if mode == DATABASE:
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            ask(other.url.replace(owner_of(blog.name, blog.uid) + "?", owner + "?"), "SELECT 1")
    else:
        for query in (f'SELECT * FROM "{owner}".note', f'CREATE TABLE "{owner}".x (id int)'):
            with pytest.raises(errors.InsufficientPrivilege):
                ask(other.url, query)
    for query in (f'SET ROLE "{owner}"', f'DROP ROLE "{owner}"', "CREATE ROLE x", "CREATE DATABASE x"):
        with pytest.raises(errors.InsufficientPrivilege):
            ask(other.url, query)
    for record in (shop, blog):
        await databases.end(record, drop=True)


@MODES
async def test_a_new_epoch_shuts_the_old_one_out_before_anything_of_it_starts(server: Sql, mode: Any) -> None:
    databases, shop = server.databases(), app("shop", mode)
    old = await prepared(databases, shop)
    ask(old.url, "CREATE TABLE note (id int)")
    with (
        psycopg.connect(old.url) as idle,
        psycopg.connect(old.url) as writing,
        psycopg.connect(old.url) as sleeping,
    ):
        writing.execute("INSERT INTO note VALUES (1)")
        asleep = threading.Thread(target=cut_off, args=(sleeping,))
        asleep.start()
        new = await prepared(databases, shop, 2)
        for connection in (idle, writing):
            with pytest.raises(psycopg.OperationalError):
                connection.execute("INSERT INTO note VALUES (2)")
        asleep.join()
    with pytest.raises(psycopg.OperationalError):
        ask(old.url, "SELECT 1")
    assert ask(new.url, "SELECT * FROM note") == []
    await eventually(lambda: server.roles(shop) == ["", "_e2"])
    await databases.end(shop, drop=True)


def cut_off(connection: psycopg.Connection[Any]) -> None:
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT pg_sleep(60)")


async def test_of_a_swap_both_epochs_are_kept_until_it_is_settled(server: Sql) -> None:
    databases, shop = server.databases(), app()
    old = await prepared(databases, shop)
    new = await prepared(databases, shop, 2, keep=[1])
    assert ask(old.url, "SELECT 1") == ask(new.url, "SELECT 1")
    assert not databases.is_settled(shop, [2])
    await databases.settle(shop, [2])
    assert databases.is_settled(shop, [2])
    with pytest.raises(psycopg.OperationalError):
        ask(old.url, "SELECT 1")
    assert ask(new.url, "SELECT 1") == [(1,)]
    # Another leader knows nothing of it, and looks once.
    assert not server.databases(2).is_settled(shop, [2])


async def test_a_leader_that_was_replaced_changes_nothing_any_more(server: Sql) -> None:
    former, leader, shop = server.databases(1), server.databases(2), app()
    old = await prepared(former, shop)
    new = await prepared(leader, shop, 2)
    for late in (
        prepared(former, shop),
        former.settle(shop, [1]),
        former.end(shop, drop=True),
    ):
        with pytest.raises(SupervisorError) as refused:
            await late
        assert refused.value.reason == "LEADERSHIP_LOST"
    assert ask(new.url, "SELECT 1") == [(1,)]
    with pytest.raises(psycopg.OperationalError):
        ask(old.url, "SELECT 1")


IN_A_SCHEMA = ((schemas, "_guard"), (schemas, "guard"), (steps, "end_sessions"))
IN_A_DATABASE = tuple(
    (steps, step)
    for step in ("make_database", "claim", "shut_out", "make_login", "end_sessions", "forget_logins")
)


@pytest.mark.parametrize(
    ("mode", "preparing"), [(SCHEMA, IN_A_SCHEMA), (DATABASE, IN_A_DATABASE)], ids=["schema", "database"]
)
async def test_a_failure_after_any_step_is_told_and_a_repeat_goes_on(
    server: Sql, mode: Any, preparing: Any
) -> None:
    databases, shop = server.databases(), app("shop", mode)
    url = (await prepared(databases, shop)).url
    for epoch, (module, step) in enumerate(preparing, 2):
        failing = patch.object(module, step, failing_after(getattr(module, step)))
        with failing, pytest.raises(SupervisorError) as refused:
            await prepared(databases, shop, epoch)
        assert refused.value.reason == "DATABASE_UNAVAILABLE", step
        new = (await prepared(databases, shop, epoch)).url
        assert ask(new, "SELECT 1") == [(1,)]
        with pytest.raises(psycopg.OperationalError):
            ask(url, "SELECT 1")
        await eventually(partial(server.roles, shop), ["", f"_e{epoch}"].__eq__)
        url = new
    failing = patch.object(steps, "_drop_owner", failing_after(steps._drop_owner))
    with failing, pytest.raises(SupervisorError) as kept:
        await databases.end(shop, drop=True)
    assert kept.value.reason == "DATABASE_NOT_REMOVED"
    await databases.end(shop, drop=True)
    assert server.roles(shop) == []


def failing_after(real: Any) -> Any:
    async def failing(*arguments: Any, **options: Any) -> None:
        await real(*arguments, **options)
        raise errors.DiskFull

    async def failing_at_its_end(*arguments: Any) -> AsyncIterator[str]:
        told = [it async for it in real(*arguments)]
        if told:
            raise errors.DiskFull
        yield ""

    return failing_at_its_end if inspect.isasyncgenfunction(real) else failing


async def test_apps_that_wait_together_are_dealt_with_together_each_with_its_own_outcome(server: Sql) -> None:
    databases, shops = server.databases(), [app(f"shop-{number}") for number in range(20)]
    lost, foreign = app("lost"), app("foreign")
    role = owner_of(foreign.name, foreign.uid)
    server.admin(f'CREATE ROLE "{role}"')

    async def all_under(epoch: int) -> list[Provided | BaseException]:
        with patch(CONNECTED, wraps=connected) as connections:
            told = await asyncio.gather(
                *(prepared(databases, it, epoch) for it in shops),
                prepared(databases, lost, epoch, must_exist=True),
                prepared(databases, foreign, epoch),
                return_exceptions=True,
            )
        assert connections.call_count == 1
        return told

    try:
        old = (await all_under(1))[:20]
        assert all(isinstance(it, Provided) for it in old)
        with psycopg.connect(old[7].url) as session:  # type: ignore[union-attr]
            *new, missing, taken = await all_under(2)
            with pytest.raises(psycopg.OperationalError):
                session.execute("SELECT 1")
        assert [refusal.reason for refusal in (missing, taken) if isinstance(refusal, SupervisorError)] == [
            "DATA_MISSING",
            "DATABASE_UNAVAILABLE",
        ]
        for before, after in zip(old, new, strict=True):
            assert isinstance(before, Provided)
            assert isinstance(after, Provided)
            assert ask(after.url, "SELECT current_user") == [(owner_of_login(after.url),)]
            with pytest.raises(psycopg.OperationalError):
                ask(before.url, "SELECT 1")
        await eventually(lambda: all(server.roles(it) == ["", "_e2"] for it in shops))
        assert server.roles(lost) == []
    finally:
        server.admin(f'DROP ROLE "{role}"')


def owner_of_login(url: str) -> str:
    return login_in(url).rpartition("_e")[0]


async def test_a_step_that_fails_for_one_app_fails_for_that_one_alone(server: Sql) -> None:
    databases, good, bad = server.databases(), app("good"), app("bad")
    real = schemas._commands

    def commands(order: Any, *arguments: Any) -> Any:
        yield from real(order, *arguments)
        if order.owner == owner_of(bad.name, bad.uid):
            yield sql.SQL("SELECT 1 / 0")

    with patch.object(schemas, "_commands", commands):
        told = await asyncio.gather(
            prepared(databases, bad), prepared(databases, good), return_exceptions=True
        )
    assert isinstance(told[0], SupervisorError)
    assert "division by zero" in told[0].message
    assert isinstance(told[1], Provided)
    assert ask(told[1].url, "SELECT 1") == [(1,)]
    assert server.roles(bad) == []


async def test_sessions_that_do_not_end_hold_up_no_other_app(server: Sql) -> None:
    databases, easy, stuck = server.databases(), app("easy"), app("stuck")
    for record in (easy, stuck):
        await prepared(databases, record)
    real, owner = steps.end_sessions, owner_of(stuck.name, stuck.uid)

    async def end_sessions(connection: Any, shut: Any) -> AsyncIterator[str]:
        async for it in real(connection, shut):
            if it != owner:
                yield it

    with patch.object(steps, "end_sessions", end_sessions):
        told = await asyncio.gather(
            *(prepared(databases, it, 2) for it in (easy, stuck)), return_exceptions=True
        )
    assert isinstance(told[0], Provided)
    assert isinstance(told[1], SupervisorError)
    assert "have not ended" in told[1].message
    assert isinstance(await prepared(databases, stuck, 2), Provided)


async def test_a_login_that_cannot_be_dropped_stays_shut_out_and_the_others_go(
    server: Sql, postgresql: Server
) -> None:
    databases, one, two = server.databases(), app("one"), app("two")
    old = [await prepared(databases, it) for it in (one, two)]
    with psycopg.connect(postgresql.url, autocommit=True) as elsewhere:  # in a database of its own
        elsewhere.execute("CREATE TABLE kept (id int)")
        try:
            grant = sql.SQL("GRANT SELECT ON kept TO {}").format(sql.Identifier(login_in(old[0].url)))
            elsewhere.execute(grant)
            await asyncio.gather(*(prepared(databases, it, 2) for it in (one, two)))
            await eventually(lambda: server.roles(two) == ["", "_e2"])
            assert server.roles(one) == ["", "_e1", "_e2"]
            with pytest.raises(psycopg.OperationalError):
                ask(old[0].url, "SELECT 1")
        finally:
            elsewhere.execute("DROP TABLE kept")


async def test_closing_ends_what_is_under_way(server: Sql) -> None:
    databases, shop = server.databases(), app()
    under_way = asyncio.create_task(prepared(databases, shop))
    await asyncio.sleep(0)
    await databases.close()
    with pytest.raises(SupervisorError, match="busy"):
        await under_way


@MODES
async def test_what_is_dropped_is_gone_what_is_retained_stays_and_repeats_do_nothing(
    server: Sql, mode: Any
) -> None:
    databases, shop = server.databases(), app("shop", mode)
    url = (await prepared(databases, shop)).url
    ask(url, "CREATE TABLE note (id int)")
    owner = owner_of(shop.name, shop.uid)
    for _ in range(2):
        await databases.end(shop, drop=False)
        assert server.roles(shop) == [""]
    with pytest.raises(psycopg.OperationalError):
        ask(url, "SELECT 1")
    for _ in range(2):
        await databases.end(shop, drop=True)
        assert server.roles(shop) == []
    names = "SELECT nspname FROM pg_namespace UNION SELECT datname FROM pg_database"
    assert (owner,) not in server.admin(names)


async def test_an_app_that_has_served_gets_its_own_database_or_none(server: Sql) -> None:
    databases, shop = server.databases(), app()
    await prepared(databases, shop)
    await databases.end(shop, drop=True)
    with pytest.raises(SupervisorError) as refused:
        await prepared(databases, shop, must_exist=True)
    assert refused.value.reason == "DATA_MISSING"
    assert server.roles(shop) == []


async def test_what_is_anothers_is_never_taken(server: Sql) -> None:
    databases, shop = server.databases(), app()
    owner = owner_of(shop.name, shop.uid)
    server.admin(f'CREATE ROLE "{owner}"')
    for call in (prepared(databases, shop), databases.end(shop, drop=True)):
        with pytest.raises(SupervisorError) as refused:
            await call
        assert "not this app's" in refused.value.message
    server.admin(f'DROP ROLE "{owner}"')


async def test_a_catalog_is_refused_as_a_database_for_apps(server: Sql) -> None:
    for table in ("meta", "histories", "leadership"):
        server.admin(f"CREATE TABLE {table} (id int)")
    try:
        with pytest.raises(SupervisorError) as refused:
            await prepared(server.databases(), app())
        assert "leads to a catalog" in refused.value.message
        assert (await look(server.servers[NAME])).state == DatabaseServer.UNUSABLE
    finally:
        server.admin("DROP TABLE meta, histories, leadership")


async def test_a_login_has_no_more_connections_than_two_pools_need(server: Sql) -> None:
    url = (await prepared(server.databases(), app())).url
    held = [psycopg.connect(url) for _ in range(2 * 3 + 1)]
    try:
        with pytest.raises(psycopg.OperationalError, match="too many connections"):
            ask(url, "SELECT 1")
    finally:
        for connection in held:
            connection.close()


async def test_an_administrator_that_is_no_superuser_is_enough(server: Sql) -> None:
    server.admin("CREATE ROLE keeper LOGIN CREATEROLE CREATEDB IN ROLE pg_signal_backend")
    try:
        (database,) = server.admin("SELECT current_database()")[0]
        server.admin(f'GRANT CREATE ON DATABASE "{database}" TO keeper')
        own = Sql(server.url.replace("postgres:@", "keeper@"))
        assert own.admin("SELECT current_user") == [("keeper",)]
        for mode in (SCHEMA, DATABASE):
            databases, shop = own.databases(), app("shop", mode)
            old = await prepared(databases, shop)
            with psycopg.connect(old.url) as open_session:
                new = await prepared(databases, shop, 2)
                with pytest.raises(psycopg.OperationalError):
                    open_session.execute("SELECT 1")
            assert ask(new.url, "SELECT 1") == [(1,)]
            await databases.end(shop, drop=True)
            assert own.roles(shop) == []
    finally:
        server.admin("DROP OWNED BY keeper")
        server.admin("DROP ROLE keeper")


async def test_a_server_is_usable_if_its_administrator_may_do_what_is_needed(server: Sql) -> None:
    health = await look(server.servers[NAME])
    assert (health.state, health.reason) == (DatabaseServer.REACHABLE, "")
    assert health.version
    server.admin("CREATE ROLE guest LOGIN")
    try:
        guest = Sql(server.url.replace("postgres:@", "guest@"))
        health = await look(guest.servers[NAME])
        assert (health.state, health.reason) == (
            DatabaseServer.UNUSABLE,
            "Its administrator may not create roles (CREATEROLE).",
        )
    finally:
        server.admin("DROP ROLE guest")


async def test_a_server_that_does_not_answer_is_told_without_a_secret_and_then_left_alone() -> None:
    gone = Sql("postgresql://admin:sec%40ret@127.0.0.1:1/apps")
    databases = gone.databases()
    with pytest.raises(SupervisorError) as refused:
        await prepared(databases, app())
    assert refused.value.reason == "DATABASE_SERVER_UNREACHABLE"
    assert refused.value.message == "databaseServers/main cannot be used now: it does not answer."
    with patch(CONNECTED) as connects:
        with pytest.raises(SupervisorError):
            await prepared(databases, app("other"))
        connects.assert_not_called()
        # News of the server end its rest.
        gone.servers[NAME] = replace(gone.servers[NAME], revision=7)
        connects.side_effect = SupervisorError("DATABASE_UNAVAILABLE", "It was tried.")
        with pytest.raises(SupervisorError, match="It was tried"):
            await prepared(databases, app("other"))


async def test_a_url_that_cannot_be_read_gives_no_part_of_it_away() -> None:
    broken = Sql("postgresql://admin:sec@ret@host:port/apps?nonsense=sec")
    with pytest.raises(SupervisorError) as refused:
        await prepared(broken.databases(), app())
    assert "sec" not in refused.value.message.replace("second", "")


def test_apps_of_one_name_share_nothing_and_no_name_is_too_long() -> None:
    one, two = app("a" * 63), app("a" * 63)
    names = {owner_of(record.name, record.uid) + "_e999999999" for record in (one, two)}
    assert len(names) == 2
    assert max(map(len, names)) <= 63


def test_an_apps_url_is_its_administrators_but_for_login_and_database() -> None:
    url = url_of("postgresql+psycopg://me:x@a:1,b:2/d?sslmode=require&user=me&password=x", "it", "pw", "own")
    assert url == "postgresql+psycopg://it:pw@a:1,b:2/own?sslmode=require"

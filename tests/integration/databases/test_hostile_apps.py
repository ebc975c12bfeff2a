"""An app owns its database and sets of it what it likes: that reaches neither administrator nor others."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from services.control_plane.databases.names import owner_of
from services.control_plane.store.records import AppRecord
from services.rpc.errors import SupervisorError
from tests.integration.databases.conftest import DATABASE, Sql, app, ask

# In the place of what the administrator calls whenever it connects, and of what it calls to look and to lock.
TRAPS = """
CREATE SCHEMA trap;
CREATE TABLE trap.caught (who text);
GRANT ALL ON SCHEMA trap TO PUBLIC;
GRANT ALL ON TABLE trap.caught TO PUBLIC;
CREATE FUNCTION trap.set_config(text, text, bool) RETURNS text LANGUAGE sql
    AS 'INSERT INTO trap.caught VALUES (current_user) RETURNING who';
CREATE FUNCTION trap.hashtextextended(text, bigint) RETURNS bigint LANGUAGE sql
    AS 'INSERT INTO trap.caught VALUES (current_user) RETURNING 1::bigint';
CREATE VIEW trap.pg_roles AS SELECT trap.set_config('', '', false) AS rolname;
"""


def owner(record: AppRecord) -> str:
    return owner_of(record.name, record.uid)


async def test_what_an_app_sets_of_its_database_is_not_run_as_the_administrator(server: Sql) -> None:
    databases, shop = server.databases(), app("shop", DATABASE)
    shop.spec.database.postgres.extensions.append("vector")
    first = await databases.prepare(shop, 1, (), must_exist=False)
    ask(first.url, TRAPS)
    for setting in (
        "search_path = trap, pg_catalog",
        f'role = "{owner(shop)}"',
        "default_transaction_read_only = on",
    ):
        ask(first.url, f'ALTER DATABASE "{owner(shop)}" SET {setting}')
    second = await databases.prepare(shop, 2, (), must_exist=True)
    assert ask(second.url, "SELECT who FROM trap.caught") == []
    # The login before is dropped from within: with its rights taken away the administrator could not.
    assert server.roles(shop) == ["", "_e2"]
    await databases.end(shop, drop=True)
    assert server.roles(shop) == []


async def test_an_app_that_closes_its_database_keeps_nobody_else_from_the_server(server: Sql) -> None:
    databases, shop, blog = server.databases(), app("shop", DATABASE), app("blog", DATABASE)
    shop.spec.database.postgres.extensions.append("vector")
    first, _ = [await databases.prepare(it, 1, (), must_exist=False) for it in (shop, blog)]
    elsewhere = urlsplit(first.url)._replace(path=urlsplit(server.url).path).geturl()
    ask(elsewhere, f'ALTER DATABASE "{owner(shop)}" ALLOW_CONNECTIONS false')
    with pytest.raises(SupervisorError) as refused:
        await databases.prepare(shop, 2, (), must_exist=True)
    assert refused.value.reason == "DATABASE_UNAVAILABLE"
    await databases.prepare(blog, 2, (), must_exist=True)
    # It goes as any other, with all logins that it has had.
    await databases.settle(shop, ())
    await databases.end(shop, drop=True)
    assert server.roles(shop) == []
    await databases.end(blog, drop=True)

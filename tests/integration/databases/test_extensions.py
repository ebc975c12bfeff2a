"""Extensions that an app asks for are there, made by the server's administrator; the app is no superuser."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.integration.databases.conftest import DATABASE, SCHEMA, Sql, app, ask

# The one that the embedded server has besides; none of those that an owner may make itself.
ASKED = "vector"


@pytest.mark.parametrize("mode", [SCHEMA, DATABASE], ids=["schema", "database"])
async def test_an_app_has_what_it_asks_for_and_can_neither_make_nor_change_one(
    server: Sql, mode: Any
) -> None:
    databases, shop, blog = server.databases(), app("shop", mode), app("blog", mode)
    without = await databases.prepare(blog, 1, (), must_exist=False)
    shop.spec.database.postgres.extensions.append(ASKED)
    first = await databases.prepare(shop, 1, (), must_exist=False)
    ask(first.url, "CREATE TABLE place (at vector(3)); INSERT INTO place VALUES ('[1,2,3]')")
    assert ask(first.url, "SELECT at <-> '[1,2,4]' FROM place") == [(1.0,)]
    for refused in (f"DROP EXTENSION {ASKED}", "CREATE TABLE extensions.mine (id int)", "CREATE ROLE me"):
        with pytest.raises(psycopg.Error):
            ask(first.url, refused)
    with pytest.raises(psycopg.Error):
        ask(without.url, f"CREATE EXTENSION {ASKED} SCHEMA public")
    assert ask(first.url, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") == [(False,)]
    second = await databases.prepare(shop, 2, (), must_exist=True)
    assert ask(second.url, "SELECT count(*) FROM place") == [(1,)]
    for it in (shop, blog):
        await databases.end(it, drop=True)

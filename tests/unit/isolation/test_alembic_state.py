"""Migrations of several apps run at once in one process, each on its own database."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest
from alembic import command, context, op
from alembic.config import Config

from runtime_node.isolation import running_as
from runtime_node.isolation.environ import open_overlay
from runtime_node.isolation.undo_log import undo

APPS = 5

ENVIRONMENT = """
from alembic import context
from sqlalchemy import create_engine
config = context.config
def migrate(connection):
    context.configure(connection=connection, target_metadata=None)
    config.attributes["meet"].wait(60)  # all of them are in the middle of it
    with context.begin_transaction():
        context.run_migrations()
"""
HERE = """
with create_engine(config.get_main_option("sqlalchemy.url")).connect() as connection:
    migrate(connection)
"""
ON_A_LOOP = """
import asyncio, threading
from sqlalchemy.ext.asyncio import create_async_engine
async def on_a_loop():
    url = config.get_main_option("sqlalchemy.url").replace("sqlite:", "sqlite+aiosqlite:")
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()
thread = threading.Thread(target=asyncio.run, args=(on_a_loop(),))
thread.start()
thread.join()
"""
REVISION = """
import sqlalchemy as sa
from alembic import op, context
revision, down_revision = "0001", None
def upgrade():
    op.create_table("made_by", sa.Column("app", sa.String))
    op.execute(f"INSERT INTO made_by VALUES ('{context.config.attributes['app']}')")
"""


@pytest.mark.parametrize("variant", [HERE, ON_A_LOOP], ids=["here", "on a loop in a thread"])
def test_migrations_of_several_apps_at_once_stay_in_their_own_databases(
    me: str, tmp_path: Path, variant: str
) -> None:
    scripts = tmp_path / "migrations"
    (scripts / "versions").mkdir(parents=True)
    (scripts / "env.py").write_text(ENVIRONMENT + variant)
    (scripts / "versions" / "0001.py").write_text(REVISION)
    faults: list[BaseException] = []
    meet = threading.Barrier(APPS)

    def upgrade(number: int) -> None:
        config = Config()
        config.set_main_option("script_location", str(scripts))
        config.set_main_option("sqlalchemy.url", f"sqlite:///{tmp_path}/{number}.db")
        config.attributes.update(app=str(number), meet=meet)
        try:
            command.upgrade(config, "head")
        except BaseException as fault:
            faults.append(fault)
            meet.abort()

    names = [f"apps/app-{number}/instances/one" for number in range(APPS)]
    threads = []
    for number, name in enumerate(names):
        open_overlay(name)
        with running_as(name):
            threads.append(threading.Thread(target=upgrade, args=(number,)))
            threads[-1].start()
    for thread in threads:
        thread.join(60)
    for name in names:
        undo(name)
    assert faults == []
    for number in range(APPS):
        with sqlite3.connect(tmp_path / f"{number}.db") as database:
            assert database.execute("SELECT app FROM made_by").fetchall() == [(str(number),)]
        database.close()


def test_outside_of_a_migration_alembic_says_that_there_is_none(me: str) -> None:
    with running_as(me):
        with pytest.raises(NameError, match="has not yet been established"):
            op.get_bind()
        assert not hasattr(context, "config")

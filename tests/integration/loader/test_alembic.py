"""Apps that bring Alembic migrations, as `alembic init` lays them out, started at once in one process."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime_node.context import AppContext
from runtime_node.isolation import install, running_as
from runtime_node.loader import Loader

INI = """
[alembic]
script_location = %(here)s/migrations
path_separator = os
prepend_sys_path = %(here)s
sqlalchemy.url = sqlite:///never
[loggers]
keys = root
[handlers]
keys = console
[formatters]
keys = generic
[logger_root]
level = WARNING
handlers = console
[handler_console]
class = StreamHandler
args = (sys.stderr,)
formatter = generic
[formatter_generic]
format = %(levelname)s %(message)s
"""
ENVIRONMENT = """
from logging.config import fileConfig
from alembic import context
from sqlalchemy import engine_from_config
from models import Base
config = context.config
fileConfig(config.config_file_name)
engine = engine_from_config(config.get_section(config.config_ini_section), prefix="sqlalchemy.")
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=Base.metadata)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
"""
REVISION = """
import sqlalchemy as sa
from alembic import op
from models import NAME
revision, down_revision = "0001", None
def upgrade():
    op.create_table(NAME, sa.Column("id", sa.Integer, primary_key=True))
"""
WEB = """
from pathlib import Path
from alembic import command
from alembic.config import Config
def create_app(context):
    config = Config(str(Path(__file__).with_name("alembic.ini")))
    config.set_main_option("sqlalchemy.url", context.database_url)
    command.upgrade(config, "head")
    async def app(scope, receive, send): ...
    return app
"""
COPIES = 6


async def test_apps_that_migrate_in_their_factories_at_once_write_into_their_own_databases(
    tmp_path: Path, make_context: Callable[..., AppContext]
) -> None:
    install()
    places = [tmp_path / "one", tmp_path / "two"]
    for place in places:
        (place / "migrations/versions").mkdir(parents=True)
        (place / "alembic.ini").write_text(INI)
        (place / "migrations/env.py").write_text(ENVIRONMENT)
        (place / "migrations/versions/0001.py").write_text(REVISION)
        (place / "web.py").write_text(WEB)
        (place / "models.py").write_text(
            f"from sqlalchemy.orm import declarative_base\nBase = declarative_base()\nNAME = {place.name!r}\n"
        )
    loader = Loader(places)
    path = list(sys.path)
    entrypoints = ["web:create_app", "two.web:create_app"] * (COPIES // 2)
    codes = [await asyncio.to_thread(loader.load, entrypoint) for entrypoint in entrypoints]

    async def build(number: int, code: Any) -> None:
        context = make_context(f"app-{number}")
        with running_as(context.instance):
            await code.build(context, threads=2)

    try:
        await asyncio.gather(*(build(number, code) for number, code in enumerate(codes)))
        assert list(sys.path) == path
    finally:
        for code in codes:
            code.release()
        loader.close()
    for number in range(COPIES):
        database = sqlite3.connect(tmp_path / f"app-{number}.db")
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        database.close()
        assert {name for (name,) in tables} == {"alembic_version", ("one", "two")[number % 2]}

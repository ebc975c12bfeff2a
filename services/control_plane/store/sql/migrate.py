"""Brings a database to the program's schema, and makes a new catalog's first records.

All of it is one transaction: a database is either of the old schema or of the new one. Where several
control planes start together, one migrates and the others wait for it.
"""

from __future__ import annotations

import uuid
from functools import cache
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, insert, inspect
from sqlmodel import select

from appsupervisor.fleet.v1.fleet_pb2 import Environment
from services.control_plane.store.errors import StoreError
from services.control_plane.store.records import EnvironmentRecord
from services.control_plane.store.sql.database import Database
from services.control_plane.store.sql.rows import environment_values
from services.control_plane.store.sql.tables import ChangeRow, EnvironmentRow, HistoryRow, MetaRow, table_of

DEFAULT_ENVIRONMENT = "environments/default"


def migrate(database: Database, now: int) -> None:
    """Migrate to the newest schema; `now` (µs) is the creation time of a new catalog's records.

    Raises StoreError, before anything is written, if the schema is not one this program knows.
    """
    scripts = _scripts()
    with database.reader.connect() as connection:
        # Without a transaction: no limit of one ends a look that other work holds up.
        connection.execution_options(isolation_level="AUTOCOMMIT")
        current = MigrationContext.configure(connection).get_current_heads()
        _refuse_unknown(scripts, current, database, inspect(connection).get_table_names())
    database.make_private()
    if set(current) == set(scripts.get_heads()):
        return
    with database.writer.begin() as connection:
        if database.lock_schema is not None:
            database.lock_schema(connection)
        # Another control plane may have done it since; then nothing is left to do.
        made_now = not MigrationContext.configure(connection).get_current_heads()
        _upgrade(scripts, connection)
        if made_now:
            _begin_catalog(connection, now)


@cache
def _scripts() -> ScriptDirectory:
    """Return the migrations, read once: reading them takes as long as carrying them out."""
    config = Config()
    config.set_main_option("script_location", "services.control_plane.store.sql:migrations")
    return ScriptDirectory.from_config(config)


def _upgrade(scripts: ScriptDirectory, connection: Connection) -> None:
    """Do what `alembic.command.upgrade` does, which would read the migrations again."""

    def steps(revision: Any, _: MigrationContext) -> Any:
        return scripts._upgrade_revs("head", revision)

    config = Config()
    config.attributes["connection"] = connection
    with EnvironmentContext(config, scripts, fn=steps):
        scripts.run_env()


def _refuse_unknown(
    scripts: ScriptDirectory, current: tuple[str, ...], database: Database, tables: list[str]
) -> None:
    known = {script.revision for script in scripts.walk_revisions()}
    if unknown := set(current) - known:
        raise StoreError(
            f"The catalog {database.label} has the schema {', '.join(sorted(unknown))}, which this program "
            "does not know: a newer one has written it. Start that version, or restore an older backup."
        )
    if tables and not current:
        raise StoreError(
            f"The database {database.label} has tables that are not a catalog's; "
            "give the catalog a database of its own."
        )


def _begin_catalog(connection: Connection, now: int) -> None:
    environment = Environment(name=DEFAULT_ENVIRONMENT, uid=str(uuid.uuid4()), display_name="Default")
    environment.create_time.FromMicroseconds(now)
    environment.update_time.FromMicroseconds(now)
    environment.etag = f'"{environment.uid[:8]}-1"'
    (history,) = connection.execute(select(HistoryRow.id)).scalars()
    connection.execute(
        insert(table_of(MetaRow)),
        {
            "id": 1,
            "catalog_id": uuid.uuid4().hex,
            "revision": 1,
            "oldest_revision": 0,
            "time": now,
            "history": history,
            "term": 0,
        },
    )
    connection.execute(
        insert(table_of(EnvironmentRow)), environment_values(EnvironmentRecord(environment, revision=1))
    )
    connection.execute(
        insert(table_of(ChangeRow)),
        {"revision": 1, "kind": "environment", "key": DEFAULT_ENVIRONMENT, "deleted": False, "time": now},
    )

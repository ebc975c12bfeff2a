"""Brings a database to the program's schema, and makes a new catalog.

All of it is one transaction: a database is either of the old schema or of the new one. Where several
control planes start together, one migrates and the others wait for it.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    insert,
    inspect,
    select,
)

from appsupervisor.fleet.v1.fleet_pb2 import Environment
from services.control_plane.store.errors import StoreError
from services.control_plane.store.history import new_history
from services.control_plane.store.records import EnvironmentRecord
from services.control_plane.store.sql.database import Database
from services.control_plane.store.sql.rows import environment_values
from services.control_plane.store.sql.tables import (
    SCHEMA,
    ChangeRow,
    EnvironmentRow,
    HistoryRow,
    LeadershipRow,
    MetaRow,
    table_of,
)

DEFAULT_ENVIRONMENT = "environments/default"


def _newest() -> str:
    """Return the revision of the last migration; its file is named `r{revision}_{what}.py`."""
    with os.scandir(Path(__file__).parent / "migrations" / "versions") as files:
        last = max(it.name for it in files if it.name.startswith("r") and it.name.endswith(".py"))
    return last[1:].partition("_")[0]


NEWEST = _newest()
"""The last of the migrations. A new catalog is made from the tables, for which Alembic, a quarter of all
that a control plane would load, is not needed; a test compares what comes of both."""

VERSIONS = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
"""Alembic's table, as it makes it."""


def migrate(database: Database, now: int) -> None:
    """Migrate to the newest schema; `now` (µs) is the creation time of a new catalog's records.

    Raises StoreError, before anything is written, if the schema is not one this program knows.
    """
    with database.reader.connect() as connection:
        # Without a transaction: no limit of one ends a look that other work holds up.
        connection.execution_options(isolation_level="AUTOCOMMIT")
        tables = inspect(connection).get_table_names()
        current = _versions(connection, tables)
    if tables and not current:
        raise StoreError(
            f"The database {database.label} has tables that are not a catalog's; "
            "give the catalog a database of its own."
        )
    if current not in ((), (NEWEST,)):
        _migrations().refuse_unknown(current, database.label)
    database.make_private()
    if current == (NEWEST,):
        return
    with database.writer.begin() as connection:
        if database.lock_schema is not None:
            database.lock_schema(connection)
        # Another control plane may have done it since; then nothing is left to do.
        current = _versions(connection, inspect(connection).get_table_names())
        if not current:
            _make_catalog(connection, now)
        elif current != (NEWEST,):
            _migrations().upgrade(connection)


def _migrations() -> Any:
    from services.control_plane.store.sql import upgrade  # noqa: PLC0415 - see NEWEST

    return upgrade


def _versions(connection: Connection, tables: list[str]) -> tuple[str, ...]:
    if VERSIONS.name not in tables:
        return ()
    return tuple(connection.execute(select(VERSIONS.c.version_num)).scalars())


def _make_catalog(connection: Connection, now: int) -> None:
    """Make the tables, and the rows that every catalog has."""
    SCHEMA.metadata.create_all(connection, checkfirst=False)
    VERSIONS.create(connection, checkfirst=False)
    environment = Environment(name=DEFAULT_ENVIRONMENT, uid=str(uuid.uuid4()), display_name="Default")
    environment.create_time.FromMicroseconds(now)
    environment.update_time.FromMicroseconds(now)
    environment.etag = f'"{environment.uid[:8]}-1"'
    history = new_history()
    meta = {
        "id": 1,
        "catalog_id": uuid.uuid4().hex,
        "revision": 1,
        "oldest_revision": 0,
        "time": now,
        "history": history,
        "term": 0,
    }
    nobody = {"id": 1, "holder": "", "address": "", "term": 0, "expire_time": 0}
    change = {"revision": 1, "kind": "environment", "key": DEFAULT_ENVIRONMENT, "deleted": False, "time": now}
    for table, values in (
        (VERSIONS, {"version_num": NEWEST}),
        (table_of(HistoryRow), {"id": history, "after": 0, "time": 0}),
        (table_of(LeadershipRow), nobody),
        (table_of(MetaRow), meta),
        (table_of(EnvironmentRow), environment_values(EnvironmentRecord(environment, revision=1))),
        (table_of(ChangeRow), change),
    ):
        connection.execute(insert(table), values)

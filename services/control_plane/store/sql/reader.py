"""Reads a stored catalog into memory, once, when it is opened."""

from __future__ import annotations

import gc
from collections.abc import Callable
from operator import itemgetter
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlmodel import col, select

from services.control_plane.store.write_set import State
from services.control_plane.store.mirror import Mirror
from services.control_plane.store.sql.rows import (
    Row,
    app_record,
    environment_record,
    node_record,
    operation_record,
)
from services.control_plane.store.sql.tables import (
    AppDomainRow,
    AppRow,
    CatalogTable,
    ChangeRow,
    EnvironmentRow,
    MetaRow,
    NodeRow,
    OperationRow,
    table_of,
)

R = TypeVar("R")

PAGE = 1_000
"""Rows fetched at once."""
FREEZE = 10_000
"""Apps from which on the collector is told to leave the loaded catalog alone."""


def load(connection: Connection) -> State:
    """Return everything that is stored, as of one moment."""
    meta = connection.execute(
        select(MetaRow.catalog_id, MetaRow.revision, MetaRow.oldest_revision, MetaRow.time)
    ).one()
    catalog_id, revision, oldest_revision, now = meta
    mirror = Mirror(revision=revision, oldest_revision=oldest_revision)
    collecting = gc.isenabled()
    gc.disable()  # all that is made here stays; looking through it again and again doubles the time
    try:
        apps = _entries(connection, AppRow, app_record)
        count = len(apps)
        apps += _removals(connection, living={name for _, name, _ in apps})
        apps.sort(key=itemgetter(0))
        for at, name, app in apps:
            mirror.apply(at, apps=[(name, app)])
        for at, name, environment in _entries(connection, EnvironmentRow, environment_record):
            mirror.apply(at, environments=[(name, environment)])
        for at, name, node in _entries(connection, NodeRow, node_record):
            mirror.apply(at, nodes=[(name, node)])
        for at, name, operation in _entries(connection, OperationRow, operation_record):
            mirror.apply(at, operations=[(name, operation)])
    finally:
        if collecting:
            gc.enable()
    if count >= FREEZE:
        gc.collect()
        gc.freeze()
    owned = connection.execute(select(AppDomainRow.domain, AppDomainRow.app))
    domains = {row.domain: row.app for row in owned}
    return State(catalog_id, mirror, domains, revision, oldest_revision, now)


def _entries(
    connection: Connection, row: type[CatalogTable], record: Callable[[Row], R]
) -> list[tuple[int, str, Any]]:
    """Return revision, key and record of each row, in order of revision."""
    entries = [
        (values[-1], values[0], record(values))
        for rows in connection.execute(table_of(row).select()).partitions(PAGE)
        for values in rows
    ]
    entries.sort(key=itemgetter(0))
    return entries


def _removals(connection: Connection, living: set[str]) -> list[tuple[int, str, None]]:
    rows = connection.execute(
        select(ChangeRow.key, ChangeRow.revision)
        .where(ChangeRow.kind == "app", col(ChangeRow.deleted))
        .order_by(col(ChangeRow.revision))
    )
    newest: dict[str, int] = {row.key: row.revision for row in rows if row.key not in living}
    return [(revision, name, None) for name, revision in newest.items()]

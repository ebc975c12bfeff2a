"""Reads a stored catalog into memory, once, when it is opened."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlmodel import col, select

from services.control_plane.store.layers import State
from services.control_plane.store.mirror import Mirror
from services.control_plane.store.rows import (
    Row,
    app_record,
    environment_record,
    node_record,
    operation_record,
)
from services.control_plane.store.tables import (
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

FREEZE = 10_000
"""Records from which on the collector is told to leave the loaded catalog alone."""

_log = logging.getLogger(__name__)


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
        for name, environment in _in_order(connection, EnvironmentRow, environment_record):
            mirror.apply(environment.revision, environments=[(name, environment)])
        for name, node in _in_order(connection, NodeRow, node_record):
            mirror.apply(node.revision, nodes=[(name, node)])
        for name, operation in _in_order(connection, OperationRow, operation_record):
            mirror.apply(operation.revision, operations=[(name, operation)])
        apps = dict(_in_order(connection, AppRow, app_record))
        entries: list[tuple[int, str, Any]] = [(app.revision, name, app) for name, app in apps.items()]
        entries += [(at, name, None) for name, at in _removed_apps(connection).items() if name not in apps]
        entries.sort(key=lambda entry: entry[:2])
        for at, name, app in entries:
            mirror.apply(at, apps=[(name, app)])
    finally:
        if collecting:
            gc.enable()
    if len(entries) >= FREEZE:
        gc.collect()
        gc.freeze()
    owned = connection.execute(select(AppDomainRow.domain, AppDomainRow.app))
    domains = {row.domain: row.app for row in owned}
    return State(catalog_id, mirror, domains, revision, oldest_revision, now)


def _in_order(
    connection: Connection, row: type[CatalogTable], record: Callable[[Row], R]
) -> Iterator[tuple[str, R]]:
    table = table_of(row)
    for values in connection.execute(table.select().order_by(table.c.revision)):
        yield values[0], record(values)


def _removed_apps(connection: Connection) -> dict[str, int]:
    rows = connection.execute(
        select(ChangeRow.key, ChangeRow.revision)
        .where(ChangeRow.kind == "app", col(ChangeRow.deleted))
        .order_by(col(ChangeRow.revision))
    )
    return {row.key: row.revision for row in rows}

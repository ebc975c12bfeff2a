"""Writes a batch's changes to the tables: one bulk statement per table and kind of change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from sqlalchemy import Connection, Dialect, Insert, bindparam, delete, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import col, select

from services.control_plane.store.errors import StoreError
from services.control_plane.store.layers import Batch, Layer
from services.control_plane.store.records import RequestRecord
from services.control_plane.store.rows import (
    app_values,
    environment_values,
    node_values,
    operation_values,
    placement_values,
    request_record,
    request_values,
)
from services.control_plane.store.tables import (
    AppDomainRow,
    AppEventRow,
    AppRow,
    CatalogTable,
    ChangeRow,
    EnvironmentRow,
    MetaRow,
    NodeRow,
    OperationRow,
    PlacementRow,
    RequestRow,
    table_of,
)

R = TypeVar("R")

KINDS = ("environment", "node", "app", "placement", "operation")
"""What the change log tells of, as written in its column `kind`."""


class Statements:
    """The store's statements, for one kind of database; used by the writer's connection alone."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect.name
        self._upsert: dict[type[CatalogTable], Insert] = {
            row: self._make_upsert(row, fixed)
            for row, fixed in (
                (EnvironmentRow, ()),
                (NodeRow, ()),
                (AppRow, ("uid",)),
                (PlacementRow, ()),
                (OperationRow, ()),
                (RequestRow, ()),
                (AppDomainRow, ()),
            )
        }
        self._append = {row: self._insert(row) for row in (ChangeRow, AppEventRow)}
        self._delete = {
            row: delete(table_of(row)).where(next(iter(table_of(row).primary_key)) == bindparam("key"))
            for row in (EnvironmentRow, NodeRow, AppRow, PlacementRow, OperationRow, AppDomainRow)
        }
        self._forget_events = delete(table_of(AppEventRow)).where(
            col(AppEventRow.app) == bindparam("key"), col(AppEventRow.id) <= bindparam("up_to")
        )
        self._expire_requests = delete(table_of(RequestRow)).where(
            col(RequestRow.request_id) == bindparam("key"), col(RequestRow.expire_time) <= bindparam("now")
        )
        self._forget_changes = delete(table_of(ChangeRow)).where(
            col(ChangeRow.revision) <= bindparam("up_to")
        )
        self._advance = (
            update(table_of(MetaRow))
            .where(col(MetaRow.revision) == bindparam("old"))
            .values(revision=bindparam("new"), time=bindparam("now"), oldest_revision=bindparam("oldest"))
        )
        # The one statement run once per command: sent as text, it costs a third of a built one.
        request = (
            select(RequestRow.request_id, RequestRow.digest, RequestRow.response, RequestRow.expire_time)
            .where(RequestRow.request_id == bindparam("key"))
            .compile(dialect=dialect)
        )
        self._request, self._positional = str(request), request.positional

    def _insert(self, row: type[CatalogTable]) -> Any:
        make = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[self._dialect]
        return make(table_of(row))

    def _make_upsert(self, row: type[CatalogTable], fixed: Iterable[str]) -> Insert:
        # `fixed` columns never change in the life of a row: leaving them out spares their index.
        table, statement = table_of(row), self._insert(row)
        keys = [column.name for column in table.primary_key]
        values = {
            column.name: statement.excluded[column.name]
            for column in table.columns
            if column.name not in keys and column.name not in fixed
        }
        upsert: Insert = statement.on_conflict_do_update(index_elements=keys, set_=values)
        return upsert

    def find_request(self, connection: Connection, request_id: str) -> RequestRecord | None:
        """Read a stored request, expired or not."""
        parameters = (request_id,) if self._positional else {"key": request_id}
        row = connection.exec_driver_sql(self._request, parameters).first()
        return None if row is None else request_record(row)

    def write(self, connection: Connection, batch: Batch) -> None:
        """Write a batch's rows and changes, and advance the catalog's revision; does not commit.

        Raises StoreError if the stored revision is not the one this batch follows.
        """
        layer = batch.layer
        self._remove(connection, layer)
        # Parents before children, as foreign keys want it.
        self._put(connection, EnvironmentRow, layer.environments, environment_values)
        self._put(connection, NodeRow, layer.nodes, node_values)
        self._put(connection, AppRow, layer.apps, app_values)
        domains = [{"domain": domain, "app": app} for domain, app in layer.domains.items() if app]
        if domains:
            connection.execute(self._upsert[AppDomainRow], domains)
        self._put(connection, PlacementRow, layer.placements, placement_values)
        self._put(connection, OperationRow, layer.operations, operation_values)
        self._put(connection, RequestRow, layer.requests, request_values)
        if layer.events:
            rows = [{"app": app, "id": number, "body": body} for app, number, body in layer.events]
            connection.execute(self._append[AppEventRow], rows)
        changes = list(_changes(batch))
        if changes:
            connection.execute(self._append[ChangeRow], changes)
        revision, now, _ = batch.commits[-1]
        self._prune(connection, layer, now)
        oldest = max(batch.state.oldest_revision, layer.oldest_revision)
        advanced = connection.execute(
            self._advance, {"old": batch.state.revision, "new": revision, "now": now, "oldest": oldest}
        )
        if advanced.rowcount != 1:
            raise StoreError("Another program has written the catalog; only one control plane may.")

    def _put(
        self,
        connection: Connection,
        row: type[CatalogTable],
        records: Mapping[str, R | None],
        values: Callable[[R], dict[str, Any]],
    ) -> None:
        rows = [values(record) for record in records.values() if record is not None]
        if rows:
            connection.execute(self._upsert[row], rows)

    def _remove(self, connection: Connection, layer: Layer) -> None:
        # Children before parents. An app that another of its name replaced goes too: all of its row
        # is the other's then.
        for row, keys in (
            (AppDomainRow, _gone(layer.domains)),
            (OperationRow, _gone(layer.operations)),
            (PlacementRow, _gone(layer.placements)),
            (AppRow, list(layer.removed_apps)),
            (NodeRow, _gone(layer.nodes)),
            (EnvironmentRow, _gone(layer.environments)),
        ):
            if keys:
                connection.execute(self._delete[row], [{"key": key} for key in keys])

    def _prune(self, connection: Connection, layer: Layer, now: int) -> None:
        if layer.expired_requests:
            rows = [{"key": key, "now": now} for key in layer.expired_requests]
            connection.execute(self._expire_requests, rows)
        if layer.forgotten_events:
            pairs = [{"key": app, "up_to": up_to} for app, up_to in layer.forgotten_events]
            connection.execute(self._forget_events, pairs)
        if layer.oldest_revision:
            connection.execute(self._forget_changes, {"up_to": layer.oldest_revision})


def _gone(records: dict[str, Any]) -> list[str]:
    return [key for key, record in records.items() if record is None]


def _changes(batch: Batch) -> Iterator[dict[str, Any]]:
    for revision, now, layer in batch.commits:
        changed: tuple[Mapping[str, Any], ...] = (
            layer.environments,
            layer.nodes,
            layer.apps,
            layer.placements,
            layer.operations,
        )
        for kind, records in zip(KINDS, changed, strict=True):
            for key, record in records.items():
                yield {
                    "revision": revision,
                    "kind": kind,
                    "key": key,
                    "deleted": record is None,
                    "time": now,
                }

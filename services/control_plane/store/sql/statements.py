"""Writes a batch's changes to the tables: one bulk statement per table and kind of change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from sqlalchemy import Connection, Dialect, Insert, bindparam, delete, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import col, select

from services.control_plane.store.errors import StoreError
from services.control_plane.store.write_set import Batch, WriteSet
from services.control_plane.store.records import RequestRecord
from services.control_plane.store.sql.rows import (
    app_values,
    environment_values,
    node_values,
    operation_values,
    request_record,
    request_values,
)
from services.control_plane.store.sql.tables import (
    AppDomainRow,
    AppEventRow,
    AppRow,
    CatalogTable,
    ChangeRow,
    EnvironmentRow,
    MetaRow,
    NodeRow,
    OperationRow,
    RequestRow,
    table_of,
)

R = TypeVar("R")

KINDS = ("environment", "node", "app", "operation")
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
                (OperationRow, ()),
                (RequestRow, ()),
                (AppDomainRow, ()),
            )
        }
        self._append = {row: self._insert(row) for row in (ChangeRow, AppEventRow)}
        self._delete = {
            row: delete(table_of(row)).where(next(iter(table_of(row).primary_key)) == bindparam("key"))
            for row in (EnvironmentRow, NodeRow, AppRow, OperationRow, AppDomainRow)
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
        write_set = batch.write_set
        self._remove(connection, write_set)
        # Parents before children, as foreign keys want it.
        self._put(connection, EnvironmentRow, write_set.environments, environment_values)
        self._put(connection, NodeRow, write_set.nodes, node_values)
        self._put(connection, AppRow, write_set.apps, app_values)
        domains = [{"domain": domain, "app": app} for domain, app in write_set.domains.items() if app]
        if domains:
            connection.execute(self._upsert[AppDomainRow], domains)
        self._put(connection, OperationRow, write_set.operations, operation_values)
        self._put(connection, RequestRow, write_set.requests, request_values)
        if write_set.events:
            rows = [{"app": app, "id": number, "body": body} for app, number, body in write_set.events]
            connection.execute(self._append[AppEventRow], rows)
        changes = list(_changes(batch))
        if changes:
            connection.execute(self._append[ChangeRow], changes)
        revision, now, _ = batch.commits[-1]
        self._prune(connection, write_set, now)
        oldest = max(batch.state.oldest_revision, write_set.oldest_revision)
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

    def _remove(self, connection: Connection, write_set: WriteSet) -> None:
        # Children before parents. An app that another of its name replaced goes too: all of its row
        # is the other's then.
        for row, keys in (
            (AppDomainRow, _gone(write_set.domains)),
            (OperationRow, _gone(write_set.operations)),
            (AppRow, list(write_set.removed_apps)),
            (NodeRow, _gone(write_set.nodes)),
            (EnvironmentRow, _gone(write_set.environments)),
        ):
            if keys:
                connection.execute(self._delete[row], [{"key": key} for key in keys])

    def _prune(self, connection: Connection, write_set: WriteSet, now: int) -> None:
        if write_set.expired_requests:
            rows = [{"key": key, "now": now} for key in write_set.expired_requests]
            connection.execute(self._expire_requests, rows)
        if write_set.forgotten_events:
            pairs = [{"key": app, "up_to": up_to} for app, up_to in write_set.forgotten_events]
            connection.execute(self._forget_events, pairs)
        if write_set.oldest_revision:
            connection.execute(self._forget_changes, {"up_to": write_set.oldest_revision})


def _gone(records: dict[str, Any]) -> list[str]:
    return [key for key, record in records.items() if record is None]


def _changes(batch: Batch) -> Iterator[dict[str, Any]]:
    for revision, now, write_set in batch.commits:
        changed: tuple[Mapping[str, Any], ...] = (
            write_set.environments,
            write_set.nodes,
            write_set.apps,
            write_set.operations,
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

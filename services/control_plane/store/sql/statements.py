"""The writing connection's statements: the lock on `meta`, and one bulk statement per table.

What SQLite and PostgreSQL say differently within a transaction is here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import Connection, Dialect, Insert, bindparam, delete, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import col, func, select

from services.control_plane.store.changes import Meta
from services.control_plane.store.errors import StoreError
from services.control_plane.store.records import RequestRecord
from services.control_plane.store.sql.kinds import KINDS
from services.control_plane.store.sql.rows import request_record, request_values
from services.control_plane.store.sql.tables import (
    AppDomainRow,
    AppEventRow,
    CatalogTable,
    ChangeRow,
    HistoryRow,
    MetaRow,
    RequestRow,
    WriterRow,
    table_of,
)
from services.control_plane.store.write_set import Batch, WriteSet

CHANNEL = "appsupervisor_catalog"
"""What PostgreSQL is told to NOTIFY once a commit is visible; of one database."""

_KEYED: tuple[type[CatalogTable], ...] = (RequestRow, AppDomainRow, WriterRow)
_REMOVABLE: tuple[type[CatalogTable], ...] = (*(kind.row for kind in KINDS), AppDomainRow)
_META = (
    "SELECT catalog_id, revision, oldest_revision, time, history, term, {now} FROM meta WHERE id = 1{lock}"
)
_PG_NOW = "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)"


class Statements:
    """The store's statements, for one kind of database; used by the writer's connection alone."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect.name
        self._upsert: dict[type[CatalogTable], Insert] = {
            **{kind.row: self._make_upsert(kind.row, kind.fixed) for kind in KINDS},
            **{row: self._make_upsert(row, ()) for row in _KEYED},
        }
        self._append = {row: self._insert(row) for row in (ChangeRow, AppEventRow, HistoryRow)}
        self._delete = {
            row: delete(table_of(row)).where(next(iter(table_of(row).primary_key)) == bindparam("key"))
            for row in _REMOVABLE
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
            .values(
                revision=bindparam("new"),
                time=bindparam("now"),
                oldest_revision=bindparam("oldest"),
                history=bindparam("its_history"),
            )
        )
        last_before = select(func.max(HistoryRow.after)).where(col(HistoryRow.after) <= bindparam("up_to"))
        self._forget_histories = delete(table_of(HistoryRow)).where(
            col(HistoryRow.after) < last_before.scalar_subquery()
        )
        shared = self._dialect == "postgresql"
        now = _PG_NOW if shared else "NULL"
        self._lock = _META.format(now=now, lock=" FOR UPDATE" if shared else "")
        self._look = _META.format(now=now, lock="")
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

    def lock(self, connection: Connection) -> Meta:
        """Read the catalog's own row; until the transaction ends nobody else commits.

        Raises StoreError if it is missing.
        """
        # SQLite has locked with BEGIN IMMEDIATE. PostgreSQL reads the row again once it has the lock; all
        # that a later statement reads is then at least as new.
        return _meta(connection.exec_driver_sql(self._lock).first())

    def look(self, connection: Connection) -> Meta:
        """Read the catalog's own row. Raises StoreError if it is missing."""
        return _meta(connection.exec_driver_sql(self._look).first())

    def begin_snapshot(self, connection: Connection) -> None:
        """Have all that the transaction reads be of one moment; its first statement."""
        if self._dialect == "postgresql":
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")

    def last_number(self, connection: Connection, writer: str) -> int:
        """Return the number of a writer's last commit; 0 if it has made none."""
        found = connection.execute(select(WriterRow.number).where(WriterRow.id == writer)).scalar()
        return found or 0

    def find_request(self, connection: Connection, request_id: str) -> RequestRecord | None:
        """Read a stored request, expired or not."""
        parameters = (request_id,) if self._positional else {"key": request_id}
        row = connection.exec_driver_sql(self._request, parameters).first()
        return None if row is None else request_record(row)

    def write(self, connection: Connection, batch: Batch, writer: str, number: int) -> None:
        """Write a batch's rows and changes, and advance the catalog's revision; does not commit.

        `number` counts the commits of `writer`.
        """
        changed = batch.write_set
        self._remove(connection, changed)
        for kind in KINDS:
            rows = [kind.values(it) for it in getattr(changed, kind.feed).values() if it is not None]
            if rows:
                connection.execute(self._upsert[kind.row], rows)
            if kind.name == "app":
                domains = [{"domain": domain, "app": app} for domain, app in changed.domains.items() if app]
                if domains:
                    connection.execute(self._upsert[AppDomainRow], domains)
        requests = [request_values(request) for request in changed.requests.values()]
        if requests:
            connection.execute(self._upsert[RequestRow], requests)
        if changed.events:
            rows = [{"app": app, "id": event, "body": body} for app, event, body in changed.events]
            connection.execute(self._append[AppEventRow], rows)
        changes = list(_changes(batch))
        if changes:
            connection.execute(self._append[ChangeRow], changes)
        revision, now, _ = batch.commits[-1]
        self._prune(connection, changed, now)
        if batch.begins:
            history = {"id": batch.begins, "after": batch.state.revision, "time": now}
            connection.execute(self._append[HistoryRow], history)
        last = {"id": writer, "number": number, "revision": revision, "time": now}
        connection.execute(self._upsert[WriterRow], last)
        self._advance_meta(connection, batch, revision, now)
        if self._dialect == "postgresql":
            # Delivered once the commit is visible, and to nobody if there is none.
            connection.exec_driver_sql("SELECT pg_notify(%s, %s)", (CHANNEL, writer))

    def _advance_meta(self, connection: Connection, batch: Batch, revision: int, now: int) -> None:
        values = {
            "old": batch.state.revision,
            "new": revision,
            "now": now,
            "oldest": max(batch.state.oldest_revision, batch.write_set.oldest_revision),
            "its_history": batch.history,
        }
        if connection.execute(self._advance, values).rowcount != 1:
            raise StoreError("The catalog was written past the lock that all its writers take.")

    def _remove(self, connection: Connection, write_set: WriteSet) -> None:
        # Children before parents. An app that another of its name replaced goes too: all of its row
        # is the other's then.
        gone: list[tuple[type[CatalogTable], list[str]]] = [(AppDomainRow, _gone(write_set.domains))]
        for kind in reversed(KINDS):
            keys = (
                list(write_set.removed_apps) if kind.name == "app" else _gone(getattr(write_set, kind.feed))
            )
            gone.append((kind.row, keys))
        for row, keys in gone:
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
            connection.execute(self._forget_histories, {"up_to": write_set.oldest_revision})


def _gone(records: dict[str, Any]) -> list[str]:
    return [key for key, record in records.items() if record is None]


def _changes(batch: Batch) -> Iterator[dict[str, Any]]:
    for revision, now, changed in batch.commits:
        for kind in KINDS:
            for key, record in getattr(changed, kind.feed).items():
                yield {
                    "revision": revision,
                    "kind": kind.name,
                    "key": key,
                    "deleted": record is None,
                    "time": now,
                }


def _meta(row: Any) -> Meta:
    if row is None:
        raise StoreError("The catalog has lost the row of its table meta; restore a backup.")
    return Meta(*row)

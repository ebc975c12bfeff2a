"""What the writing connection says: the lock on `meta`, and one statement per table for a batch's rows.

What SQLite and PostgreSQL say differently within a transaction is here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from services.control_plane.store.changes import Meta
from services.control_plane.store.errors import StoreError
from services.control_plane.store.records import RequestRecord
from services.control_plane.store.sql.bulk import ByKeys, Insert, Step
from services.control_plane.store.sql.database import Database
from services.control_plane.store.sql.kinds import KINDS, Kind
from services.control_plane.store.sql.rows import Row, request_record, request_values
from services.control_plane.store.sql.tables import (
    AppDomainRow,
    AppEventRow,
    CatalogTable,
    ChangeRow,
    HistoryRow,
    RequestRow,
    WriterRow,
)
from services.control_plane.store.write_set import Batch, WriteSet

CHANNEL = "appsupervisor_catalog"
"""What PostgreSQL is told to NOTIFY once a commit is visible; of one database."""

_KEYED: tuple[type[CatalogTable], ...] = (RequestRow, AppDomainRow, WriterRow)
_APPENDED: tuple[type[CatalogTable], ...] = (ChangeRow, AppEventRow, HistoryRow)
_REMOVABLE: tuple[type[CatalogTable], ...] = (*(kind.row for kind in KINDS), AppDomainRow)
_META = (
    "SELECT catalog_id, revision, oldest_revision, time, history, term, {now} FROM meta WHERE id = 1{lock}"
)


class Statements:
    """The store's statements, for one database; used by the writer's connection alone."""

    def __init__(self, database: Database) -> None:
        dialect = database.writer.dialect
        self._runner = database.runner
        self._shared = database.shared
        self._insert = {
            **{kind.row: Insert(kind.row, dialect, replaces=True, fixed=kind.fixed) for kind in KINDS},
            **{row: Insert(row, dialect, replaces=True) for row in _KEYED},
            **{row: Insert(row, dialect) for row in _APPENDED},
        }
        self._delete = {row: ByKeys("DELETE", row, dialect) for row in _REMOVABLE}
        self._select = {kind.row: ByKeys("SELECT {columns}", kind.row, dialect) for kind in KINDS}
        self._requests = ByKeys("SELECT {columns}", RequestRow, dialect)
        mark = "%s" if database.shared else "?"
        self._expire_requests = ByKeys("DELETE", RequestRow, dialect, end=f" AND expire_time <= {mark}")
        self._texts = {name: text.replace("?", mark) for name, text in _TEXTS.items()}
        self._lock = _META.format(now=database.now, lock=" FOR UPDATE" if database.shared else "")
        self._look = _META.format(now=database.now, lock="")

    # Each of these is one round trip.

    def lock(self, connection: Connection, after: int | None = None) -> tuple[Meta, list[Row]]:
        """Read the catalog's own row, and the change log after a revision; until the transaction ends nobody
        else commits.

        Raises StoreError if the row is missing.
        """
        # SQLite has locked with BEGIN IMMEDIATE. PostgreSQL reads the row again once it has the lock; all
        # that a later statement reads is then at least as new.
        return self._read_meta(connection, (), self._lock, after)

    def look(self, connection: Connection, after: int | None = None) -> tuple[Meta, list[Row]]:
        """Read the same without a lock; all that the transaction reads is of one moment. Raises as `lock`."""
        first = (Step("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"),) if self._shared else ()
        return self._read_meta(connection, first, self._look, after)

    def _read_meta(
        self, connection: Connection, first: Sequence[Step], meta: str, after: int | None
    ) -> tuple[Meta, list[Row]]:
        steps = [*first, Step(meta)]
        log = Step(self._texts["log"], (after,))
        # Where nobody else writes there is nothing to be found in the log.
        if self._shared and after is not None:
            *_, row, logged = self._runner.run(connection, [*steps, log])
            return _meta(row.fetchone()), logged.fetchall()
        found = _meta(self._runner.run(connection, steps)[-1].fetchone())
        if after is None or found.revision <= after:
            return found, []
        return found, self._runner.run(connection, [log])[0].fetchall()

    def rows(self, connection: Connection, keys: Sequence[tuple[Kind, Collection[str]]]) -> list[list[Row]]:
        """Return the rows of some keys of each of some kinds."""
        steps = [self._select[kind.row].step(of_kind) for kind, of_kind in keys]
        return [rows.fetchall() for rows in self._runner.run(connection, steps)]

    def last_number(self, connection: Connection, writer: str) -> int:
        """Return the number of a writer's last commit; 0 if it has made none."""
        (found,) = self._runner.run(connection, [Step(self._texts["last number"], (writer,))])
        row = found.fetchone()
        return row[0] if row is not None else 0

    def find_requests(self, connection: Connection, ids: Collection[str]) -> dict[str, RequestRecord | None]:
        """Read stored requests, expired or not; None for those that are not there."""
        (found,) = self._runner.run(connection, [self._requests.step(ids)])
        return {**dict.fromkeys(ids), **{row[0]: request_record(row) for row in found.fetchall()}}

    def store(self, connection: Connection, batch: Batch, writer: str, number: int) -> None:
        """Write a batch's rows and changes, advance the catalog's revision, and commit.

        `number` counts the commits of `writer`.
        """
        changed = batch.write_set
        revision, now, _ = batch.commits[-1]
        steps = [*self._removals(changed), *self._additions(changed)]
        changes = list(_changes(batch))
        if changes:
            steps += self._insert[ChangeRow].steps(changes)
        steps += self._pruning(changed, now)
        if batch.begins:
            history = {"id": batch.begins, "after": batch.state.revision, "time": now}
            steps += self._insert[HistoryRow].steps([history])
        last = {"id": writer, "number": number, "revision": revision, "time": now}
        steps += self._insert[WriterRow].steps([last])
        advance = len(steps)
        oldest = max(batch.state.oldest_revision, changed.oldest_revision)
        values = (revision, now, oldest, batch.history, batch.state.revision)
        steps.append(Step(self._texts["advance"], values))
        if self._shared:
            # Delivered once the commit is visible, and to nobody if there is none.
            steps.append(Step(self._texts["notify"], (CHANNEL, writer)))
        if self._runner.run_and_commit(connection, steps)[advance].rowcount != 1:
            raise StoreError("The catalog was written past the lock that all its writers take.")

    def _removals(self, changed: WriteSet) -> Iterator[Step]:
        # Children before parents. An app that another of its name replaced goes too: all of its row
        # is the other's then.
        gone: list[tuple[type[CatalogTable], Collection[str]]] = [(AppDomainRow, _gone(changed.domains))]
        for kind in reversed(KINDS):
            if kind.name == "app":
                gone.append((kind.row, changed.removed_apps))
            else:
                gone.append((kind.row, _gone(changed.part(kind.feed))))
        for row, keys in gone:
            if keys:
                yield self._delete[row].step(keys)

    def _additions(self, changed: WriteSet) -> Iterator[Step]:
        for kind in KINDS:
            rows = [kind.values(it) for it in changed.part(kind.feed).values() if it is not None]
            if rows:
                yield from self._insert[kind.row].steps(rows)
            if kind.name == "app":
                domains = [{"domain": domain, "app": app} for domain, app in changed.domains.items() if app]
                if domains:
                    yield from self._insert[AppDomainRow].steps(domains)
        if changed.requests:
            rows = [request_values(it) for it in changed.requests.values()]
            yield from self._insert[RequestRow].steps(rows)
        if changed.events:
            rows = [{"app": app, "id": event, "body": body} for app, event, body in changed.events]
            yield from self._insert[AppEventRow].steps(rows)

    def _pruning(self, changed: WriteSet, now: int) -> Iterator[Step]:
        if changed.expired_requests:
            yield self._expire_requests.step(changed.expired_requests, now)
        for app, up_to in changed.forgotten_events:
            yield Step(self._texts["forget events"], (app, up_to))
        if changed.oldest_revision:
            yield Step(self._texts["forget changes"], (changed.oldest_revision,))
            yield Step(self._texts["forget histories"], (changed.oldest_revision,))


_TEXTS = {
    "log": 'SELECT kind, "key", revision, deleted FROM changes WHERE revision > ? ORDER BY revision',
    "last number": "SELECT number FROM writers WHERE id = ?",
    "advance": (
        "UPDATE meta SET revision = ?, time = ?, oldest_revision = ?, history = ? "
        "WHERE id = 1 AND revision = ?"
    ),
    "notify": "SELECT pg_notify(?, ?)",
    "forget events": "DELETE FROM app_events WHERE app = ? AND id <= ?",
    "forget changes": "DELETE FROM changes WHERE revision <= ?",
    "forget histories": (
        'DELETE FROM histories WHERE "after" < (SELECT max("after") FROM histories WHERE "after" <= ?)'
    ),
}


_NAMES = {kind.feed: kind.name for kind in KINDS}


def _gone(records: Mapping[str, Any]) -> list[str]:
    return [key for key, record in records.items() if record is None]


def _changes(batch: Batch) -> Iterator[dict[str, Any]]:
    for revision, now, changed in batch.commits:
        for feed, records in changed.by_feed().items():
            for key, record in records.items():
                yield {
                    "revision": revision,
                    "kind": _NAMES[feed],
                    "key": key,
                    "deleted": record is None,
                    "time": now,
                }


def _meta(row: Any) -> Meta:
    if row is None:
        raise StoreError("The catalog has lost the row of its table meta; restore a backup.")
    return Meta(*row)

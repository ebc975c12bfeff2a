"""Reads what the stored catalog has after a revision: the one way to load it, catch up and follow.

Whoever calls sees one moment of the database: in a snapshot, or under the lock on `meta`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from sqlalchemy import Connection
from sqlmodel import col, select

from services.control_plane.store.changes import Change, Changes, Meta
from services.control_plane.store.errors import StoreError
from services.control_plane.store.history import Histories
from services.control_plane.store.sql.kinds import KINDS, Kind
from services.control_plane.store.sql.tables import ChangeRow, HistoryRow, table_of

PAGE = 1_000
"""Rows fetched, or keys asked for, at once."""

KnownKeys = Callable[[str], Collection[str]]
"""Returns the keys that a feed, by its name, holds now."""


def read_changes(connection: Connection, meta: Meta, after: int, known: KnownKeys | None = None) -> Changes:
    """Return the newest state of all that has changed after a revision; of everything after 0.

    `known` is asked where the change log does not reach back that far. Raises StoreError if a record cannot
    be decoded.
    """
    with _collector_paused():
        if after == 0:
            by_feed = {kind.feed: _everything(connection, kind) for kind in KINDS}
        elif after >= meta.oldest_revision:
            by_feed = _logged(connection, after)
        else:
            assert known is not None
            by_feed = {
                kind.feed: _compared(connection, kind, after, meta, known(kind.feed)) for kind in KINDS
            }
    return Changes(meta, read_histories(connection), by_feed)


def read_histories(connection: Connection) -> Histories:
    """Return the histories, oldest first."""
    rows = connection.execute(select(HistoryRow.id, HistoryRow.after).order_by(col(HistoryRow.after))).all()
    if not rows:
        raise StoreError("The catalog has no history: its table histories is empty; restore a backup.")
    return Histories(tuple(row.id for row in rows), tuple(row.after for row in rows))


@contextmanager
def _collector_paused() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.disable()  # all that is made here stays; looking through it again and again doubles the time
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _everything(connection: Connection, kind: Kind) -> list[Change]:
    # Fetched in parts: all of it at once would be there twice.
    parts = connection.execute(table_of(kind.row).select(), execution_options={"stream_results": True})
    entries = _decoded(kind, parts)
    if kind.resumable:
        living = {key for _, key, _ in entries}
        removals = connection.execute(
            select(ChangeRow.key, ChangeRow.revision)
            .where(ChangeRow.kind == kind.name, col(ChangeRow.deleted))
            .order_by(col(ChangeRow.revision))
        )
        newest: dict[str, int] = {row.key: row.revision for row in removals if row.key not in living}
        entries += [(revision, key, None) for key, revision in newest.items()]
    return _in_order(entries)


def _logged(connection: Connection, after: int) -> dict[str, list[Change]]:
    # The log is keyed by revision: an index on the rows' own revision would be one more to write.
    rows = connection.execute(
        select(ChangeRow.kind, ChangeRow.key, ChangeRow.revision, ChangeRow.deleted)
        .where(col(ChangeRow.revision) > after)
        .order_by(col(ChangeRow.revision))
    )
    newest: dict[str, dict[str, tuple[int, bool]]] = {}
    for name, key, revision, deleted in rows:
        newest.setdefault(name, {})[key] = (revision, deleted)
    found: dict[str, list[Change]] = {}
    for kind in KINDS:
        changed = newest.get(kind.name)
        if not changed:
            continue
        entries: list[Change] = [(at, key, None) for key, (at, deleted) in changed.items() if deleted]
        entries += _rows(connection, kind, [key for key, (_, deleted) in changed.items() if not deleted])
        found[kind.feed] = _in_order(entries)
    return found


def _compared(
    connection: Connection, kind: Kind, after: int, meta: Meta, known: Collection[str]
) -> list[Change]:
    table = table_of(kind.row)
    entries = _decoded(kind, connection.execute(table.select().where(table.c.revision > after)))
    stored = set(connection.execute(select(next(iter(table.primary_key)))).scalars())
    entries += [(meta.revision, key, None) for key in known if key not in stored]
    return _in_order(entries)


def _rows(connection: Connection, kind: Kind, keys: list[str]) -> list[Change]:
    table = table_of(kind.row)
    key, remaining = next(iter(table.primary_key)), iter(keys)
    entries: list[Change] = []
    while page := list(islice(remaining, PAGE)):
        entries += _decoded(kind, connection.execute(table.select().where(key.in_(page))))
    return entries


def _decoded(kind: Kind, result: Any) -> list[Change]:
    entries: list[Change] = []
    for rows in result.partitions(PAGE):
        for values in rows:
            try:
                entries.append((values[-1], values[0], kind.record(values)))
            except Exception as error:
                raise StoreError(
                    f"The catalog's record of {values[0]}, in its table {kind.row.__tablename__}, cannot be "
                    "decoded: it is damaged, or a newer program wrote it; restore a backup."
                ) from error
    return entries


def _in_order(entries: list[Change]) -> list[Change]:
    entries.sort(key=lambda entry: entry[0])
    return entries

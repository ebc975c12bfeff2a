"""Reads what the stored catalog has after a revision: the one way to load it, catch up and follow.

Whoever calls sees one moment of the database: in a snapshot, or under the lock on `meta`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from sqlalchemy import Connection
from sqlmodel import col, select

from services.control_plane.store.changes import Change, Changes, Meta
from services.control_plane.store.errors import StoreError
from services.control_plane.store.history import Histories
from services.control_plane.store.sql.kinds import KINDS, Kind
from services.control_plane.store.sql.rows import Row, packed_app, placement_record
from services.control_plane.store.sql.statements import Statements
from services.control_plane.store.sql.tables import ChangeRow, HistoryRow, table_of
from services.rpc.process import collector_paused

PAGE = 1_000
"""Rows fetched at once."""


@dataclass(frozen=True, slots=True)
class Known:
    """What its reader knows of the catalog already."""

    revision: int
    histories: Histories
    keys: Callable[[str], Collection[str]]
    """Returns the keys that a feed, by its name, holds now."""


def read_everything(connection: Connection, meta: Meta) -> Changes:
    """Return all that is stored, apps packed. Raises StoreError if a record cannot be decoded."""
    by_feed: dict[str, list[Change]] = {}
    for kind in KINDS:
        by_feed[kind.feed] = _everything(connection, kind, _decoder(kind, by_feed))
    return Changes(meta, read_histories(connection), by_feed)


def read_changes(
    connection: Connection, statements: Statements, meta: Meta, log: Sequence[Row], known: Known
) -> Changes:
    """Return the newest state of all that has changed after what is known, `log` being the change log since.

    Where that does not reach back so far everything is compared. Raises StoreError if a record cannot be
    decoded.
    """
    if known.revision >= meta.oldest_revision:
        by_feed = _logged(connection, statements, log)
    else:
        with collector_paused():
            by_feed = {kind.feed: _compared(connection, kind, known, meta) for kind in KINDS}
    same = meta.history == known.histories.newest
    return Changes(meta, known.histories if same else read_histories(connection), by_feed)


def read_histories(connection: Connection) -> Histories:
    """Return the histories, oldest first."""
    rows = connection.execute(select(HistoryRow.id, HistoryRow.after).order_by(col(HistoryRow.after))).all()
    if not rows:
        raise StoreError("The catalog has no history: its table histories is empty; restore a backup.")
    return Histories(tuple(row.id for row in rows), tuple(row.after for row in rows))


def _decoder(kind: Kind, before: Mapping[str, Sequence[Change]]) -> Callable[[Row], Any]:
    """Return what makes the records of a whole catalog's rows; `before` are those of the kinds before it."""
    if kind.name == "app":
        # Records of all apps at once would take more memory for a moment than the whole mirror for good.
        return packed_app
    if kind.name == "placement":
        apps = {key: app for _, key, app in before["apps"] if app is not None}
        return partial(placement_record, apps=apps)
    return kind.record


def _everything(connection: Connection, kind: Kind, decode: Callable[[Row], Any]) -> list[Change]:
    # Fetched in parts: all of it at once would be there twice.
    options = {"stream_results": True, "yield_per": PAGE}
    rows = connection.execute(table_of(kind.row).select(), execution_options=options)
    entries = _decoded(kind, chain.from_iterable(rows.partitions()), decode)
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


def _logged(connection: Connection, statements: Statements, log: Sequence[Row]) -> dict[str, list[Change]]:
    # The log is keyed by revision: an index on the rows' own revision would be one more to write.
    newest: dict[str, dict[str, tuple[int, bool]]] = {}
    for name, key, revision, deleted in log:
        newest.setdefault(name, {})[key] = (revision, bool(deleted))
    kinds = [kind for kind in KINDS if kind.name in newest]
    wanted = [
        (kind, [key for key, (_, deleted) in newest[kind.name].items() if not deleted]) for kind in kinds
    ]
    stored = statements.rows(connection, wanted) if wanted else []
    found: dict[str, list[Change]] = {}
    for kind, rows in zip(kinds, stored, strict=True):
        removed = newest[kind.name].items()
        entries: list[Change] = [(at, key, None) for key, (at, deleted) in removed if deleted]
        found[kind.feed] = _in_order(entries + _decoded(kind, rows))
    return found


def _compared(connection: Connection, kind: Kind, known: Known, meta: Meta) -> list[Change]:
    table = table_of(kind.row)
    entries = _decoded(kind, connection.execute(table.select().where(table.c.revision > known.revision)))
    stored = set(connection.execute(select(next(iter(table.primary_key)))).scalars())
    entries += [(meta.revision, key, None) for key in known.keys(kind.feed) if key not in stored]
    return _in_order(entries)


def _decoded(kind: Kind, rows: Iterable[Row], decode: Callable[[Row], Any] | None = None) -> list[Change]:
    entries: list[Change] = []
    decode = decode or kind.record
    for values in rows:
        try:
            entries.append((values[-1], values[0], decode(values)))
        except Exception as error:
            raise StoreError(
                f"The catalog's record of {values[0]}, in its table {kind.row.__tablename__}, cannot be "
                "decoded: it is damaged, or a newer program wrote it; restore a backup."
            ) from error
    return entries


def _in_order(entries: list[Change]) -> list[Change]:
    entries.sort(key=lambda entry: entry[0])
    return entries

"""The entries of the mirror's feed of apps: packed, but for the records that were asked for last."""

from __future__ import annotations

from collections import deque

from services.control_plane.store.packed_app import PackedApp
from services.control_plane.store.records import AppRecord
from services.rpc.feed import Entry

WHOLE = 4_096
"""Records that are kept whole: 8 KB each once they were read."""


class AppEntries:
    """Makes entries, and has those that have held their record for longest let go of it.

    Safe from any thread: at worst a record is built twice.
    """

    def __init__(self, whole: int = WHOLE) -> None:
        self._limit = whole
        self._whole: deque[AppEntry] = deque()

    def __call__(self, key: str, revision: int, record: AppRecord | PackedApp | None) -> AppEntry:
        """Return the entry of an app, which may be packed already, or of its removal."""
        if isinstance(record, PackedApp):
            return AppEntry(key, revision, record, None, self)
        return AppEntry(key, revision, record.packed if record is not None else None, record, self)

    def note(self, entry: AppEntry) -> None:
        """Count an entry among those that hold their record."""
        self._whole.append(entry)
        if len(self._whole) > self._limit:
            self._whole.popleft().let_go()


class AppEntry(Entry[AppRecord]):
    """The newest state of one app, which nobody sees change: only what is held of it does."""

    __slots__ = ("_entries", "_record", "packed")

    packed: PackedApp | None
    _record: AppRecord | None
    _entries: AppEntries

    def __init__(
        self, key: str, revision: int, packed: PackedApp | None, record: AppRecord | None, entries: AppEntries
    ) -> None:
        _set(self, "key", key)
        _set(self, "revision", revision)
        _set(self, "packed", packed)
        _set(self, "_record", record)
        _set(self, "_entries", entries)
        if record is not None:
            entries.note(self)

    @property
    def value(self) -> AppRecord | None:  # in the place of the field
        """The record, or None once the app is removed."""
        record, packed = self._record, self.packed
        if record is None and packed is not None:
            record = AppRecord.unpacked(packed)
            _set(self, "_record", record)
            self._entries.note(self)
        return record

    def let_go(self) -> None:
        """Hold the record no longer."""
        _set(self, "_record", None)

    # An order finds its entries again by themselves: to compare two would build both records.
    __eq__ = object.__eq__
    __hash__ = object.__hash__


_set = object.__setattr__  # entries are frozen

"""What the stored catalog has that this process does not know yet: read at once, taken in at once.

Loading is the same from revision 0. Nothing here knows where it is stored.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any

from services.control_plane.store.history import Histories


@dataclass(frozen=True, slots=True)
class Meta:
    """The stored catalog's own row."""

    catalog_id: str
    revision: int
    oldest_revision: int
    """The newest revision that the change log has forgotten."""
    time: int
    """Time of the newest transaction, µs."""
    history: str
    term: int
    """The newest leader's term; 0 if there was none."""
    now: int | None = None
    """The database's clock, µs; None where the machine's is used."""


Change = tuple[int, str, Any]
"""A revision, a key, and the record that it has had since; None once removed."""


@dataclass(frozen=True, slots=True)
class Changes:
    """The newest state of every key that has changed after some revision, as of one moment."""

    meta: Meta
    histories: Histories
    by_feed: dict[str, list[Change]] = field(default_factory=dict)
    """By the name of the mirror's feed; each in order of revision."""

    def by_revision(self) -> Iterator[tuple[int, dict[str, list[tuple[str, Any]]]]]:
        """Yield each revision with its keys and records by feed, in order."""
        feeds = [
            [(revision, feed, key, record) for revision, key, record in changes]
            for feed, changes in self.by_feed.items()
        ]
        merged = heapq.merge(*feeds, key=itemgetter(0))
        for revision, group in groupby(merged, key=itemgetter(0)):
            changed: dict[str, list[tuple[str, Any]]] = {}
            for _, feed, key, record in group:
                changed.setdefault(feed, []).append((key, record))
            yield revision, changed

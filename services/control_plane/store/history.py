"""The histories of a catalog: which life of a writing connection made which revisions.

A database restored from an older copy gives revisions a second time. A number alone can't tell them
apart, so each connection begins a history with its first commit, and tokens and etags carry its id.
"""

from __future__ import annotations

import secrets
from bisect import bisect_left
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Histories:
    """Every history that the change log reaches back to, oldest first. Safe from any thread."""

    ids: tuple[str, ...]
    after: tuple[int, ...]
    """The revision after which each began; it ends where the next one begins. Ascending."""

    @property
    def newest(self) -> str:
        """The history that all later revisions belong to, until another begins."""
        return self.ids[-1]

    def of(self, revision: int) -> str:
        """Return the history that made a revision; the oldest one known for those before it."""
        if revision > self.after[-1]:
            return self.ids[-1]
        return self.ids[max(bisect_left(self.after, revision) - 1, 0)]

    def begun(self, history: str, after: int) -> Histories:
        """Return these and one that began after a revision."""
        return Histories((*self.ids, history), (*self.after, after))

    def continues(self, known: Histories, revision: int) -> bool:
        """Tell whether what was `known` up to a revision is part of this, and nothing of it was lost."""
        return self.of(revision) == known.of(revision)


def new_history() -> str:
    """Return a random id: eight hexadecimal digits, for it is part of every etag."""
    return secrets.token_hex(4)

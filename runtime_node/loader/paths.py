"""`sys.path` as apps of a shared process change it: for their own location, not for everyone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, SupportsIndex

from runtime_node.loader.trees import ModuleTree


class SharedPath(list[str]):
    """A `sys.path` whose new entries go to the roots of the tree that adds them, if a tree's code does."""

    def __init__(self, entries: Iterable[str], tree_of_caller: Callable[[], ModuleTree | None]) -> None:
        super().__init__(entries)
        self._tree_of_caller = tree_of_caller

    def append(self, entry: str) -> None:
        """Add `entry` behind the others."""
        if not self._taken([entry], first=False):
            super().append(entry)

    def insert(self, index: SupportsIndex, entry: str) -> None:
        """Add `entry` at `index`; for a tree, before or behind its other roots."""
        if not self._taken([entry], first=int(index) == 0):
            super().insert(index, entry)

    def extend(self, entries: Iterable[str]) -> None:
        """Add `entries` behind the others."""
        entries = list(entries)
        if not self._taken(entries, first=False):
            super().extend(entries)

    def __iadd__(self, entries: Iterable[str]) -> Any:  # type: ignore[override,misc]
        self.extend(entries)
        return self

    def __setitem__(self, index: Any, entries: Any) -> None:
        """Set entries; for a tree, those that are new, before or behind its other roots."""
        if not isinstance(index, slice):
            index, entries = slice(index, index + 1), [entries]
        entries = list(entries)
        before = index.indices(len(self))[0] == 0
        if not self._taken([entry for entry in entries if entry not in self], first=before):
            super().__setitem__(index, entries)

    def __delitem__(self, index: Any) -> None:
        """Delete entries; for a tree, none: the list is that of all."""
        if self._tree_of_caller() is None:
            super().__delitem__(index)

    def pop(self, index: SupportsIndex = -1) -> str:
        """Return an entry and delete it; for a tree, return it."""
        return super().pop(index) if self._tree_of_caller() is None else self[index]

    def remove(self, entry: str) -> None:
        """Delete an entry; for a tree, none: the list is that of all."""
        if self._tree_of_caller() is None:
            super().remove(entry)

    def clear(self) -> None:
        """Delete all entries; for a tree, none: the list is that of all."""
        if self._tree_of_caller() is None:
            super().clear()

    def _taken(self, entries: list[str], *, first: bool) -> bool:
        tree = self._tree_of_caller()
        if tree is None:
            return False
        tree.add_roots([str(entry) for entry in entries], first=first)
        return True


def install(tree_of_caller: Callable[[], ModuleTree | None]) -> None:
    """Put the list in the place of `sys.path`."""
    sys.path = SharedPath(sys.path, tree_of_caller)

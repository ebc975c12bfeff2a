"""Finds what apps have changed for all by accident, puts it back, and says whose it was if that can be told.

Looked at after each start and stop, and every second: what is refused or kept per instance needs no look.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from runtime_node.isolation import environ, on_import, shared_values
from runtime_node.isolation.noting import take_notes
from runtime_node.isolation.watched import Change, Watched

_MOST_SUSPECTS = 10


@dataclass(slots=True)
class Restored:
    """What one look has put back."""

    by_instance: dict[str, list[str]] = field(default_factory=dict)
    """The names of the values that each instance had changed."""
    unknown: list[str] = field(default_factory=list)
    """Those of which nobody can be named."""
    suspects: list[str] = field(default_factory=list)
    """Who had the occasion for those, a few of them."""

    def __bool__(self) -> bool:
        return bool(self.by_instance or self.unknown)


class Drift:
    """Watches the values of this process. Safe to use from any thread.

    `could_have` returns the instances whose code may have run since the last look.
    """

    def __init__(
        self,
        could_have: Callable[[], Iterable[str]] = tuple,
        watch: Callable[[], Sequence[Watched]] = shared_values.watch,
    ) -> None:
        self._could_have = could_have
        self._watched = watch()
        self._lock = threading.Lock()
        self._searches = on_import.searches()

    def look(self, at: Collection[str] = ()) -> Restored:
        """Put back what is not as it was; `at` are the instances that have just been started or stopped."""
        with self._lock:
            restored = Restored()
            notes = take_notes()
            searches, self._searches = self._searches, on_import.searches()
            for name in notes.keys() & shared_values.SEEDS.keys():
                shared_values.SEEDS[name]()
                restored.by_instance.setdefault(notes[name], []).append(name)
            for watched in self._watched:
                for change in watched.changes():
                    author = notes.get(change.name, "")
                    own = bool(author or change.origin)
                    imported = change.packages_may and self._searches != searches
                    if not own and (change.noted or imported):
                        change.accept()
                        continue
                    change.put_back()
                    self._tell(restored, change, author, at)
            return restored

    def _tell(self, restored: Restored, change: Change, author: str, at: Collection[str]) -> None:
        suspects = [author] if author else list(at)
        if not author and change.origin:
            of_code = environ.instances_of(change.origin)
            suspects = [instance for instance in at if instance in of_code] or of_code
        elif not suspects:
            suspects = list(self._could_have())
        if len(suspects) == 1:
            restored.by_instance.setdefault(suspects[0], []).append(change.name)
        else:
            restored.unknown.append(change.name)
            restored.suspects = suspects[:_MOST_SUSPECTS]

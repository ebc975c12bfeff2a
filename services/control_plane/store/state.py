"""What is committed, as this process knows it: the mirror, and what the store needs beside it.

Touched by the writer's thread alone; others read the mirror and the histories.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from services.control_plane.store.changes import Changes
from services.control_plane.store.history import Histories
from services.control_plane.store.mirror import Mirror
from services.control_plane.store.records import AppRecord


@dataclass
class State:
    """The committed catalog, up to `revision`."""

    catalog_id: str
    histories: Histories
    mirror: Mirror
    revision: int
    oldest_revision: int
    """The newest revision that the stored change log has forgotten."""
    now: int
    """Time of the newest transaction, µs."""
    domains: dict[str, str] = field(default_factory=dict)
    """Each custom domain's app."""
    eventful: dict[str, None] = field(default_factory=dict)
    """Apps with events that pruning has not looked at."""

    @classmethod
    def loaded(cls, changes: Changes) -> State:
        """Return the state of all that is stored, apps packed."""
        meta = changes.meta
        state = cls(
            meta.catalog_id,
            changes.histories,
            Mirror(revision=meta.revision, oldest_revision=meta.oldest_revision),
            meta.revision,
            meta.oldest_revision,
            meta.time,
        )
        state.mirror.load(changes.by_feed)
        for _, name, app in changes.by_feed.get("apps", ()):
            if app is not None and app.domains:
                state.domains.update(dict.fromkeys(app.domains, name))
        return state

    def take(self, changes: Changes) -> None:
        """Take in what others have committed, revision by revision, as their own process did."""
        meta = changes.meta
        # First, for whoever is told of a revision may ask at once which history it is of.
        self.histories = changes.histories
        for revision, changed in changes.by_revision():
            apps = changed.get("apps", ())
            self._move_domains(apps)
            self.eventful.update((name, None) for name, app in apps if app is not None)
            self.mirror.apply(revision, **changed)
        self.mirror.apply(meta.revision)
        self.revision = meta.revision
        self.oldest_revision = meta.oldest_revision
        self.now = max(self.now, meta.time)

    def _move_domains(self, apps: Iterable[tuple[str, AppRecord | None]]) -> None:
        for name, _ in apps:
            for domain in self.mirror.domains_of(name):
                # Of several changes only the newest is known: another app may have the domain by now.
                if self.domains.get(domain) == name:
                    del self.domains[domain]
        for name, app in apps:
            self.domains.update(dict.fromkeys(app.packed.domains if app is not None else (), name))

"""Changes that are not committed yet: of one command, and of the batch that shares a commit.

A command that fails is undone by forgetting its write set; a batch that is stored is published.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from services.control_plane.store.records import (
    AppRecord,
    BatchRecord,
    CertificateRecord,
    DatabaseServerRecord,
    EnvironmentRecord,
    NodeRecord,
    OperationRecord,
    PlacementRecord,
    RequestRecord,
    RetainedDataRecord,
)
from services.control_plane.store.state import State

FEEDS = frozenset(
    (
        "apps",
        "environments",
        "database_servers",
        "certificates",
        "nodes",
        "placements",
        "retained",
        "operations",
        "batches",
    )
)


class WriteSet:
    """Changes over the state below; None stands for a removed key.

    Each part is made when it is first asked for: a command touches a third of them.
    """

    apps: dict[str, AppRecord | None]
    environments: dict[str, EnvironmentRecord | None]
    database_servers: dict[str, DatabaseServerRecord | None]
    certificates: dict[str, CertificateRecord | None]
    nodes: dict[str, NodeRecord | None]
    placements: dict[str, PlacementRecord | None]
    retained: dict[str, RetainedDataRecord | None]
    operations: dict[str, OperationRecord | None]
    batches: dict[str, BatchRecord | None]
    requests: dict[str, RequestRecord]
    domains: dict[str, str | None]
    removed_apps: dict[str, None]
    """Apps removed at some moment, even if another of the name came after."""
    operations_of: dict[str, set[str]]
    """The operations in `operations`, by app."""
    placements_of: dict[str, set[str]]
    """The placements in `placements`, by app."""
    events: list[tuple[str, int, bytes]]
    """App, id and serialized event."""
    expired_requests: list[str]
    """Request ids that go if they have expired."""
    forgotten_events: list[tuple[str, int]]
    """Apps, each with the id up to which its events go."""
    oldest_revision: int = 0
    """The change log up to here goes; 0 for none of it."""

    def __getattr__(self, name: str) -> Any:
        made = vars(self)[name] = _PARTS[name]()
        return made

    def __bool__(self) -> bool:
        return any(vars(self).values())

    def part(self, feed: str) -> Mapping[str, Any]:
        """Return the changes of one kind, by the name of its feed."""
        changes: Mapping[str, Any] = vars(self).get(feed, _NOTHING)
        return changes

    def by_feed(self) -> dict[str, Mapping[str, Any]]:
        """Return the changes that feeds tell of, by their names."""
        return {name: changes for name, changes in vars(self).items() if name in FEEDS and changes}

    def take(self, other: WriteSet) -> None:
        """Add the changes of a write set above."""
        for name, changes in vars(other).items():
            if name == "oldest_revision":
                self.oldest_revision = max(self.oldest_revision, changes)
            elif name in _BY_APP:
                known = getattr(self, name)
                for app, names in changes.items():
                    known.setdefault(app, set()).update(names)
            elif isinstance(changes, dict):
                getattr(self, name).update(changes)
            else:
                getattr(self, name).extend(changes)


_NOTHING: Mapping[str, Any] = MappingProxyType({})
_LISTS = ("events", "expired_requests", "forgotten_events")
_BY_APP = ("operations_of", "placements_of")
_PARTS: dict[str, type] = {
    name: list if name in _LISTS else dict for name in WriteSet.__annotations__ if name != "oldest_revision"
}


@dataclass
class Batch:
    """Commands that share one commit."""

    state: State
    """As of the lock under which the batch is made: nobody commits in between."""
    find_request: Callable[[str], RequestRecord | None]
    """Reads a stored request by id, expired or not."""
    requests: dict[str, RequestRecord | None] = field(default_factory=dict)
    """Stored requests that have been read, by id."""
    term: int = 0
    """The newest leader's term."""
    begins: str = ""
    """The history that this batch begins, if it is the first of its connection."""
    write_set: WriteSet = field(default_factory=WriteSet)
    commits: list[tuple[int, int, WriteSet]] = field(default_factory=list)
    """Revision, time (µs) and changes of each command that changed something."""

    @property
    def history(self) -> str:
        """The history that this batch's revisions belong to."""
        return self.begins or self.state.histories.newest

    @property
    def revision(self) -> int:
        """The newest revision, this batch's included."""
        return self.commits[-1][0] if self.commits else self.state.revision

    def request(self, request_id: str) -> RequestRecord | None:
        """Return a stored request, expired or not."""
        if request_id not in self.requests:
            self.requests[request_id] = self.find_request(request_id)
        return self.requests[request_id]

    def keep(self, revision: int, now: int, write_set: WriteSet) -> None:
        """Take in a finished command's changes, if it made any."""
        if write_set:
            self.write_set.take(write_set)
            self.commits.append((revision, now, write_set))

    def publish(self) -> None:
        """Take the batch, now that it is stored, into the state: revision by revision."""
        state = self.state
        if self.begins:
            state.histories = state.histories.begun(self.begins, state.revision)
        for domain, app in self.write_set.domains.items():
            if app is None:
                state.domains.pop(domain, None)
            else:
                state.domains[domain] = app
        state.revision = self.revision
        state.oldest_revision = max(state.oldest_revision, self.write_set.oldest_revision)
        state.eventful.update((app, None) for app, _, _ in self.write_set.events)
        state.mirror.apply_all([(revision, changed.by_feed()) for revision, _, changed in self.commits])

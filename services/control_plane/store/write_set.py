"""Changes that are not committed yet: of one command, and of the batch that shares a commit.

A command that fails is undone by forgetting its write set; a batch that is stored is published.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

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


@dataclass
class WriteSet:
    """Changes over the state below; None stands for a removed key."""

    apps: dict[str, AppRecord | None] = field(default_factory=dict)
    environments: dict[str, EnvironmentRecord | None] = field(default_factory=dict)
    database_servers: dict[str, DatabaseServerRecord | None] = field(default_factory=dict)
    certificates: dict[str, CertificateRecord | None] = field(default_factory=dict)
    nodes: dict[str, NodeRecord | None] = field(default_factory=dict)
    placements: dict[str, PlacementRecord | None] = field(default_factory=dict)
    retained: dict[str, RetainedDataRecord | None] = field(default_factory=dict)
    operations: dict[str, OperationRecord | None] = field(default_factory=dict)
    batches: dict[str, BatchRecord | None] = field(default_factory=dict)
    requests: dict[str, RequestRecord] = field(default_factory=dict)
    domains: dict[str, str | None] = field(default_factory=dict)
    events: list[tuple[str, int, bytes]] = field(default_factory=list)
    """App, id and serialized event."""
    removed_apps: set[str] = field(default_factory=set)
    """Apps removed at some moment, even if another of the name came after."""
    operations_of: dict[str, set[str]] = field(default_factory=dict)
    """The operations in `operations`, by app."""
    placements_of: dict[str, set[str]] = field(default_factory=dict)
    """The placements in `placements`, by app."""
    expired_requests: list[str] = field(default_factory=list)
    """Request ids that go if they have expired."""
    forgotten_events: list[tuple[str, int]] = field(default_factory=list)
    """Apps, each with the id up to which its events go."""
    oldest_revision: int = 0
    """The change log up to here goes; 0 for none of it."""

    def __bool__(self) -> bool:
        return bool(
            self.apps
            or self.environments
            or self.database_servers
            or self.certificates
            or self.nodes
            or self.placements
            or self.retained
            or self.operations
            or self.batches
            or self.requests
            or self.events
            or self.expired_requests
            or self.forgotten_events
            or self.oldest_revision
        )

    def take(self, other: WriteSet) -> None:
        """Add the changes of a write set above."""
        self.apps.update(other.apps)
        self.environments.update(other.environments)
        self.database_servers.update(other.database_servers)
        self.certificates.update(other.certificates)
        self.nodes.update(other.nodes)
        self.placements.update(other.placements)
        self.retained.update(other.retained)
        self.operations.update(other.operations)
        self.batches.update(other.batches)
        self.requests.update(other.requests)
        self.domains.update(other.domains)
        self.events += other.events
        self.removed_apps |= other.removed_apps
        for app, names in other.operations_of.items():
            self.operations_of.setdefault(app, set()).update(names)
        for app, names in other.placements_of.items():
            self.placements_of.setdefault(app, set()).update(names)
        self.expired_requests += other.expired_requests
        self.forgotten_events += other.forgotten_events
        self.oldest_revision = max(self.oldest_revision, other.oldest_revision)


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
        for revision, _, changed in self.commits:
            state.mirror.apply(
                revision,
                apps=changed.apps.items(),
                environments=changed.environments.items(),
                database_servers=changed.database_servers.items(),
                certificates=changed.certificates.items(),
                nodes=changed.nodes.items(),
                placements=changed.placements.items(),
                retained=changed.retained.items(),
                operations=changed.operations.items(),
                batches=changed.batches.items(),
            )

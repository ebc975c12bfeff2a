"""The catalog in memory: answers every read, and is what watchers and the reconciler follow.

Fed only by committed changes, in the order of the change log.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import takewhile
from types import MappingProxyType
from typing import Any

from appsupervisor.fleet.v1.fleet_pb2 import Node
from services.control_plane.store.app_entries import AppEntries, AppEntry
from services.control_plane.store.app_labels import AppLabels, Labels
from services.control_plane.store.node_code import NodeCode
from services.control_plane.store.packed_app import PackedApp
from services.control_plane.store.records import (
    FLEET_VERBS,
    VERBS,
    AppRecord,
    BatchRecord,
    CertificateRecord,
    DatabaseServerRecord,
    EnvironmentRecord,
    NodeRecord,
    OperationRecord,
    PlacementRecord,
    RetainedDataRecord,
)
from services.rpc.feed import ChangeFeed

_NONE: frozenset[str] = frozenset()
_NOTHING: Mapping[str, Any] = MappingProxyType({})
PLACEMENTS = "placements"


class Mirror:
    """The catalog's feeds, and the few indexes that reads need. Reads are safe from any thread."""

    def __init__(self, revision: int = 0, oldest_revision: int = 0) -> None:
        self.apps: ChangeFeed[AppRecord] = ChangeFeed(
            revision=revision, oldest_revision=oldest_revision, entry=AppEntries()
        )
        self.nodes: ChangeFeed[NodeRecord] = ChangeFeed(revision=revision, oldest_revision=oldest_revision)
        self.certificates: ChangeFeed[CertificateRecord] = ChangeFeed(
            revision=revision, oldest_revision=oldest_revision
        )
        # Of the others no removals are loaded: nobody may resume from before the start.
        self.environments: ChangeFeed[EnvironmentRecord] = ChangeFeed(
            revision=revision, oldest_revision=revision
        )
        self.database_servers: ChangeFeed[DatabaseServerRecord] = ChangeFeed(
            revision=revision, oldest_revision=revision
        )
        self.retained: ChangeFeed[RetainedDataRecord] = ChangeFeed(
            revision=revision, oldest_revision=revision
        )
        self.batches: ChangeFeed[BatchRecord] = ChangeFeed(revision=revision, oldest_revision=revision)
        self.operations: ChangeFeed[OperationRecord] = ChangeFeed(revision=revision, oldest_revision=revision)
        self._feeds: tuple[tuple[str, ChangeFeed[Any]], ...] = (
            ("environments", self.environments),
            ("database_servers", self.database_servers),
            ("certificates", self.certificates),
            ("nodes", self.nodes),
            ("retained", self.retained),
            ("apps", self.apps),
            ("operations", self.operations),
            ("batches", self.batches),
        )
        """In the order in which a revision is published."""
        self._lock = threading.Lock()
        self._by_node: dict[str, set[str]] = {}
        self._placed: dict[str, tuple[PlacementRecord, ...]] = {}
        self._by_environment: dict[str, set[str]] = {}
        self._by_server: dict[str, set[str]] = {}
        self._open_operations: dict[str, set[str]] = {}
        """By app and verb: a command looks for those it ends, however many others there are."""
        self._of_the_fleet: dict[str, str] = {}
        """Verbs of the operations that move apps of many, and are not done."""
        self._asked: dict[str, int] = {}
        """Memory that apps ask for, of those that do."""
        self._reserved: dict[str, int] = {}
        """The sum of it by node."""
        self._loads: dict[str, tuple[int, int]] = {}
        self._states: Counter[tuple[int, int]] = Counter()
        """How many apps there are in each state and health."""
        self._unsettled: set[str] = set()
        """Apps that are not as they are wanted."""
        self._autoscaled: set[str] = set()
        self._on_trial: set[str] = set()
        """Apps of which a new version is tried on a share of their requests."""
        self._exclusive: set[str] = set()
        """Apps that are to be alone on their nodes."""
        self._labels = AppLabels()
        self._code = NodeCode()

    def apply(
        self,
        revision: int,
        *,
        apps: Collection[tuple[str, AppRecord | None]] = (),
        environments: Collection[tuple[str, EnvironmentRecord | None]] = (),
        database_servers: Collection[tuple[str, DatabaseServerRecord | None]] = (),
        certificates: Collection[tuple[str, CertificateRecord | None]] = (),
        nodes: Collection[tuple[str, NodeRecord | None]] = (),
        placements: Collection[tuple[str, PlacementRecord | None]] = (),
        retained: Collection[tuple[str, RetainedDataRecord | None]] = (),
        operations: Collection[tuple[str, OperationRecord | None]] = (),
        batches: Collection[tuple[str, BatchRecord | None]] = (),
    ) -> None:
        """Take in one revision's committed changes."""
        by_feed: dict[str, Mapping[str, Any]] = {
            "apps": dict(apps),
            "environments": dict(environments),
            "database_servers": dict(database_servers),
            "certificates": dict(certificates),
            "nodes": dict(nodes),
            PLACEMENTS: dict(placements),
            "retained": dict(retained),
            "operations": dict(operations),
            "batches": dict(batches),
        }
        self.apply_all([(revision, by_feed)])

    def apply_all(self, revisions: Sequence[tuple[int, Mapping[str, Mapping[str, Any]]]]) -> None:
        """Take in several revisions' committed changes, in order: of each, records by feed and key."""
        for revision, by_feed in revisions:
            apps = by_feed.get("apps", _NOTHING).items()
            packed = [(name, app.packed if app is not None else None) for name, app in apps]
            placements, operations = by_feed.get(PLACEMENTS, _NOTHING), by_feed.get("operations", _NOTHING)
            self._note(packed, placements.items(), operations.items())
            if nodes := by_feed.get("nodes"):
                self._note_code(nodes.items())
            # Placements have no feed: who follows apps reads them, and they are noted by now.
            for name, feed in self._feeds:
                if changed := by_feed.get(name):
                    feed.publish(revision, changed.items())
        if not revisions:
            return
        newest = revisions[-1][0]
        for _, feed in self._feeds:
            feed.advance(newest)
        # Also if no app has changed, for it wakes those as well who wait for a change of whatever kind.
        self.apps.publish(newest, ())

    def load(self, by_feed: Mapping[str, Sequence[tuple[int, str, Any]]]) -> None:
        """Take in a whole catalog, while this is empty: by feed, each key with its revision and record.

        Apps come packed.
        """
        apps, placements, operations, nodes = (
            ((key, record) for _, key, record in by_feed.get(feed, ()))
            for feed in ("apps", PLACEMENTS, "operations", "nodes")
        )
        self._note(apps, placements, operations)
        self._note_code(nodes)
        for feed, entries in by_feed.items():
            if feed != PLACEMENTS:
                getattr(self, feed).fill(entries)

    def keys(self, feed: str) -> list[str]:
        """Return the keys of all that is here of one kind, by the name of its feed."""
        if feed == PLACEMENTS:
            with self._lock:
                return [it.name for of_app in self._placed.values() for it in of_app]
        return [record.name for record in getattr(self, feed).values()]

    def _note_code(self, nodes: Iterable[tuple[str, NodeRecord | None]]) -> None:
        with self._lock:
            for name, record in nodes:
                self._code.note(name, record.node.modules if record is not None else ())

    def _note(
        self,
        apps: Iterable[tuple[str, PackedApp | None]],
        placements: Iterable[tuple[str, PlacementRecord | None]],
        operations: Iterable[tuple[str, OperationRecord | None]],
    ) -> None:
        """Bring the indexes up to date with changes that the feeds don't have yet."""
        with self._lock:
            for name, app in apps:
                old = self._packed(name)
                _move(self._by_server, name, _server_of(old), _server_of(app))
                self._note_status(name, old, app)
                if old is None or app is None or old.spec is not app.spec:
                    self._note_spec(name, old, app)
                if app is not None and app.on_trial:
                    self._on_trial.add(name)
                else:
                    self._on_trial.discard(name)
            for name, placement in placements:
                self._place(name, placement)
            for name, operation in operations:
                known = self.operations.get(name)
                if operation is not None and operation.verb in FLEET_VERBS and not operation.done:
                    self._of_the_fleet[name] = operation.verb
                else:
                    self._of_the_fleet.pop(name, None)
                _move(
                    self._open_operations,
                    name,
                    _open_key(known),
                    _open_key(operation),
                )

    def _note_status(self, name: str, old: PackedApp | None, app: PackedApp | None) -> None:
        states = self._states
        if old is not None:
            was = old.state, old.health
            states[was] -= 1
            if not states[was]:
                del states[was]
        if app is not None:
            states[app.state, app.health] += 1
        if app is not None and (app.reconciling or app.deleting):
            self._unsettled.add(name)
        else:
            self._unsettled.discard(name)

    def _place(self, name: str, placement: PlacementRecord | None) -> None:
        # One string for all that is told of an app.
        app = placement.app if placement is not None else name.partition("/placements/")[0]
        before = self._placed.get(app, ())
        if not before and placement is not None:  # of most apps the only one, ever
            self._placed[app] = (placement,)
            self._came(app, placement.node)
            return
        after = tuple(other for other in before if other.name != name)
        if placement is not None:
            after = (*after, placement)
        if after:
            self._placed[app] = after
        else:
            self._placed.pop(app, None)
        was, now = {it.node for it in before}, {it.node for it in after}
        for node in was - now:
            _move(self._by_node, app, node, "")
            self._labels.left(app, node)
            self._reserve(node, -self._asked.get(app, 0))
        for node in now - was:
            self._came(app, node)

    def _came(self, app: str, node: str) -> None:
        _move(self._by_node, app, "", node)
        self._labels.placed(app, node)
        self._reserve(node, self._asked.get(app, 0))

    def _note_spec(self, name: str, old: PackedApp | None, app: PackedApp | None) -> None:
        """Note where an app belongs, and what it asks of its nodes."""
        _move(self._by_environment, name, old.environment if old else "", app.environment if app else "")
        asks = app.memory_bytes if app is not None else 0
        more = asks - self._asked.get(name, 0)
        if more:
            for node in {it.node for it in self._placed.get(name, ())}:
                self._reserve(node, more)
            if asks:
                self._asked[name] = asks
            else:
                del self._asked[name]
        if app is not None and app.autoscaled:
            self._autoscaled.add(name)
        else:
            self._autoscaled.discard(name)
        if app is not None and app.exclusive:
            self._exclusive.add(name)
        else:
            self._exclusive.discard(name)
        labels, apart_from = (app.labels, app.apart_from) if app is not None else ((), ())
        self._labels.note(name, labels, apart_from, {it.node for it in self._placed.get(name, ())})

    def _reserve(self, node: str, more: int) -> None:
        """Note what has changed on a node: the memory that is asked for, or which apps are there."""
        if more and (total := self._reserved.get(node, 0) + more):
            self._reserved[node] = total
        elif more:
            self._reserved.pop(node, None)
        load = (len(self._by_node.get(node, _NONE)), self._reserved.get(node, 0))
        if any(load):
            self._loads[node] = load
        else:
            self._loads.pop(node, None)

    def placements_of(self, app: str) -> tuple[PlacementRecord, ...]:
        """Return an app's placements, in no order."""
        return self._placed.get(app, ())

    def apps_on(self, node: str) -> list[str]:
        """Return the names of the apps with a placement on a node."""
        with self._lock:
            return list(self._by_node.get(node, _NONE))

    def count_on(self, node: str) -> int:
        """Count the apps with a placement on a node."""
        return len(self._by_node.get(node, _NONE))

    def reserved_on(self, node: str) -> int:
        """Return the bytes that the apps placed on a node are allowed, of those that have a limit."""
        return self._reserved.get(node, 0)

    @property
    def loads(self) -> Mapping[str, tuple[int, int]]:
        """The apps on each node, and the sum of their memory limits: another object once it is another."""
        return self._loads

    def nodes_having(self, labels: Labels, app: str) -> dict[str, str]:
        """Return the nodes with an app, not `app` itself, that has one of some labels, with that label."""
        with self._lock:
            return self._labels.nodes_having(labels, app, self._homes(app))

    def nodes_averse(self, labels: Labels, app: str) -> dict[str, str]:
        """Return the nodes with an app, not `app`, that is to be apart from one of some labels, with that."""
        with self._lock:
            return self._labels.nodes_averse(labels, app, self._homes(app))

    def _homes(self, app: str) -> set[str]:
        return {it.node for it in self._placed.get(app, ())}

    def autoscaled(self) -> list[str]:
        """Return the names of the apps whose replicas follow their requests."""
        with self._lock:
            return sorted(self._autoscaled)

    def nodes_without_code(self, module: str, environment: str) -> frozenset[str]:
        """Return the nodes of an environment that cannot import a module which another one there can."""
        with self._lock:
            return self._code.lacking(module, environment)

    def on_trial(self) -> list[str]:
        """Return the names of the apps of which a new version is tried on a share of their requests."""
        with self._lock:
            return sorted(self._on_trial)

    def exclusive_nodes(self, besides: str = "") -> set[str]:
        """Return the nodes with an app on them that is to be alone, other than `besides`."""
        with self._lock:
            apps = self._exclusive - {besides}
        return {placement.node for app in apps for placement in self.placements_of(app)}

    def nodes_with_apps(self) -> list[str]:
        """Return the names of the nodes that apps are placed on, also of those that are gone."""
        with self._lock:
            return list(self._by_node)

    def open_fleet_operations(self) -> dict[str, str]:
        """Return the drains and rebalances that are not done, oldest first, with what each does.

        Who is woken by a change sees them here: their feed is published after that of the apps.
        """
        with self._lock:
            return dict(sorted(self._of_the_fleet.items()))

    def _packed(self, app: str) -> PackedApp | None:
        entry = self.apps.entry(app)
        return entry.packed if isinstance(entry, AppEntry) else None

    def packed(self, app: str) -> PackedApp | None:
        """Return an app as it is kept here: what is asked of very many needs no record of each."""
        return self._packed(app)

    def domains_of(self, app: str) -> tuple[str, ...]:
        """Return an app's custom domains; none if there is no such app."""
        packed = self._packed(app)
        return packed.domains if packed is not None else ()

    def state_of(self, app: str) -> int:
        """Return the state that an app is known to be in; 0 if there is no such app."""
        packed = self._packed(app)
        return packed.state if packed is not None else 0

    def count_states(self) -> Counter[tuple[int, int]]:
        """Count the apps by state and health."""
        with self._lock:
            return self._states.copy()

    def unsettled_apps(self) -> list[str]:
        """Return the names of the apps that are not as they are wanted."""
        with self._lock:
            return sorted(self._unsettled)

    def apps_in(self, environment: str) -> list[str]:
        """Return the names of the apps of an environment."""
        with self._lock:
            return list(self._by_environment.get(environment, _NONE))

    def count_in(self, environment: str) -> int:
        """Count the apps of an environment."""
        return len(self._by_environment.get(environment, _NONE))

    def database_server_of(self, app: str) -> str:
        """Return the database server that an app's database is on; empty if it is on none."""
        packed = self._packed(app)
        return packed.database_server if packed is not None else ""

    def count_on_server(self, server: str) -> int:
        """Count the apps that have their databases on a database server, without those being deleted."""
        return len(self._by_server.get(server, _NONE))

    def retained_on(self, node: str) -> list[RetainedDataRecord]:
        """Return the data retained on a node, by name."""
        prefix = f"{node}/retainedData/"
        return list(takewhile(lambda it: it.name.startswith(prefix), self.retained.values(prefix)))

    def is_heard(self, node: str) -> bool:
        """Tell whether the leader hears a node, as far as it has stored that."""
        record = self.nodes.get(node)
        return record is not None and record.node.state == Node.READY

    def overdue_operations(self, now: int) -> list[str]:
        """Return the names of the operations that are not done and past their deadline (µs)."""
        with self._lock:
            names = [name for members in self._open_operations.values() for name in members]
        found = (self.operations.get(name) for name in names)
        return [known.name for known in found if known is not None and known.deadline <= now]

    def count_open_operations(self) -> int:
        """Count the operations that are not done."""
        with self._lock:
            return sum(map(len, self._open_operations.values()))

    def open_operations(self, app: str, verbs: Collection[str] = VERBS) -> list[OperationRecord]:
        """Return the operations of an app that are not done, oldest first; only those of some verbs."""
        with self._lock:
            names = [name for verb in verbs for name in self._open_operations.get(f"{app} {verb}", _NONE)]
        found = (self.operations.get(name) for name in sorted(names))
        return [operation for operation in found if operation is not None and not operation.done]


def _server_of(app: PackedApp | None) -> str:
    """Return the database server that must not be forgotten for an app: none once it is being deleted."""
    return app.database_server if app is not None and not app.deleting else ""


def _open_key(operation: OperationRecord | None) -> str:
    return f"{operation.app} {operation.verb}" if operation is not None and not operation.done else ""


def _move(index: dict[str, set[str]], name: str, old: str, new: str) -> None:
    if old == new:
        return
    if old:
        members = index[old]
        members.discard(name)
        if not members:
            del index[old]
    if new:
        index.setdefault(new, set()).add(name)

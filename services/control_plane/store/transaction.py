"""The transaction that a command sees: its own write set, over its batch's, over the mirror.

Nothing is written to the database here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from appsupervisor.catalog.v1.app_catalog_pb2 import AppEvent
from services.control_plane.store.records import (
    EVENTS_PER_COMMAND,
    VERBS,
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
    as_stored,
)
from services.control_plane.store.write_set import Batch, WriteSet
from services.rpc.errors import SupervisorError

_PAGE = 256
_NONE: frozenset[str] = frozenset()


class CommandTransaction:
    """The `Transaction` of one command."""

    def __init__(self, batch: Batch, now: int) -> None:
        self.write_set = WriteSet()
        """What the command has changed."""
        self._below = batch.write_set
        self._batch = batch
        self._mirror = batch.state.mirror
        self._revision = batch.revision + 1
        self._now = now

    @property
    def now(self) -> int:
        """Time of the transaction, microseconds since the Unix epoch."""
        return self._now

    @property
    def revision(self) -> int:
        """The revision under which this command's changes are logged."""
        return self._revision

    @property
    def history(self) -> str:
        """The history of the catalog that the revision belongs to; part of etags."""
        return self._batch.history

    # Each read asks the command's write set, then the batch's, then the mirror.

    def app(self, name: str) -> AppRecord | None:
        """Return an app."""
        for changed in (self.write_set.apps, self._below.apps):
            if name in changed:
                return changed[name]
        return self._mirror.apps.get(name)

    def put_app(self, record: AppRecord) -> AppRecord:
        """Insert or replace an app, with its domains, and return it as it is stored.

        Raises SupervisorError DOMAIN_TAKEN.
        """
        name, old = record.name, self.app(record.name)
        for domain in record.spec.domains:
            if self._owner(domain) not in (None, name):
                raise SupervisorError(
                    "DOMAIN_TAKEN",
                    f"The domain {domain} belongs to another app.",
                    resource=name,
                    metadata={"domain": domain},
                )
        if old is not None and old.uid != record.uid:
            self.delete_app(name)
            old = None
        before = set(old.spec.domains) if old else _NONE
        after = set(record.spec.domains)
        if before != after:
            self.write_set.domains.update(dict.fromkeys(before - after))
            self.write_set.domains.update(dict.fromkeys(after - before, name))
        same = old is not None and old.generation == record.generation
        history = old.history if old is not None and same else self.history
        stored = as_stored(record, revision=self._revision, history=history)
        if old is not None and stored.spec is old.spec:
            vars(stored)["of_its_spec"] = old.packed.of_its_spec
        self.write_set.apps[name] = stored
        return stored

    def delete_app(self, name: str) -> None:
        """Remove an app with its placements; its events stay."""
        old = self.app(name)
        if old is None:
            return
        for placement in self.placements_of(name):
            self.delete_placement(placement)
        self.write_set.domains.update(dict.fromkeys(old.spec.domains))
        self.write_set.apps[name] = None
        self.write_set.removed_apps[name] = None

    def _owner(self, domain: str) -> str | None:
        for changed in (self.write_set.domains, self._below.domains):
            if domain in changed:
                return changed[domain]
        return self._batch.state.domains.get(domain)

    def count_apps(self, environment: str) -> int:
        """Count the apps of an environment."""
        count = self._mirror.count_in(environment)
        for name in self._below.apps.keys() | self.write_set.apps.keys():
            old, new = self._mirror.apps.get(name), self.app(name)
            count -= old is not None and old.spec.environment == environment
            count += new is not None and new.spec.environment == environment
        return count

    def count_apps_on_server(self, server: str) -> int:
        """Count the apps that have their databases on a database server, without those being deleted."""
        count = self._mirror.count_on_server(server)
        for name in self._below.apps.keys() | self.write_set.apps.keys():
            old, new = self._mirror.apps.get(name), self.app(name)
            count -= old is not None and old.needed_server == server
            count += new is not None and new.needed_server == server
        return count

    def environment(self, name: str) -> EnvironmentRecord | None:
        """Return an environment."""
        for changed in (self.write_set.environments, self._below.environments):
            if name in changed:
                return changed[name]
        return self._mirror.environments.get(name)

    def put_environment(self, record: EnvironmentRecord) -> None:
        """Insert or replace an environment."""
        self.write_set.environments[record.name] = replace(record, revision=self._revision)

    def delete_environment(self, name: str) -> None:
        """Remove an environment."""
        if self.environment(name) is not None:
            self.write_set.environments[name] = None

    def database_server(self, name: str) -> DatabaseServerRecord | None:
        """Return a database server."""
        for changed in (self.write_set.database_servers, self._below.database_servers):
            if name in changed:
                return changed[name]
        return self._mirror.database_servers.get(name)

    def put_database_server(self, record: DatabaseServerRecord) -> None:
        """Insert or replace a database server."""
        self.write_set.database_servers[record.name] = replace(record, revision=self._revision)

    def delete_database_server(self, name: str) -> None:
        """Remove a database server."""
        if self.database_server(name) is not None:
            self.write_set.database_servers[name] = None

    def certificate(self, name: str) -> CertificateRecord | None:
        """Return a certificate."""
        for changed in (self.write_set.certificates, self._below.certificates):
            if name in changed:
                return changed[name]
        return self._mirror.certificates.get(name)

    def put_certificate(self, record: CertificateRecord) -> None:
        """Insert or replace a certificate."""
        self.write_set.certificates[record.name] = replace(record, revision=self._revision)

    def delete_certificate(self, name: str) -> None:
        """Remove a certificate."""
        if self.certificate(name) is not None:
            self.write_set.certificates[name] = None

    def node(self, name: str) -> NodeRecord | None:
        """Return a node."""
        for changed in (self.write_set.nodes, self._below.nodes):
            if name in changed:
                return changed[name]
        return self._mirror.nodes.get(name)

    def nodes(self, environment: str) -> list[NodeRecord]:
        """Return an environment's nodes, by name."""
        prefix = f"{environment}/nodes/"
        names = set(self._stored_nodes(prefix))
        for changed in (self.write_set.nodes, self._below.nodes):
            names.update(name for name in changed if name.startswith(prefix))
        found = (self.node(name) for name in sorted(names))
        return [node for node in found if node is not None]

    def _stored_nodes(self, prefix: str) -> Iterator[str]:
        after = prefix
        while page := self._mirror.nodes.page(after, _PAGE):
            for entry in page:
                if not entry.key.startswith(prefix):
                    return
                yield entry.key
            after = page[-1].key

    def put_node(self, record: NodeRecord) -> None:
        """Insert or replace a node."""
        self.write_set.nodes[record.name] = replace(record, revision=self._revision)

    def delete_node(self, name: str) -> None:
        """Remove a node."""
        if self.node(name) is not None:
            self.write_set.nodes[name] = None

    def placements_of(self, app: str) -> list[PlacementRecord]:
        """Return an app's placements, by name."""
        stored = self._mirror.placements_of(app)
        if app not in self._below.placements_of and app not in self.write_set.placements_of:
            return sorted(stored, key=lambda it: it.name) if len(stored) > 1 else list(stored)
        found: dict[str, PlacementRecord | None] = {it.name: it for it in stored}
        for changed in (self._below, self.write_set):
            found.update({name: changed.placements[name] for name in changed.placements_of.get(app, _NONE)})
        return [known for _, known in sorted(found.items()) if known is not None]

    def apps_on(self, node: str) -> list[str]:
        """Return the names of the apps with a placement on a node, in order."""
        changed = self._below.placements_of.keys() | self.write_set.placements_of.keys()
        apps = set(self._mirror.apps_on(node)) - changed
        apps.update(app for app in changed if any(it.node == node for it in self.placements_of(app)))
        return sorted(apps)

    def put_placement(self, record: PlacementRecord) -> None:
        """Insert or replace a placement of an app that exists."""
        self._keep(record.app, record.name, replace(record, revision=self._revision))

    def delete_placement(self, record: PlacementRecord) -> None:
        """Remove a placement."""
        self._keep(record.app, record.name, None)

    def _keep(self, app: str, name: str, record: PlacementRecord | None) -> None:
        self.write_set.placements[name] = record
        self.write_set.placements_of.setdefault(app, set()).add(name)

    def domains_under(self, base: str) -> list[tuple[str, str]]:
        """Return the custom domains that are `base` or below it, each with its app, in order."""
        domains = {*self._batch.state.domains, *self._below.domains, *self.write_set.domains}
        found = (
            (domain, self._owner(domain))
            for domain in domains
            if domain == base or domain.endswith(f".{base}")
        )
        return sorted((domain, app) for domain, app in found if app is not None)

    def retained(self, name: str) -> RetainedDataRecord | None:
        """Return retained data."""
        for changed in (self.write_set.retained, self._below.retained):
            if name in changed:
                return changed[name]
        return self._mirror.retained.get(name)

    def retained_on(self, node: str) -> list[RetainedDataRecord]:
        """Return the data retained on a node, by name."""
        prefix = f"{node}/retainedData/"
        names = {record.name for record in self._mirror.retained_on(node)}
        for changed in (self.write_set.retained, self._below.retained):
            names.update(name for name in changed if name.startswith(prefix))
        found = (self.retained(name) for name in sorted(names))
        return [record for record in found if record is not None]

    def put_retained(self, record: RetainedDataRecord) -> RetainedDataRecord:
        """Insert or replace retained data, and return it as it is stored."""
        stored = self.write_set.retained[record.name] = replace(record, revision=self._revision)
        return stored

    def delete_retained(self, name: str) -> None:
        """Remove retained data."""
        if self.retained(name) is not None:
            self.write_set.retained[name] = None

    def operation(self, name: str) -> OperationRecord | None:
        """Return an operation."""
        for changed in (self.write_set.operations, self._below.operations):
            if name in changed:
                return changed[name]
        return self._mirror.operations.get(name)

    def open_operations(self, app: str, verbs: Collection[str] = VERBS) -> list[OperationRecord]:
        """Return the operations of an app that are not done, oldest first; only those of some verbs."""
        names = {operation.name for operation in self._mirror.open_operations(app, verbs)}
        for changed in (self.write_set, self._below):
            names |= changed.operations_of.get(app, _NONE)
        found = (self.operation(name) for name in sorted(names))
        return [it for it in found if it is not None and not it.done and it.app == app and it.verb in verbs]

    def put_operation(self, record: OperationRecord) -> None:
        """Insert or replace an operation."""
        self.write_set.operations[record.name] = as_stored(record, revision=self._revision)
        self.write_set.operations_of.setdefault(record.app, set()).add(record.name)

    def delete_operation(self, name: str) -> None:
        """Remove an operation."""
        if self.operation(name) is not None:
            self.write_set.operations[name] = None

    def batch(self, name: str) -> BatchRecord | None:
        """Return what is left to do of a batch operation."""
        for changed in (self.write_set.batches, self._below.batches):
            if name in changed:
                return changed[name]
        return self._mirror.batches.get(name)

    def put_batch(self, record: BatchRecord) -> None:
        """Insert or replace what is left to do of a batch operation."""
        self.write_set.batches[record.name] = replace(record, revision=self._revision)

    def delete_batch(self, name: str) -> None:
        """Remove what was left to do of a batch operation."""
        if self.batch(name) is not None:
            self.write_set.batches[name] = None

    def add_event(self, app: str, event: AppEvent) -> None:
        """Append to an app's timeline; the store sets `name` and `create_time`."""
        number = len(self.write_set.events)
        if number >= EVENTS_PER_COMMAND:
            raise ValueError(f"A command adds at most {EVENTS_PER_COMMAND} events")
        event_id = self._revision * EVENTS_PER_COMMAND + number
        stored = AppEvent()
        stored.CopyFrom(event)
        stored.name = f"{app}/events/{event_id:016x}"
        stored.create_time.FromMicroseconds(self._now)
        self.write_set.events.append((app, event_id, stored.SerializeToString()))

    def request(self, request_id: str) -> RequestRecord | None:
        """Return the record of a request id that has not expired."""
        found = (
            self.write_set.requests.get(request_id)
            or self._below.requests.get(request_id)
            or self._batch.request(request_id)
        )
        return found if found is not None and found.expire_time > self._now else None

    def put_request(self, record: RequestRecord) -> None:
        """Remember a request's result."""
        self.write_set.requests[record.request_id] = record

    # What only pruning does.

    def forget_expired_request(self, request_id: str) -> None:
        """Forget a request unless it has been made again meanwhile."""
        self.write_set.expired_requests.append(request_id)

    def forget_events(self, app: str, up_to: int) -> None:
        """Forget an app's events up to an id."""
        self.write_set.forgotten_events.append((app, up_to))

    def forget_changes(self, up_to: int) -> None:
        """Forget the change log up to a revision."""
        self.write_set.oldest_revision = up_to

"""What the core asks of a store. One implementation speaks SQL; the contract suite runs over each.

A command runs on the store's writer thread, alone, inside one transaction; commands that arrive
together share one commit. A command may be run again from its start if the shared commit fails, so
it must have no effect but through its transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, TypeVar

from appsupervisor.catalog.v1.app_catalog_pb2 import AppEvent
from services.control_plane.store.history import Histories
from services.control_plane.store.mirror import Mirror
from services.control_plane.store.records import (
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
)

T = TypeVar("T")


class Transaction(Protocol):
    """One command's view: reads see its own writes; all of it happens, or none."""

    @property
    def now(self) -> int:
        """Time of the transaction, microseconds since the Unix epoch; never falls between commands."""
        ...

    @property
    def revision(self) -> int:
        """The revision under which this command's changes are logged."""
        ...

    @property
    def history(self) -> str:
        """The history of the catalog that the revision belongs to; part of etags."""
        ...

    def app(self, name: str) -> AppRecord | None:
        """Return an app."""
        ...

    def put_app(self, record: AppRecord) -> AppRecord:
        """Insert or replace an app, with its domains, and return it as it is stored.

        Raises SupervisorError DOMAIN_TAKEN.
        """
        ...

    def delete_app(self, name: str) -> None:
        """Remove an app with its placements; its events stay."""
        ...

    def count_apps(self, environment: str) -> int:
        """Count the apps of an environment."""
        ...

    def count_apps_on_server(self, server: str) -> int:
        """Count the apps that have their databases on a database server, without those being deleted."""
        ...

    def environment(self, name: str) -> EnvironmentRecord | None:
        """Return an environment."""
        ...

    def put_environment(self, record: EnvironmentRecord) -> None:
        """Insert or replace an environment."""
        ...

    def delete_environment(self, name: str) -> None:
        """Remove an environment."""
        ...

    def database_server(self, name: str) -> DatabaseServerRecord | None:
        """Return a database server."""
        ...

    def put_database_server(self, record: DatabaseServerRecord) -> None:
        """Insert or replace a database server."""
        ...

    def delete_database_server(self, name: str) -> None:
        """Remove a database server."""
        ...

    def certificate(self, name: str) -> CertificateRecord | None:
        """Return a certificate."""
        ...

    def put_certificate(self, record: CertificateRecord) -> None:
        """Insert or replace a certificate."""
        ...

    def delete_certificate(self, name: str) -> None:
        """Remove a certificate."""
        ...

    def node(self, name: str) -> NodeRecord | None:
        """Return a node."""
        ...

    def nodes(self, environment: str) -> list[NodeRecord]:
        """Return an environment's nodes, by name."""
        ...

    def put_node(self, record: NodeRecord) -> None:
        """Insert or replace a node."""
        ...

    def delete_node(self, name: str) -> None:
        """Remove a node."""
        ...

    def placements_of(self, app: str) -> list[PlacementRecord]:
        """Return an app's placements, by name."""
        ...

    def apps_on(self, node: str) -> list[str]:
        """Return the names of the apps with a placement on a node, in order."""
        ...

    def put_placement(self, record: PlacementRecord) -> None:
        """Insert or replace a placement of an app that exists."""
        ...

    def delete_placement(self, record: PlacementRecord) -> None:
        """Remove a placement."""
        ...

    def domains_under(self, base: str) -> list[tuple[str, str]]:
        """Return the custom domains that are `base` or below it, each with its app, in order."""
        ...

    def retained(self, name: str) -> RetainedDataRecord | None:
        """Return retained data."""
        ...

    def retained_on(self, node: str) -> list[RetainedDataRecord]:
        """Return the data retained on a node, by name."""
        ...

    def put_retained(self, record: RetainedDataRecord) -> RetainedDataRecord:
        """Insert or replace retained data, and return it as it is stored."""
        ...

    def delete_retained(self, name: str) -> None:
        """Remove retained data."""
        ...

    def operation(self, name: str) -> OperationRecord | None:
        """Return an operation."""
        ...

    def open_operations(self, app: str, verbs: Collection[str] = VERBS) -> list[OperationRecord]:
        """Return the operations of an app that are not done, oldest first; only those of some verbs."""
        ...

    def put_operation(self, record: OperationRecord) -> None:
        """Insert or replace an operation."""
        ...

    def delete_operation(self, name: str) -> None:
        """Remove an operation."""
        ...

    def batch(self, name: str) -> BatchRecord | None:
        """Return what is left to do of a batch operation."""
        ...

    def put_batch(self, record: BatchRecord) -> None:
        """Insert or replace what is left to do of a batch operation; its requests never change."""
        ...

    def delete_batch(self, name: str) -> None:
        """Remove what was left to do of a batch operation."""
        ...

    def add_event(self, app: str, event: AppEvent) -> None:
        """Append to an app's timeline; the store sets `name` and `create_time`."""
        ...

    def request(self, request_id: str) -> RequestRecord | None:
        """Return the record of a request id that has not expired."""
        ...

    def put_request(self, record: RequestRecord) -> None:
        """Remember a request's result."""
        ...


@dataclass(frozen=True, slots=True)
class Standing:
    """What became of a try to lead."""

    term: int
    """The own term, or the newest of whoever leads."""
    leads: bool
    remaining: float = 0.0
    """Seconds until the leader's time is up, if it does not renew it."""
    holder: str = ""
    """Who leads, if somebody else does."""
    address: str = ""


class LeaderSeat(Protocol):
    """The one row that says who leads. Its calls block for seconds at most; not safe to call at once."""

    @property
    def exclusive(self) -> bool:
        """Whether nobody else can open this catalog: then who has it leads, for as long as it lives."""
        ...

    def take(self, holder: str, address: str, seconds: float) -> Standing:
        """Lead under the next term if nobody's time runs, for some seconds by the database's clock.

        Raises SupervisorError STORE_UNAVAILABLE when the database cannot be asked.
        """
        ...

    def renew(self, holder: str, term: int, seconds: float) -> bool:
        """Go on leading for some seconds from now; False if another has led since. Raises as `take`."""
        ...

    def leave(self, holder: str, term: int) -> None:
        """Let another lead at once. Raises as `take`."""
        ...


class CatalogStore(Protocol):
    """The catalog: durable writes in order, reads from the mirror."""

    @property
    def catalog_id(self) -> str:
        """Random id of this catalog, made with it; part of its resume tokens."""
        ...

    @property
    def mirror(self) -> Mirror:
        """Everything in memory, never behind an answered write of this process."""
        ...

    @property
    def histories(self) -> Histories:
        """Which history made which revision: what a token names beside its revision. Safe from any thread."""
        ...

    @property
    def seat(self) -> LeaderSeat:
        """Where the replicas agree on who leads."""
        ...

    def write(
        self, command: Callable[[Transaction], T], *, term: int | None = None, request_id: str = ""
    ) -> Future[T]:
        """Run a command durably; the future resolves once it is committed and in the mirror.

        The command sees all that any replica has committed. With a `term` it is run only while that is the
        newest leader's, checked in its own transaction. The `request_id` that it will look for is looked up
        together with those of others.

        An exception of the command is its future's, and nothing of it is stored. The future fails
        with SupervisorError STORE_UNAVAILABLE when the database cannot be written, SERVER_BUSY when
        too many commands wait, SHUTTING_DOWN once closed, LEADERSHIP_LOST when another has led since `term`.
        Safe from any thread.
        """
        ...

    def catch_up(self) -> Future[int]:
        """Have the mirror take in all that any replica has committed by now; resolves to its revision.

        At once where this process is the only one that writes. Fails with SupervisorError STORE_UNAVAILABLE
        when the database cannot be asked, SHUTTING_DOWN once closed. Safe from any thread.
        """
        ...

    def led_by(self, term: int) -> CatalogStore:
        """Return this store for a leader's work: all its writes carry the term. Closing it does nothing."""
        ...

    def now(self) -> int:
        """Return the catalog's time, microseconds since the Unix epoch: it never goes back nor stands still,
        whatever the machine's clock is set to. Safe from any thread."""
        ...

    def written(self) -> tuple[int, int]:
        """Return how many commits this process has made, and how many commands were in them."""
        ...

    def events(self, app: str, limit: int, before: str = "") -> list[AppEvent]:
        """Return up to `limit` events of an app or of all (""), newest first, older than the id `before`."""
        ...

    def events_after(self, after: int, up_to: int, limit: int, app: str = "") -> list[AppEvent]:
        """Return up to `limit` events of an app or of all, oldest first, with `after` < number <= `up_to`.

        For numbers see `records.event_number`. Raises SupervisorError RESUME_TOKEN_EXPIRED if any that
        followed `after` has been forgotten, STORE_UNAVAILABLE.
        """
        ...

    def prune(self, *, term: int | None = None) -> int:
        """Forget expired operations, request ids and events beyond their bounds; return how many."""
        ...

    def close(self) -> None:
        """Finish the accepted commands and close the database."""
        ...

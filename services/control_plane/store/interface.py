"""What the core asks of a store. One implementation speaks SQL; the contract suite runs over each.

A command runs on the store's writer thread, alone, inside one transaction; commands that arrive
together share one commit. A command may be run again from its start if the shared commit fails, so
it must have no effect but through its transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import Future
from typing import Protocol, TypeVar

from appsupervisor.catalog.v1.app_catalog_pb2 import AppEvent
from services.control_plane.store.mirror import Mirror
from services.control_plane.store.records import (
    VERBS,
    AppRecord,
    EnvironmentRecord,
    NodeRecord,
    OperationRecord,
    PlacementRecord,
    RequestRecord,
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

    def app(self, name: str) -> AppRecord | None:
        """Return an app."""
        ...

    def put_app(self, record: AppRecord) -> None:
        """Insert or replace an app, with its domains. Raises SupervisorError DOMAIN_TAKEN."""
        ...

    def delete_app(self, name: str) -> None:
        """Remove an app with its placements; its events stay."""
        ...

    def count_apps(self, environment: str) -> int:
        """Count the apps of an environment."""
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

    def add_event(self, app: str, event: AppEvent) -> None:
        """Append to an app's timeline; the store sets `name` and `create_time`."""
        ...

    def request(self, request_id: str) -> RequestRecord | None:
        """Return the record of a request id that has not expired."""
        ...

    def put_request(self, record: RequestRecord) -> None:
        """Remember a request's result."""
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

    def write(self, command: Callable[[Transaction], T]) -> Future[T]:
        """Run a command durably; the future resolves once it is committed and in the mirror.

        An exception of the command is its future's, and nothing of it is stored. The future fails
        with SupervisorError STORE_UNAVAILABLE when the database cannot be written, SERVER_BUSY when
        too many commands wait, SHUTTING_DOWN once closed. Safe from any thread.
        """
        ...

    def now(self) -> int:
        """Return the catalog's time, microseconds since the Unix epoch: it never goes back nor stands still,
        whatever the machine's clock is set to. Safe from any thread."""
        ...

    def written(self) -> tuple[int, int]:
        """Return how many commits this process has made, and how many commands were in them."""
        ...

    def events(self, app: str, limit: int, before: str = "") -> list[AppEvent]:
        """Return up to `limit` events of an app, newest first, older than the event id `before`."""
        ...

    def prune(self) -> int:
        """Forget expired operations, request ids and events beyond their bounds; return how many."""
        ...

    def close(self) -> None:
        """Finish the accepted commands and close the database."""
        ...

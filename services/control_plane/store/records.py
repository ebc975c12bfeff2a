"""The catalog's records, as the core reads and writes them. Immutable: a change is a new record.

Messages inside a record are never modified once the record was made. Times are microseconds since
the Unix epoch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status

from appsupervisor.catalog.v1.app_catalog_pb2 import (
    App,
    AppEvent,
    DeleteAppRequest,
    ListAppsResponse,
    OperationMetadata,
)
from appsupervisor.fleet.v1.fleet_pb2 import Environment, Node
from services.control_plane.rules.etags import app_etag

VERBS = ("create", "update", "delete", "start", "stop", "restart", "recover")
"""What operations do: the methods that begin them."""

EVENTS_PER_COMMAND = 4096
"""An event's number is its command's revision times this, plus its place in the command."""


def event_number(event: AppEvent) -> int:
    """Return the number of an event: its id, which is hexadecimal. All events' numbers go up with time."""
    return int(event.name.rpartition("/")[2], 16)


def last_event_number(revision: int) -> int:
    """Return the highest number that an event of a revision can have."""
    return (revision + 1) * EVENTS_PER_COMMAND - 1


def timestamp(microseconds: int) -> Timestamp:
    """Return a time of a record as a message."""
    stamp = Timestamp()
    stamp.FromMicroseconds(microseconds)
    return stamp


@dataclass(frozen=True)
class Version:
    """One start of an app: which generation of its spec, under which epoch."""

    generation: int
    epoch: int

    @property
    def instance_id(self) -> str:
        """The id of the instance that runs this version."""
        return f"g{self.generation}-e{self.epoch}"


@dataclass(frozen=True)
class AppRecord:
    """One app: its spec and its last known status. Where it runs is told by its placements."""

    name: str
    uid: str
    spec: App
    """All that the user set, `name` and `secret_env` included; no output-only field."""
    status: App
    """The output-only fields that the reconciler derives: state, health, conditions, instances, …"""
    generation: int
    target: Version
    """What is wanted to run: the generation that last changed what runs, and the newest epoch."""
    create_time: int
    update_time: int
    failed: Version | None = None
    """The version that was given up in favour of the one before it."""
    deleting: DeleteAppRequest.DataPolicy.ValueType = DeleteAppRequest.DATA_POLICY_UNSPECIFIED
    """Set once the app is being deleted: what becomes of its data."""
    history: str = ""
    """The history of the catalog that made its generation, so that no other can be taken for it; set by the
    store."""
    revision: int = 0
    """Position of its last change in the change log; set by the store."""

    @cached_property
    def public(self) -> App:
        """The app as the API shows it: without secrets, with its status."""
        app = App()
        app.CopyFrom(self.spec)
        app.secret_env.clear()
        app.MergeFrom(self.status)
        app.uid = self.uid
        app.generation = self.generation
        app.create_time.FromMicroseconds(self.create_time)
        app.update_time.FromMicroseconds(self.update_time)
        app.etag = app_etag(self.uid, self.generation, self.history)
        return app

    @cached_property
    def list_item(self) -> bytes:
        """The public app as one element of a serialized ListAppsResponse: a page is a join of these."""
        return ListAppsResponse(apps=[self.public]).SerializeToString()


class Role(IntEnum):
    """What a placement is to its app. Stored by number."""

    INCOMING = 1
    """Is to take over once it is ready."""
    CURRENT = 2
    """The copy that serves, or did last: it stays when the app is stopped, for its data is there."""
    OUTGOING = 3
    """Is being ended; gone once its node confirms it."""
    LOST = 4
    """Given up with its node, which may still run it; ended as soon as that node is heard."""


@dataclass(frozen=True, slots=True)
class PlacementRecord:
    """One copy of an app on one node, with the spec pinned to it."""

    app: str
    app_uid: str
    replica: int
    """From 0."""
    generation: int
    epoch: int
    node: str
    """Resource name of the node."""
    role: Role
    spec: bytes
    """The serialized App that it runs, with `secret_env`; only the fields that a node is told of."""
    why: str = ""
    """Why it is there: one sentence."""
    has_data: bool = False
    """The app has run with the data that it keeps on this node: it must not begin with none."""
    since: int = 0
    """When it got its role."""
    revision: int = 0
    """Position of its last change in the change log; set by the store."""

    @property
    def version(self) -> Version:
        """The version that it runs."""
        return Version(self.generation, self.epoch)

    @property
    def instance_id(self) -> str:
        """The id of its instance: the last part of `apps/{app}/instances/{instance}`."""
        own = self.version.instance_id
        return f"{own}-r{self.replica}" if self.replica else own

    @property
    def name(self) -> str:
        """Its key in the store, `apps/{app}/placements/{instance}`."""
        return f"{self.app}/placements/{self.instance_id}"

    @property
    def instance(self) -> str:
        """Resource name of its instance."""
        return f"{self.app}/instances/{self.instance_id}"


def current_of(placements: Iterable[PlacementRecord]) -> PlacementRecord | None:
    """Return the placement that serves, or did last."""
    return next((placement for placement in placements if placement.role is Role.CURRENT), None)


def home_of(placements: Iterable[PlacementRecord]) -> str:
    """Return the node of what serves, else of what comes in; empty if there is none."""
    nodes = {placement.role: placement.node for placement in placements}
    return nodes.get(Role.CURRENT) or nodes.get(Role.INCOMING) or next(iter(nodes.values()), "")


@dataclass(frozen=True)
class EnvironmentRecord:
    """One environment; counts are filled in by the reader."""

    environment: Environment
    revision: int = 0

    @property
    def name(self) -> str:
        """Resource name."""
        return self.environment.name


@dataclass(frozen=True)
class NodeRecord:
    """One registered node; counts are filled in by the reader."""

    node: Node
    revision: int = 0

    @property
    def name(self) -> str:
        """Resource name, `environments/{environment}/nodes/{node}`."""
        return self.node.name

    @property
    def environment(self) -> str:
        """Resource name of the environment it is in."""
        return self.node.name.rpartition("/nodes/")[0]


@dataclass(frozen=True)
class OperationRecord:
    """One long-running operation: what it waits for, and how it ended."""

    name: str
    """`operations/{id}`; ids sort by time of creation."""
    app: str
    app_uid: str
    verb: str
    goal: Version
    """The operation is fulfilled once this version, or a later one, is served."""
    metadata: OperationMetadata
    create_time: int
    deadline: int
    done: bool = False
    error: Status | None = None
    response: App | None = None
    expire_time: int = 0
    """When a done operation is forgotten; 0 while it goes on."""
    revision: int = 0


@dataclass(frozen=True)
class RequestRecord:
    """The first result of a request that carried a `request_id`."""

    request_id: str
    digest: str
    """Digest of the method and of the request without its `request_id`."""
    response: bytes
    """The serialized response message."""
    expire_time: int

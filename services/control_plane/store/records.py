"""The catalog's records, as the core reads and writes them. Immutable: a change is a new record.

Messages inside a record are never modified once the record was made. Times are microseconds since
the Unix epoch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status

from appsupervisor.catalog.v1.app_catalog_pb2 import (
    App,
    AppEvent,
    BatchResponse,
    DeleteAppRequest,
    OperationMetadata,
)
from appsupervisor.catalog.v1.certificates_pb2 import Certificate
from appsupervisor.catalog.v1.retained_data_pb2 import RetainedData
from appsupervisor.fleet.v1.fleet_pb2 import (
    DatabaseServer,
    DrainNodeMetadata,
    Environment,
    Node,
    RebalanceEnvironmentMetadata,
    RebalanceEnvironmentResponse,
)
from services.control_plane.rules.etags import app_etag
from services.control_plane.store.packed_app import OfSpec, PackedApp, list_item, of_spec, of_status

R = TypeVar("R", "AppRecord", "OperationRecord")

MOVE_DATABASE = "move_database"
"""What an update does that names another database server."""

VERBS = (
    "create",
    "update",
    "delete",
    "start",
    "stop",
    "restart",
    "recover",
    "move",
    "attach",
    "purge",
    MOVE_DATABASE,
)
"""What operations on apps, and on what they leave, do: the methods that begin them."""

DRAIN = "drain"
"""What an operation on a node does."""

REBALANCE = "rebalance"
"""What an operation on an environment does."""

FLEET_VERBS = (DRAIN, REBALANCE)
"""What operations do that move apps of many, until all are where they should be."""

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


@dataclass(frozen=True, slots=True)
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

    @property
    def database_server(self) -> str:
        """The database server that its database is on; empty if it is on none."""
        return self.spec.database.postgres.server

    @property
    def needed_server(self) -> str:
        """The database server that must not be forgotten for it: none once it is being deleted."""
        return "" if self.deleting else self.database_server

    @cached_property
    def of_its_spec(self) -> OfSpec:
        """What the mirror keeps of its spec."""
        return of_spec(self.spec)

    @cached_property
    def packed(self) -> PackedApp:
        """The app as the mirror keeps it."""
        failed = self.failed
        return PackedApp(
            *self.of_its_spec,
            *of_status(self.status),
            self.name,
            self.uid,
            self.generation,
            self.target.generation,
            self.target.epoch,
            failed.generation if failed else None,
            failed.epoch if failed else None,
            self.deleting,
            self.create_time,
            self.update_time,
            self.history,
            self.revision,
        )

    @classmethod
    def unpacked(cls, packed: PackedApp) -> AppRecord:
        """Return the record of a packed app; its messages are parsed once they are asked for."""
        record = cls.__new__(cls)
        failed = packed.failed_generation, packed.failed_epoch
        vars(record).update(
            packed=packed,
            name=packed.name,
            uid=packed.uid,
            generation=packed.generation,
            target=Version(packed.target_generation, packed.target_epoch),
            create_time=packed.create_time,
            update_time=packed.update_time,
            failed=None if failed[0] is None or failed[1] is None else Version(failed[0], failed[1]),
            deleting=packed.deleting,
            history=packed.history,
            revision=packed.revision,
        )
        return record

    if not TYPE_CHECKING:  # to the type checker every name would be one

        def __getattr__(self, name: str) -> Any:
            """Parse a message of an unpacked record when it is first asked for."""
            if name == "spec":
                message = App.FromString(self.packed.spec + self.packed.secrets)
            elif name == "status":
                message = App.FromString(self.packed.status)
            else:
                raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
            vars(self)[name] = message
            return message

    @cached_property
    def wire(self) -> bytes:
        """The app as the API shows it, serialized: without secrets, with its status."""
        return self.packed.public()

    @cached_property
    def public(self) -> App:
        """The app as the API shows it."""
        return App.FromString(self.wire)

    @cached_property
    def list_item(self) -> bytes:
        """The app as one element of a serialized ListAppsResponse."""
        return list_item(self.wire)


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
        # As `Version` has it; asked for dozens of times in a pass.
        own = f"g{self.generation}-e{self.epoch}"
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
    """Return the node of what serves, of several the first, else of what comes in; empty if there is none."""
    home, best = "", (0, 0)
    for placement in placements:
        own = 3 if placement.role is Role.CURRENT else 2 if placement.role is Role.INCOMING else 1
        rank = own, -placement.replica
        if rank > best or not home:
            home, best = placement.node, rank
    return home


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
class DatabaseServerRecord:
    """One database server; counts are filled in by the reader."""

    server: DatabaseServer
    """All but its `admin_url`."""
    admin_url: str = field(repr=False)
    key: bytes = field(repr=False)
    """Of which the passwords of apps' logins are made; random, and kept for the server's life."""
    revision: int = 0

    @property
    def name(self) -> str:
        """Resource name."""
        return self.server.name


@dataclass(frozen=True)
class CertificateRecord:
    """One certificate; its conditions are filled in by the reader, as of that moment."""

    certificate: Certificate
    """All but its private key and its conditions."""
    private_key: str = field(repr=False)
    """In PEM."""
    revision: int = 0

    @property
    def name(self) -> str:
        """Resource name."""
        return self.certificate.name


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


@dataclass(frozen=True, slots=True)
class RetainedDataRecord:
    """What an app has left on a node."""

    data: RetainedData
    """As the API shows it, but for its etag."""
    generation: int = 1
    """Raised by each change of its state; from 0 downwards while it isn't known whether there is any data."""
    revision: int = 0

    @property
    def is_certain(self) -> bool:
        """Whether there is, or was, any data: an app that never started may have left none."""
        return self.generation > 0

    @property
    def name(self) -> str:
        """Resource name, `{node}/retainedData/{uid}`."""
        return self.data.name

    @property
    def node(self) -> str:
        """Resource name of the node that it is on."""
        return self.data.name.rpartition("/retainedData/")[0]

    @property
    def public(self) -> RetainedData:
        """The data as the API shows it."""
        shown = RetainedData()
        shown.CopyFrom(self.data)
        shown.etag = app_etag(self.data.uid, self.generation)
        return shown


@dataclass(frozen=True)
class OperationRecord:
    """One long-running operation: what it waits for, and how it ended."""

    name: str
    """`operations/{id}`; ids sort by time of creation."""
    app: str
    """Of a drain the node, of a rebalance the environment."""
    app_uid: str
    verb: str
    goal: Version
    """The operation is fulfilled once this version, or a later one, is served."""
    metadata: OperationMetadata | DrainNodeMetadata | RebalanceEnvironmentMetadata
    create_time: int
    deadline: int
    done: bool = False
    error: Status | None = None
    response: App | Node | RetainedData | BatchResponse | RebalanceEnvironmentResponse | None = None
    """Of a purge, the data; of a batch, what came of its apps; of a drain, the node; of a rebalance, its
    moves; else the app."""
    expire_time: int = 0
    """When a done operation is forgotten; 0 while it goes on."""
    revision: int = 0


_KEPT = tuple(name for name, value in vars(AppRecord).items() if isinstance(value, cached_property))
"""What is worked out of a record and kept in it."""


def as_stored(record: R, **changes: object) -> R:
    """Return a record with other values, as `dataclasses.replace` does, in a sixth of its time.

    For those that each command stores on the one thread that all commands share.
    """
    copy = object.__new__(type(record))
    values = vars(copy)
    if isinstance(record, AppRecord):
        # Parsed by now even if it came packed, for what it is parsed of is of that record alone.
        values["spec"], values["status"] = record.spec, record.status
        values.update(vars(record))
        for name in _KEPT:
            values.pop(name, None)
    else:
        values.update(vars(record))
    values.update(changes)
    return copy


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """What is left to do of a batch operation; gone when that has ended."""

    name: str
    """Of the operation."""
    requests: bytes
    """The serialized request, with one request for each app: the list is pinned."""
    finished: int = 0
    """So many apps from the front of the list have come to their end."""
    results: bytes = b""
    """A serialized BatchResponse: what came of those."""
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

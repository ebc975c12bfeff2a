"""An app as the mirror keeps it: strings, numbers and serialized messages, a third of a record's size."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Final, NamedTuple

from appsupervisor.catalog.v1.app_catalog_pb2 import App, Canary, ListAppsResponse
from services.control_plane.rules.etags import app_etag
from services.control_plane.store.app_labels import Labels, pairs

OfSpec = tuple[str, str, tuple[str, ...], int, bool, bool, Labels, Labels, bytes, bytes]
OfStatus = tuple[int, int, bool, bool, bytes]

_OF_SPEC: Final = 10
SHARED_LABELS = 10_000
"""Sets of labels of which there is one object, however many apps have them."""
_LABELS: dict[Labels, Labels] = {}
_LIST_ITEM = bytes([ListAppsResponse.DESCRIPTOR.fields_by_name["apps"].number << 3 | 2])


class PackedApp(NamedTuple):
    """One app; its fields are `AppRecord`'s, and what is asked of all apps at once.

    A tuple is made in a fifth of a frozen dataclass's time, and the collector need not look through it.
    """

    # The first ones are of the spec, as `of_spec` returns them, the next of the status.
    environment: str
    database_server: str
    """The server that its database is on; empty if it is on none."""
    domains: tuple[str, ...]
    memory_bytes: int
    """What `limits` allow it; 0 if nothing is said."""
    exclusive: bool
    autoscaled: bool
    """Whether the number of its replicas follows its requests."""
    labels: Labels
    apart_from: Labels
    """Its anti-affinity."""
    spec: bytes
    """The serialized spec, without `secret_env`."""
    secrets: bytes
    """The serialized spec's `secret_env` alone."""
    state: int
    health: int
    on_trial: bool
    """Whether a new version of it gets a share of its requests, to be judged."""
    reconciling: bool
    status: bytes
    name: str
    uid: str
    generation: int
    target_generation: int
    target_epoch: int
    failed_generation: int | None
    failed_epoch: int | None
    deleting: int
    create_time: int
    update_time: int
    history: str
    revision: int

    @property
    def of_its_spec(self) -> OfSpec:
        """What was worked out of its spec: of another app with the same spec it need not be again."""
        return self[:_OF_SPEC]

    def public(self) -> bytes:
        """Return the app as the API shows it, serialized: without secrets, with its status."""
        rest = App(
            uid=self.uid,
            generation=self.generation,
            etag=app_etag(self.uid, self.generation, self.history),
        )
        rest.create_time.FromMicroseconds(self.create_time)
        rest.update_time.FromMicroseconds(self.update_time)
        # Messages of different fields, one after the other, are the message of all of them.
        return self.spec + self.status + rest.SerializeToString()


def of_spec(spec: App, wire: bytes | None = None) -> OfSpec:
    """Return what a spec gives a packed app; `wire` is the message serialized, where it is known."""
    secrets = b""
    if spec.secret_env:
        secrets = App(secret_env=spec.secret_env).SerializeToString()
        open_spec = App()
        open_spec.CopyFrom(spec)
        open_spec.secret_env.clear()
        wire = open_spec.SerializeToString()
    return (
        sys.intern(spec.environment),  # one string for all that are in it
        sys.intern(spec.database.postgres.server),
        tuple(spec.domains),
        spec.limits.memory_bytes,
        spec.exclusive,
        spec.HasField("autoscale"),
        _interned(spec.labels),
        _interned(spec.anti_affinity),
        spec.SerializeToString() if wire is None else wire,
        secrets,
    )


def of_status(status: App, wire: bytes | None = None) -> OfStatus:
    """Return what a status gives a packed app; `wire` is the message serialized, where it is known."""
    on_trial = status.canary.state == Canary.ANALYZING
    wire = status.SerializeToString() if wire is None else wire
    return status.state, status.health, on_trial, status.reconciling, wire


def _interned(labels: Mapping[str, str]) -> Labels:
    if not labels:
        return ()
    found = tuple(map(sys.intern, pairs(labels)))
    # Many apps have the same few: one tuple for all of them.
    return _LABELS.setdefault(found, found) if len(_LABELS) < SHARED_LABELS else _LABELS.get(found, found)


def list_item(app: bytes) -> bytes:
    """Return a serialized app as one element of a serialized ListAppsResponse: a page is a join of these."""
    size, left = bytearray(), len(app)
    while left > 0x7F:
        size.append(left & 0x7F | 0x80)
        left >>= 7
    size.append(left)
    return b"".join((_LIST_ITEM, size, app))

"""An app as the mirror keeps it: strings, numbers and serialized messages, a third of a record's size."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from appsupervisor.catalog.v1.app_catalog_pb2 import App, Canary, ListAppsResponse
from services.control_plane.rules.etags import app_etag
from services.control_plane.store.app_labels import Labels, pairs

_LIST_ITEM = bytes([ListAppsResponse.DESCRIPTOR.fields_by_name["apps"].number << 3 | 2])


@dataclass(frozen=True, slots=True)
class PackedApp:
    """One app; its fields are `AppRecord`'s, and what is asked of all apps at once. Immutable."""

    name: str
    uid: str
    environment: str
    database_server: str
    """The server that its database is on; empty if it is on none."""
    domains: tuple[str, ...]
    state: int
    health: int
    reconciling: bool
    memory_bytes: int
    """What `limits` allow it; 0 if nothing is said."""
    exclusive: bool
    autoscaled: bool
    """Whether the number of its replicas follows its requests."""
    on_trial: bool
    """Whether a new version of it gets a share of its requests, to be judged."""
    labels: Labels
    apart_from: Labels
    """Its anti-affinity."""
    spec: bytes
    """The serialized spec, without `secret_env`."""
    secrets: bytes
    """The serialized spec's `secret_env` alone."""
    status: bytes
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

    @classmethod
    def of(cls, spec: App, status: App, **values: object) -> PackedApp:
        """Return an app of a spec, `secret_env` included, and a status."""
        secrets, open_spec = b"", spec
        if spec.secret_env:
            secrets = App(secret_env=spec.secret_env).SerializeToString()
            open_spec = App()
            open_spec.CopyFrom(spec)
            open_spec.secret_env.clear()
        return cls(
            environment=sys.intern(spec.environment),  # one string for all that are in it
            database_server=sys.intern(spec.database.postgres.server),
            domains=tuple(spec.domains),
            state=status.state,
            health=status.health,
            reconciling=status.reconciling,
            memory_bytes=spec.limits.memory_bytes,
            exclusive=spec.exclusive,
            autoscaled=spec.HasField("autoscale"),
            on_trial=status.canary.state == Canary.ANALYZING,
            labels=_interned(spec.labels),
            apart_from=_interned(spec.anti_affinity),
            spec=open_spec.SerializeToString(),
            secrets=secrets,
            status=status.SerializeToString(),
            **values,  # type: ignore[arg-type]
        )

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


def _interned(labels: Mapping[str, str]) -> Labels:
    return tuple(map(sys.intern, pairs(labels))) if labels else ()


def list_item(app: bytes) -> bytes:
    """Return a serialized app as one element of a serialized ListAppsResponse: a page is a join of these."""
    size, left = bytearray(), len(app)
    while left > 0x7F:
        size.append(left & 0x7F | 0x80)
        left >>= 7
    size.append(left)
    return b"".join((_LIST_ITEM, size, app))

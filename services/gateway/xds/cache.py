"""What Envoy is to know now: the newest resource by kind and name; followers are told which have changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

CLUSTER = "envoy.config.cluster.v3.Cluster"
LISTENER = "envoy.config.listener.v3.Listener"
ENDPOINTS = "envoy.config.endpoint.v3.ClusterLoadAssignment"
ROUTES = "envoy.config.route.v3.RouteConfiguration"
SECRET = "envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105 - a kind's name
SCOPE = "envoy.config.route.v3.ScopedRouteConfiguration"

KINDS = (CLUSTER, SECRET, LISTENER, ROUTES, SCOPE)
"""What an Envoy is told, each before what refers to it."""

Follower = Callable[[str, str], None]
"""Takes the kind and the name of what has changed."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One message as it is sent. Its version follows from its content alone: a restart changes none."""

    version: str
    value: bytes
    needs: str = ""
    """Name of the routes that a scope leads to."""


def resource_of(content: Any, needs: str = "") -> Resource:
    """Return a message as it is sent."""
    value = content.SerializeToString(deterministic=True)
    return Resource(hashlib.blake2b(value, digest_size=6).hexdigest(), value, needs)


class ResourceCache:
    """The newest resources. Belongs to one event loop; nothing here waits."""

    def __init__(self) -> None:
        self._kinds: dict[str, dict[str, Resource]] = {kind: {} for kind in KINDS}
        self._secrets: Mapping[str, Resource] | None = None
        self._followers: set[Follower] = set()
        self.complete = False
        """Whether what is here is all there is: before that nobody is told anything."""

    def of(self, kind: str) -> Mapping[str, Resource]:
        """Return the resources of a kind by name. Raises KeyError for a kind that is not among KINDS."""
        if kind == SECRET and self._secrets is not None:
            return self._secrets
        return self._kinds[kind]

    def is_complete(self, kind: str) -> bool:
        """Tell whether what is here of a kind is all there is of it."""
        return self.complete and (kind != SECRET or self._secrets is not None)

    def serve_secrets(self, secrets: Mapping[str, Resource]) -> None:
        """Answer for secrets by a mapping from now on; before that nobody is told that there is none."""
        self._secrets = secrets
        self.changed("", "")

    def changed(self, kind: str, name: str) -> None:
        """Tell everyone that a resource is another one; a secret's name may be `*.` and a host name, for all
        right below it."""
        self._tell(kind, name)

    def put(self, kind: str, name: str, content: Any, *, needs: str = "") -> None:
        """Make a message the newest of its name; what was the same before is no change."""
        resource = resource_of(content, needs)
        known = self._kinds[kind].get(name)
        if known is not None and known.version == resource.version:
            return
        self._kinds[kind][name] = resource
        self._tell(kind, name)

    def remove(self, kind: str, name: str) -> None:
        """Forget a resource; one that is not there is no change."""
        if self._kinds[kind].pop(name, None) is not None:
            self._tell(kind, name)

    def open(self) -> None:
        """Say that what is here is all there is, and let everyone who waits for that look."""
        self.complete = True
        for follower in list(self._followers):
            follower("", "")

    def follow(self, follower: Follower) -> None:
        """Tell of each change from now on."""
        self._followers.add(follower)

    def leave(self, follower: Follower) -> None:
        """Tell no more."""
        self._followers.discard(follower)

    def _tell(self, kind: str, name: str) -> None:
        for follower in list(self._followers):
            follower(kind, name)

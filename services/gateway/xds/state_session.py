"""The state-of-the-world protocol with one gRPC client: what it asked for, was told, and refused. Waits for
nothing.

At most one message of a kind is under way: a client that is slow to answer gets the newest of each name.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from services.gateway.xds.cache import CLUSTER, ENDPOINTS, LISTENER, ROUTES, Resource
from services.gateway.xds.messages import TYPE_PREFIX, message
from services.gateway.xds.on_demand import OnDemandCache
from services.gateway.xds.session import EVERYTHING, LARGEST_CHANGE, LONGEST_REASON, Refusal
from services.rpc.errors import invalid_field

BY_NAME = (CLUSTER, ENDPOINTS, LISTENER, ROUTES)
"""What is told before what refers to it."""
WHOLE = (CLUSTER, LISTENER)
"""Kinds of which a message has all that was asked for: what it lacks is not there (any more)."""
MOST_NAMES = 1000
"""Of a kind that one client follows."""
LONGEST_NAME = 512


@dataclass(slots=True)
class _Followed:
    """One kind of resource, as one client follows it."""

    names: dict[str, None] = field(default_factory=dict)
    """Those that it asks for, in that order."""
    told: dict[str, str] = field(default_factory=dict)
    """Versions by name as last sent."""
    dirty: dict[str, None] = field(default_factory=dict)
    """Names that it may have to be told of, in the order of their changes."""
    under_way: str = ""
    sent: tuple[str, ...] = ()
    """Names that the message under way has told."""


class StateSession:
    """One stream of a gRPC client. Feed it requests; take what is to be sent when `wake` is called."""

    def __init__(
        self,
        cache: OnDemandCache,
        refused: Callable[[Refusal], None] = lambda _: None,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self._cache = cache
        self._refused = refused
        self._wake = wake
        self._kinds: dict[str, _Followed] = {}
        self._numbers = itertools.count(1)
        self.node = ""
        """Id of the client, once it has told it."""
        self.refusal: Refusal | None = None
        """The latest refusal, until a later message of the same kind is accepted."""

    def close(self) -> None:
        """Follow nothing any more."""
        for kind, followed in self._kinds.items():
            for name in followed.names:
                self._cache.leave(kind, name, self._changed)
        self._kinds.clear()

    # --- what comes ---

    def receive(self, request: Any) -> None:
        """Take a DiscoveryRequest: an answer to what was sent, and all names of a kind that it now follows.

        Raises INVALID_FIELD for a kind that is not told by name, for a wildcard, and for too many names.
        """
        if request.node.id:
            self.node = request.node.id[:256]
        kind = request.type_url.removeprefix(TYPE_PREFIX)
        if kind not in BY_NAME:
            served = ", ".join(BY_NAME)
            raise invalid_field("type_url", f"must be one of {served} on this stream; it is {kind[:200]!r}")
        followed = self._kinds.get(kind)
        if followed is None:
            if not request.resource_names:
                raise invalid_field(
                    "resource_names",
                    "must name what is asked for; all of a kind is told to an Envoy, incremental",
                )
            followed = self._kinds[kind] = _Followed()
        if request.response_nonce and request.response_nonce == followed.under_way:
            self._answered(kind, followed, request)
        # Also of a request that crossed a message: these are the names that the client follows now.
        self._follow(kind, followed, request.resource_names)

    def _follow(self, kind: str, followed: _Followed, asked: Any) -> None:
        if len(asked) > MOST_NAMES:
            raise invalid_field("resource_names", f"must be at most {MOST_NAMES:,} names")
        names = dict.fromkeys(asked)
        for name in names:
            if name == EVERYTHING or len(name) > LONGEST_NAME:
                raise invalid_field(
                    "resource_names", f"must be names of at most {LONGEST_NAME} characters, and none '*'"
                )
        for name in [name for name in followed.names if name not in names]:
            self._cache.leave(kind, name, self._changed)
            followed.told.pop(name, None)
            followed.dirty.pop(name, None)
        for name in names:
            if name not in followed.names:
                self._cache.follow(kind, name, self._changed)
                followed.dirty[name] = None
        followed.names = names

    def _answered(self, kind: str, followed: _Followed, request: Any) -> None:
        sent, followed.sent, followed.under_way = followed.sent, (), ""
        if not request.HasField("error_detail"):
            if self.refusal is not None and self.refusal.kind == kind:
                self.refusal = None
            return
        # It is not told the same again: that would be refused without end. Its next change is told.
        reason = request.error_detail.message[:LONGEST_REASON]
        self.refusal = Refusal(self.node, kind, sent[:20], reason)
        self._refused(self.refusal)

    def _changed(self, kind: str, name: str) -> None:
        self._kinds[kind].dirty[name] = None
        self._wake()

    # --- what goes ---

    def next_response(self) -> Any:
        """Return the next DiscoveryResponse, or None while nothing may be sent.

        What refers to something is sent after it, and no cluster is gone while a listener may lead to it.
        """
        if not self._cache.complete:
            return None
        for kind in (*BY_NAME, CLUSTER):  # again: nothing may have been left to say of what leads to one
            followed = self._kinds.get(kind)
            if followed is not None and followed.dirty and not followed.under_way:
                if kind == CLUSTER and self._is_led_to_what_is_gone(followed):
                    continue
                response = self._compose(kind, followed)
                if response is not None:
                    return response
        return None

    def _is_led_to_what_is_gone(self, clusters: _Followed) -> bool:
        others = [other for kind in (LISTENER, ROUTES) if (other := self._kinds.get(kind)) is not None]
        return any(other.dirty or other.under_way for other in others) and any(
            name in clusters.told and self._cache.get(CLUSTER, name) is None for name in clusters.dirty
        )

    def _compose(self, kind: str, followed: _Followed) -> Any:
        changed: dict[str, Resource] = {}
        gone, size = False, 0
        for name in list(followed.dirty):
            del followed.dirty[name]
            resource = self._cache.get(kind, name)
            if resource is None:
                gone |= followed.told.pop(name, None) is not None
            elif resource.version != followed.told.get(name):
                changed[name] = resource
                size += len(resource.value)
                if size > LARGEST_CHANGE and kind not in WHOLE:
                    break
        if kind in WHOLE:
            if not (changed or gone):
                return None
            changed = {name: it for name in followed.names if (it := self._cache.get(kind, name)) is not None}
            followed.dirty.clear()
            followed.told.clear()
        elif not changed:
            return None  # what is gone is told by what led to it
        followed.told.update((name, resource.version) for name, resource in changed.items())
        followed.sent = tuple(changed)
        followed.under_way = str(next(self._numbers))
        response = message("envoy.service.discovery.v3.DiscoveryResponse")(
            type_url=TYPE_PREFIX + kind, nonce=followed.under_way, version_info=_version(followed.told)
        )
        for resource in changed.values():
            response.resources.add(type_url=TYPE_PREFIX + kind, value=resource.value)
        return response


def _version(told: dict[str, str]) -> str:
    """Return the version of all that a client has of a kind: it follows from that alone."""
    text = "\n".join(f"{name} {version}" for name, version in sorted(told.items()))
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

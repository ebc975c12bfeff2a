"""The incremental protocol with one Envoy: what it asked for, was told, and refused. No gRPC here.

At most one message of a kind is under way: an Envoy that is slow to answer gets the newest of each name.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from services.gateway.xds.cache import CLUSTER, KINDS, ROUTES, SCOPE, SECRET, Resource, ResourceCache
from services.gateway.xds.messages import TYPE_PREFIX, message
from services.rpc.errors import invalid_field

EVERYTHING = "*"
LONGEST_REASON = 2000
"""Characters kept of why an Envoy refused something."""
MOST_SECRETS = 10_000
"""That one Envoy keeps, a name each."""
LONGEST_SECRET = 255
"""Characters of a name that is asked for in a handshake (RFC 6066): of a longer one nothing is kept."""
MOST_UNKNOWN = 10_000
"""Names that one Envoy may follow of a kind beside as many as twice what there is of it."""
LONGEST_NAME = 16 * 1024
LARGEST_CHANGE = 1 << 20
"""Bytes after which a message of changes is cut, the rest follows; the first one of a kind must be whole."""


@dataclass(slots=True)
class Subscription:
    """One kind of resource, as one Envoy follows it."""

    wildcard: bool = False
    names: dict[str, None] = field(default_factory=dict)
    """Those that it has asked for, in that order."""
    told: dict[str, str] = field(default_factory=dict)
    """Versions by name as last sent, or as the Envoy says that it has them."""
    held: dict[str, str] = field(default_factory=dict)
    """Of these, the routes that the Envoy has confirmed."""
    dirty: dict[str, None] = field(default_factory=dict)
    """Names that it may have to be told of, in the order of their changes."""
    under_way: str = ""
    sent: dict[str, str] = field(default_factory=dict)
    """What the message under way has told."""
    fresh: bool = True
    """Whether it was told nothing yet, and has nothing from an earlier connection."""

    def wants(self, name: str) -> bool:
        """Tell whether the Envoy follows a name."""
        return self.wildcard or name in self.names


@dataclass(frozen=True, slots=True)
class Refusal:
    """What an Envoy did not accept, and why."""

    node: str
    kind: str
    names: tuple[str, ...]
    reason: str


class DeltaSession:
    """One stream of an Envoy. Feed it requests and changes; take what is to be sent."""

    def __init__(self, cache: ResourceCache, refused: Callable[[Refusal], None] = lambda _: None) -> None:
        self._cache = cache
        self._refused = refused
        self._kinds: dict[str, Subscription] = {}
        self._numbers = itertools.count(1)
        self.node = ""
        """Id of the Envoy, once it has told it."""
        self.refusal: Refusal | None = None
        """The latest refusal, until a later message of the same kind is accepted."""

    @property
    def settled(self) -> bool:
        """Whether it has been told all that it follows, and has said so."""
        return not any(it.dirty or it.under_way or it.fresh for it in self._kinds.values())

    # --- what comes ---

    def receive(self, request: Any) -> None:
        """Take a DeltaDiscoveryRequest: an answer to what was sent, names to follow or to leave, or both.

        Raises INVALID_FIELD for more names, or longer ones, than there can be a reason for.
        """
        if request.node.id:
            self.node = request.node.id[:256]
        kind = request.type_url.removeprefix(TYPE_PREFIX)
        if kind not in KINDS:
            return  # a kind that there is nothing of: what is not answered is not there
        followed = self._kinds.get(kind)
        if followed is None:
            followed = self._kinds[kind] = Subscription()
            self._begin(kind, followed, request)
        if request.response_nonce:
            self._answered(kind, followed, request)
        self._follow(kind, followed, request)

    def _begin(self, kind: str, followed: Subscription, request: Any) -> None:
        # Without names a first request is about everything (the way of all xDS before "*").
        followed.wildcard = not request.resource_names_subscribe
        known = dict(request.initial_resource_versions)
        followed.fresh = not known
        followed.told = known
        if kind == ROUTES:
            followed.held = dict(known)
        followed.dirty = dict.fromkeys(known)
        if followed.wildcard:
            followed.dirty.update(dict.fromkeys(self._cache.of(kind)))

    def _follow(self, kind: str, followed: Subscription, request: Any) -> None:
        for name in request.resource_names_subscribe:
            if name == EVERYTHING:
                followed.wildcard = True
                followed.dirty.update(dict.fromkeys(self._cache.of(kind)))
                continue
            if not self._may_follow(kind, followed, name):
                continue
            followed.names[name] = None
            if name not in request.initial_resource_versions:
                # Asked for by name, it is told even if it was told before, or is not there.
                followed.told.pop(name, None)
                followed.dirty[name] = None
        for name in request.resource_names_unsubscribe:
            if name == EVERYTHING:
                followed.wildcard = False
            followed.names.pop(name, None)
            if not followed.wildcard:
                for known in (followed.told, followed.held, followed.dirty):
                    known.pop(name, None)
        if kind == SECRET:
            # Names come from anonymous clients, and below a wildcard there is no end of them: the oldest goes
            # and is asked for again when it is next needed. Open connections go on.
            for name in list(itertools.islice(followed.names, max(0, len(followed.names) - MOST_SECRETS))):
                del followed.names[name]
                followed.dirty[name] = None

    def _may_follow(self, kind: str, followed: Subscription, name: str) -> bool:
        """Tell whether a name is kept. Raises INVALID_FIELD for what is past all bounds."""
        if kind == SECRET:
            return len(name) <= LONGEST_SECRET
        if len(name) > LONGEST_NAME:
            rule = f"must be names of at most {LONGEST_NAME:,} characters"
            raise invalid_field("resource_names_subscribe", rule)
        there = self._cache.of(kind)
        most = MOST_UNKNOWN + 2 * len(there)
        # One that comes back before all is known, or after most of it is gone, follows what there was.
        if len(followed.names) >= most and self._cache.is_complete(kind) and name not in there:
            raise invalid_field("resource_names_subscribe", f"must be at most {most:,} names by now")
        return True

    def _answered(self, kind: str, followed: Subscription, request: Any) -> None:
        if request.response_nonce != followed.under_way:
            return
        sent, followed.sent, followed.under_way = followed.sent, {}, ""
        if not request.HasField("error_detail"):
            if kind == ROUTES:
                followed.held.update(sent)
            if self.refusal is not None and self.refusal.kind == kind:
                self.refusal = None
            return
        # It is not told the same again: that would be refused without end. Its next change is told.
        reason = request.error_detail.message[:LONGEST_REASON]
        self.refusal = Refusal(self.node, kind, tuple(itertools.islice(sent, 20)), reason)
        self._refused(self.refusal)

    def changed(self, kind: str, name: str) -> None:
        """Take note that a resource has changed or is gone."""
        followed = self._kinds.get(kind)
        if followed is None:
            return
        if kind == SECRET:
            # Asked for in any case, and by names of which a wildcard is told.
            followed.dirty.update(dict.fromkeys(it for it in followed.names if _is_for(name, it.lower())))
        elif followed.wants(name):
            followed.dirty[name] = None

    # --- what goes ---

    def next_response(self) -> Any:
        """Return the next DeltaDiscoveryResponse, or None while nothing may be sent.

        What refers to something is sent after it, and nothing goes while something may refer to it.
        """
        for kind in KINDS:
            if not self._cache.is_complete(kind):
                continue
            followed = self._kinds.get(kind)
            if followed is None or followed.under_way or not (followed.dirty or followed.fresh):
                continue
            if kind in (ROUTES, SCOPE) and self._has_new(CLUSTER):
                continue  # routes name clusters
            response = self._compose(kind, followed)
            if response is not None:
                return response
        return None

    def _compose(self, kind: str, followed: Subscription) -> Any:
        response = message("envoy.service.discovery.v3.DeltaDiscoveryResponse")()
        resources, size = self._cache.of(kind), 0
        whole = followed.fresh
        for name in list(followed.dirty):
            resource = resources.get(name) if followed.wants(name) else None
            known = followed.told.get(name)
            if resource is None:
                if known is None and name not in followed.names:
                    del followed.dirty[name]
                    continue
                if known is not None and self._may_be_referred_to(kind):
                    continue
                response.removed_resources.append(name)
                followed.told.pop(name, None)
                followed.sent[name] = ""
            elif resource.version == known:
                del followed.dirty[name]
                continue
            elif not self._may_refer(kind, followed, resource):
                continue
            else:
                response.resources.add(
                    name=name,
                    version=resource.version,
                    resource={"type_url": TYPE_PREFIX + kind, "value": resource.value},
                )
                followed.told[name] = followed.sent[name] = resource.version
                size += len(name) + len(resource.value)
            del followed.dirty[name]
            if size > LARGEST_CHANGE and not whole:
                break
        if not (followed.sent or followed.fresh):
            return None
        followed.fresh = False
        followed.under_way = response.nonce = str(next(self._numbers))
        response.type_url = TYPE_PREFIX + kind
        return response

    def _may_refer(self, kind: str, followed: Subscription, resource: Resource) -> bool:
        """Tell whether the Envoy has the routes that a scope leads to.

        It would answer 404 until they come: it is made to ask for them by a scope that no request reaches,
        and this one follows when it has them. Before it was told anything it does not listen, and it waits.
        """
        if kind != SCOPE or followed.fresh or not resource.needs:
            return True
        routes = self._kinds.get(ROUTES)
        return routes is not None and resource.needs in routes.held

    def _has_new(self, kind: str) -> bool:
        followed = self._kinds.get(kind)
        resources = self._cache.of(kind)
        return followed is not None and any(
            name in resources and name not in followed.told for name in followed.dirty
        )

    def _may_be_referred_to(self, kind: str) -> bool:
        referring = {CLUSTER: (ROUTES, SCOPE), ROUTES: (SCOPE,)}.get(kind, ())
        others = [followed for other in referring if (followed := self._kinds.get(other))]
        return any(followed.dirty or followed.under_way for followed in others)


def _is_for(name: str, host: str) -> bool:
    """Tell whether a host name, or the wildcard of it, is what is told of."""
    return name == host or name == f"*.{host.partition('.')[2]}"

"""Keeps Envoy's resources true to apps and nodes; one app changed is one small resource changed. Pure.

An app is a scope for each of its names; routes and clusters are shared by all apps that are treated alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.fleet.v1.fleet_pb2 import Node
from services.gateway import clusters, resources
from services.gateway.routes import Destination, bound_of, destination_of
from services.gateway.xds.cache import CLUSTER, ROUTES, SCOPE, ResourceCache


@dataclass(frozen=True, slots=True)
class _Routed:
    """What is known of one app."""

    keys: tuple[str, ...]
    destination: Destination | None
    bound: int
    """Calls that one replica takes at a time."""


class Follower(Protocol):
    """Is told of each change, by name, after it."""

    def app_changed(self, name: str) -> None:
        """Take note of an app."""

    def name_changed(self, host: str) -> None:
        """Take note of a host name: where it leads, or whether there is anything."""

    def node_changed(self, name: str) -> None:
        """Take note of a node's address."""


class RoutingTable:
    """The apps and nodes by name, and the resources that follow from them. Belongs to the cache's loop."""

    def __init__(
        self,
        cache: ResourceCache,
        base_domains: Sequence[str] = ("localhost",),
        *,
        is_covered: Callable[[str], bool] = lambda _: False,
        https_port: int = 0,
    ) -> None:
        """Each app answers as `{app}.{base_domain}` of each base domain.

        Plain requests for names that are covered by a certificate are sent to HTTPS, if that has a port.
        """
        self._cache = cache
        self._is_covered = is_covered
        self._https_port = https_port
        self._base_domains = tuple(base_domains)
        self._apps: dict[str, _Routed] = {}
        self._addresses: dict[str, str] = {}
        self._http2: set[str] = set()
        """Names of nodes that speak HTTP/2."""
        # A domain goes over from one app to another in two changes, which may come in either order.
        self._claims: dict[str, tuple[str, ...]] = {}
        self._led: dict[str, Destination] = {}
        """Where each name leads."""
        self._uses: Counter[Destination] = Counter()
        # By name: of how many destinations they are. An app's own change in place when it changes its nodes.
        self._routes: Counter[str] = Counter()
        self._shares: Counter[str] = Counter()
        self._clusters: dict[str, Destination] = {}
        self._followers: list[Follower] = []

    def follow(self, follower: Follower) -> None:
        """Tell of each change from now on."""
        self._followers.append(follower)

    @property
    def apps(self) -> Collection[str]:
        """Names of the apps."""
        return self._apps.keys()

    @property
    def nodes(self) -> Collection[str]:
        """Names of the nodes."""
        return self._addresses.keys()

    def domains(self) -> Iterator[tuple[str, str]]:
        """Yield each domain that is no app's own name, and the id of the app to which it leads."""
        for key, claims in list(self._claims.items()):  # by whoever scrapes, in a thread of its own
            app_id = claims[-1].removeprefix("apps/")
            if not any(key == f"{app_id}.{base}" for base in self._base_domains):
                yield key, app_id

    def app_at(self, key: str) -> str | None:
        """Return the app to which a host name, or a wildcard, leads."""
        claims = self._claims.get(key)
        return claims[-1] if claims else None

    def destination(self, app: str) -> Destination | None:
        """Return where an app's requests go; None where there is to be no such app."""
        routed = self._apps.get(app)
        return routed.destination if routed is not None else None

    def bound(self, app: str) -> int:
        """Return how many requests one replica of a known app takes at a time."""
        return self._apps[app].bound

    def grpc_address(self, node: str) -> str:
        """Return where a node takes calls of gRPC, as `host:port`; empty if nowhere."""
        return self._addresses.get(node, "") if node in self._http2 else ""

    # --- apps ---

    def put_app(self, app: App) -> None:
        """Make an app answer where it is now."""
        routed = _Routed(self._keys(app), destination_of(app), bound_of(app))
        before = self._apps.get(app.name)
        if routed == before:
            return
        self._apps[app.name] = routed
        for key in routed.keys:
            self._claim(key, app.name)
        if before is not None:
            self._withdraw(app.name, before, kept=routed.keys)
        for key in routed.keys:
            self._point(key)
        for follower in self._followers:
            follower.app_changed(app.name)

    def remove_app(self, name: str) -> None:
        """Forget an app."""
        before = self._apps.pop(name, None)
        if before is not None:
            self._withdraw(name, before, kept=())
            for follower in self._followers:
                follower.app_changed(name)

    def _keys(self, app: App) -> tuple[str, ...]:
        """Return the host names that lead to an app."""
        app_id = app.name.removeprefix("apps/")
        own = [f"{app_id}.{base}" for base in self._base_domains]
        # As on a node: right below a base domain are apps' own names, and no other app's.
        others = {domain.lower() for domain in app.domains if not self._is_an_apps_own(domain.lower())}
        return (*own, *sorted(others))

    def _is_an_apps_own(self, domain: str) -> bool:
        return any(
            domain.endswith(f".{base}") and "." not in domain[: -len(base) - 1] for base in self._base_domains
        )

    def _claim(self, key: str, app: str) -> None:
        claims = self._claims.get(key, ())
        if app not in claims:
            self._claims[key] = (*claims, app)

    def _withdraw(self, app: str, before: _Routed, kept: tuple[str, ...]) -> None:
        for key in before.keys:
            if key in kept:
                continue
            claims = tuple(other for other in self._claims[key] if other != app)
            if claims:
                self._claims[key] = claims
            else:
                del self._claims[key]
            self._point(key)

    def _point(self, key: str) -> None:
        """Let a name lead to the newest app that claims it."""
        for follower in self._followers:
            follower.name_changed(key)
        claims = self._claims.get(key)
        wanted = self._apps[claims[-1]].destination if claims else None
        if wanted is not None and self._https_port and self._is_covered(key):
            wanted = replace(wanted, to_https=self._https_port)
        before = self._led.get(key)
        if wanted == before:
            return
        if wanted is None:
            self._cache.remove(SCOPE, key)
            del self._led[key]
        else:
            self._acquire(wanted)
            routes = resources.routes_name(wanted)
            self._cache.put(SCOPE, key, resources.scope(key, routes), needs=routes)
            self._led[key] = wanted
        if before is not None:
            self._release(before)

    def recertified(self, name: str) -> None:
        """Take note that a name, or with `*.` each right below one, has another certificate, one or none."""
        if not self._https_port:
            return
        below = name.removeprefix("*")
        for key in [key for key in self._claims if key.endswith(below)] if below != name else [name]:
            self._point(key)

    # --- nodes ---

    def put_node(self, node: Node) -> None:
        """Make a node reachable where it serves now; its routes are there before the first app needs them."""
        known = self._addresses.get(node.name)
        self._addresses[node.name] = node.http_address
        spoke, speaks = node.name in self._http2, node.serves_http2
        if spoke != speaks:
            (self._http2.add if speaks else self._http2.discard)(node.name)
        if known is None:
            self._acquire(Destination((node.name,)))
        if known != node.http_address or spoke != speaks:
            self._reach(node.name)
        if spoke != speaks:
            for destination in self._uses:
                parts = (destination, destination.shared or destination)
                if any(node.name in part.nodes or node.name in part.instead for part in parts):
                    self._put_routes(destination)

    def remove_node(self, name: str) -> None:
        """Forget a node; apps that are still on it have no one to answer for them."""
        if self._addresses.pop(name, None) is not None:
            self._reach(name)
            self._release(Destination((name,)))
            self._http2.discard(name)

    def _reach(self, node: str) -> None:
        for name, destination in self._clusters.items():
            if node in destination.nodes or node in destination.instead:
                self._put_cluster(name)
        for follower in self._followers:
            follower.node_changed(node)

    # --- what they share ---

    def _acquire(self, destination: Destination) -> None:
        self._uses[destination] += 1
        if self._uses[destination] > 1:
            return
        if destination.shared is not None:
            self._acquire(destination.shared)
        if destination.nodes:
            cluster = clusters.cluster_name(destination)
            self._shares[cluster] += 1
            self._clusters[cluster] = destination
            self._put_cluster(cluster)
        name = resources.routes_name(destination)
        self._routes[name] += 1
        self._put_routes(destination)
        self._cache.put(SCOPE, resources.keeper_name(name), resources.keeper(name))

    def _release(self, destination: Destination) -> None:
        self._uses[destination] -= 1
        if self._uses[destination]:
            return
        del self._uses[destination]
        name = resources.routes_name(destination)
        self._routes[name] -= 1
        if not self._routes[name]:
            del self._routes[name]
            self._cache.remove(SCOPE, resources.keeper_name(name))
            self._cache.remove(ROUTES, name)
        if destination.nodes:
            cluster = clusters.cluster_name(destination)
            self._shares[cluster] -= 1
            if not self._shares[cluster]:
                del self._shares[cluster], self._clusters[cluster]
                self._cache.remove(CLUSTER, cluster)
                self._cache.remove(CLUSTER, clusters.grpc_cluster_name(destination))
        if destination.shared is not None:
            self._release(destination.shared)

    def _put_cluster(self, name: str) -> None:
        destination = self._clusters[name]
        first, instead = (
            [self._addresses[node] for node in nodes if self._addresses.get(node)]
            for nodes in (destination.nodes, destination.instead)
        )
        self._cache.put(CLUSTER, name, clusters.cluster(destination, first, instead))
        if self._takes_grpc(destination):
            calls = clusters.grpc_cluster_name(destination)
            self._cache.put(CLUSTER, calls, clusters.cluster(destination, first, instead, grpc=True))

    def _put_routes(self, destination: Destination) -> None:
        # Routes are shared with other apps but for those that have a share.
        shared = destination.shared if destination.share is not None else None
        http2 = self._takes_grpc(destination) and (shared is None or self._takes_grpc(shared))
        name = resources.routes_name(destination)
        self._cache.put(ROUTES, name, resources.routes(destination, http2=http2))
        if destination.nodes and not self._takes_grpc(destination):
            self._cache.remove(CLUSTER, clusters.grpc_cluster_name(destination))

    def _takes_grpc(self, destination: Destination) -> bool:
        nodes = (*destination.nodes, *destination.instead)
        return bool(destination.nodes) and self._http2.issuperset(nodes)

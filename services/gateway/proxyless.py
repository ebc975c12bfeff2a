"""What gRPC clients without a proxy are told of an app when they ask for its name (gRFC A27, A28, A32). Pure.

A host name is a listener; it leads to the app's routes, they to its cluster, that to the nodes that have it.
Where requests go is the table's to say, as for Envoy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from services.gateway.clusters import is_ip, place
from services.gateway.routes import Destination
from services.gateway.table import RoutingTable
from services.gateway.xds.cache import CLUSTER, ENDPOINTS, LISTENER, ROUTES
from services.gateway.xds.messages import parsed, typed
from services.gateway.xds.on_demand import OnDemandCache

CANARY = "/canary"
"""Behind an app's name: the cluster of a version on trial. It is always there: nobody must wait for it."""
LONGEST_HOST = 253
MOST_ADDRESSES = 16
"""Of one node that is known by a name."""

Lookup = Callable[[str], Sequence[str] | None]
"""Returns the IP addresses of a host name as last looked up; None while that has not been done yet."""

_HCM = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = "envoy.extensions.filters.http.router.v3.Router"
_ADS = {"ads": {}, "resource_api_version": "V3"}


class ProxylessApps:
    """Keeps what gRPC clients have asked for true to the table. Belongs to the table's loop."""

    def __init__(self, table: RoutingTable, lookup: Lookup) -> None:
        self._table = table
        self._lookup = lookup
        self.cache = OnDemandCache(self._make, _topics)
        table.follow(self)

    def hosts(self) -> set[str]:
        """Return the host names of nodes to which clients are led now."""
        return {host for _, host in self._led_to() if not is_ip(host)}

    # --- what changes ---

    def app_changed(self, name: str) -> None:
        """Take note that an app is somewhere else, has other limits, or has come or gone."""
        for kind in (CLUSTER, ENDPOINTS, ROUTES):
            self.cache.changed(kind, name)

    def name_changed(self, host: str) -> None:
        """Take note that a host name may lead to another app, or that its app may have come or gone."""
        self.cache.changed(LISTENER, host)

    def node_changed(self, name: str) -> None:
        """Take note that a node has another address."""
        for cluster in list(self.cache.followed(ENDPOINTS)):
            if name in self._nodes(cluster):
                self.cache.changed(ENDPOINTS, app_of(cluster))

    def host_changed(self, host: str) -> None:
        """Take note that a host name of a node has other addresses."""
        for cluster in {cluster for cluster, it in self._led_to() if it == host}:
            self.cache.changed(ENDPOINTS, app_of(cluster))

    def _led_to(self) -> Iterator[tuple[str, str]]:
        """Yield each cluster that is followed with the hosts of its nodes."""
        for cluster in list(self.cache.followed(ENDPOINTS)):
            for node in self._nodes(cluster):
                if address := self._table.grpc_address(node):
                    yield cluster, place(address)["address"]

    # --- what is told ---

    def _make(self, kind: str, name: str) -> Any | None:
        if kind == LISTENER:
            app = self._find(name)
            return None if app is None or self._table.destination(app) is None else listener(name, app)
        destination = self._table.destination(app_of(name))
        if destination is None:
            return None
        if kind == ROUTES:
            return routes(name, destination)
        nodes = self._nodes(name)
        if kind == CLUSTER:
            return cluster(name, self._table.bound(app_of(name)) * max(1, len(nodes)))
        return self._endpoints(name, nodes)

    def _find(self, asked: str) -> str | None:
        """Return the app to which a host name leads: its own name or domain, or a wildcard right above."""
        found = (self._table.app_at(key) for key in _keys(asked))
        return next((app for app in found if app is not None), None)

    def _nodes(self, cluster: str) -> tuple[str, ...]:
        """Return the nodes of an app, or of its version on trial; without one, of the app."""
        destination = self._table.destination(app_of(cluster))
        if destination is None:
            return ()
        on_trial = destination.shared if cluster.endswith(CANARY) else None
        return (on_trial or destination).nodes

    def _endpoints(self, name: str, nodes: tuple[str, ...]) -> Any | None:
        # None twice, as of nodes whose names are one address's: clients refuse the whole.
        places: dict[tuple[str, int], dict[str, Any]] = {}
        unknown = False
        for address in filter(None, map(self._table.grpc_address, nodes)):
            at = place(address)
            found = (at["address"],) if is_ip(at["address"]) else self._lookup(at["address"])
            unknown |= found is None
            for one in (found or ())[:MOST_ADDRESSES]:
                places[one, at["port_value"]] = {**at, "address": one}
        # A client that is told of nobody fails its calls at once: it had better wait for what is found soon.
        return None if unknown and not places else endpoints(name, list(places.values()))


def app_of(name: str) -> str:
    """Return the app of a cluster or of routes."""
    return name.removesuffix(CANARY)


def _topics(kind: str, name: str) -> tuple[str, ...]:
    return _keys(name) if kind == LISTENER else (app_of(name),)


def _keys(asked: str) -> tuple[str, ...]:
    """Return the names by which a listener's app may be found: a port and upper case mean nothing."""
    host, colon, port = asked.rpartition(":")
    host = (host if colon and port.isdigit() else asked).lower().removesuffix(".")
    if not host or len(host) > LONGEST_HOST or "*" in host:
        return ()
    _, dot, above = host.partition(".")
    return (host, f"*.{above}") if dot else (host,)


def listener(name: str, app: str) -> Any:
    """Return what is told of a host name: the app's routes. It changes only with the app behind the name."""
    manager = typed(
        _HCM,
        rds={"route_config_name": app, "config_source": _ADS},
        http_filters=[{"name": "router", "typed_config": typed(_ROUTER)}],
    )
    return parsed(LISTENER, {"name": name, "api_listener": {"api_listener": manager}})


def routes(app: str, destination: Destination) -> Any:
    """Return an app's routes: its cluster, or by header and weight that of its version on trial."""
    # What fails before it was sent is repeated by gRPC itself; of what was sent nobody can know.
    limit = {"max_stream_duration": {"max_stream_duration": f"{destination.timeout}s"}}
    most: dict[str, Any] = {"cluster": app}
    rules: list[dict[str, Any]] = []
    share = destination.share
    if share is not None:
        new = app + CANARY
        if share.weight:
            parts = ((new, share.weight), (app, 100 - share.weight))
            clusters = [{"name": name, "weight": weight} for name, weight in parts]
            most = {"weighted_clusters": {"clusters": clusters}}
        if share.header is not None:
            name, value = share.header
            has = {"name": name.lower(), "string_match": {"exact": value}}
            rules.append({"match": {"prefix": "", "headers": [has]}, "route": {"cluster": new, **limit}})
    rules.append({"match": {"prefix": ""}, "route": {**most, **limit}})
    host = {"name": "all", "domains": ["*"], "routes": rules}
    return parsed(ROUTES, {"name": app, "virtual_hosts": [host]})


def cluster(name: str, bound: int) -> Any:
    """Return an app's cluster: its replicas by turns, at most so many calls of one client at a time."""
    return parsed(
        CLUSTER,
        {
            "name": name,
            "type": "EDS",
            "eds_cluster_config": {"eds_config": _ADS},
            "lb_policy": "ROUND_ROBIN",
            "circuit_breakers": {"thresholds": [{"max_requests": bound}]},
        },
    )


def endpoints(name: str, places: Sequence[dict[str, Any]]) -> Any:
    """Return where a cluster is, by IP addresses and ports; nowhere if there are none."""
    locality = {
        "locality": {"sub_zone": "apps"},
        "load_balancing_weight": 1,
        "lb_endpoints": [
            {
                "endpoint": {"address": {"socket_address": it}},
                "health_status": "HEALTHY",
                "load_balancing_weight": 1,
            }
            for it in places
        ],
    }
    return parsed(ENDPOINTS, {"cluster_name": name, "endpoints": [locality] if places else []})

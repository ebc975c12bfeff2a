"""Where each app's requests go, by what the control plane tells, and what of that changes for Envoy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition, Instance, Limits
from services.gateway import resources
from services.gateway.canary import Share
from services.gateway.routes import Destination, destination_of, timeout_of
from services.gateway.table import RoutingTable
from services.gateway.xds.cache import CLUSTER, ROUTES, SCOPE, ResourceCache
from services.gateway.xds.messages import message

NODE = "environments/e/nodes/{}"
N1, N2, N3 = (NODE.format(f"n{number}") for number in (1, 2, 3))

S = Instance.State
RUNNING, IDLE, STARTING, PENDING, STOPPING, STOPPED, FAILED, DELETING = (
    S.RUNNING, S.IDLE, S.STARTING, S.PENDING, S.STOPPING, S.STOPPED, S.FAILED, S.DELETING,
)  # fmt: skip
HEALTHY, UNHEALTHY, UNKNOWN = Instance.Health.HEALTHY, Instance.Health.UNHEALTHY, Instance.Health.UNKNOWN


def instance(node: str, epoch: int, state: Any = RUNNING, health: Any = HEALTHY) -> Instance:
    return Instance(name=f"apps/a/instances/e{epoch}", node=node, epoch=epoch, state=state, health=health)


def app(name: str = "shop", instances: Iterable[Instance] = (), **fields: Any) -> App:
    return App(name=f"apps/{name}", instances=instances, **{"state": RUNNING, **fields})


@pytest.mark.parametrize(
    ("instances", "fields", "nodes"),
    [
        ([instance(N1, 1)], {}, (N1,)),
        ([instance(N1, 1, IDLE, UNKNOWN)], {}, (N1,)),
        # A move or an update: the one before serves until the next is ready, then the next one.
        ([instance(N1, 1), instance(N2, 2, STARTING, UNKNOWN)], {}, (N1,)),
        ([instance(N1, 1), instance(N2, 2)], {}, (N2,)),
        ([instance(N1, 1, STOPPING), instance(N2, 2)], {}, (N2,)),
        ([instance(N1, 1), instance(N2, 2, FAILED)], {}, (N1,)),
        # A failover: the new one holds requests while it starts; without one the silent node is still asked.
        ([instance(N1, 1, RUNNING, UNKNOWN)], {}, (N1,)),
        ([instance(N1, 1, RUNNING, UNKNOWN), instance(N2, 2, STARTING, UNKNOWN)], {}, (N2,)),
        ([instance(N1, 1, RUNNING, UNKNOWN), instance(N2, 2)], {}, (N2,)),
        # Its node tells more of a failure, or of an end, than the gateway could.
        ([instance(N1, 1, FAILED)], {"state": FAILED}, (N1,)),
        ([instance(N1, 1, STOPPED)], {"state": STOPPED}, (N1,)),
        ([instance(N1, 1, STOPPING)], {"state": STOPPING}, (N1,)),
        # Several replicas: all that are ready, those that are being replaced too.
        ([instance(N2, 2), instance(N1, 1)], {"replicas": 2}, (N1, N2)),
        ([instance(N1, 1), instance(N2, 2, STARTING)], {"replicas": 2}, (N1,)),
        ([instance(N1, 1), instance(N2, 2), instance(N3, 3)], {"replicas": 2}, (N1, N2, N3)),
        ([instance(N1, 1, STOPPING), instance(N2, 2), instance(N3, 3)], {"replicas": 2}, (N2, N3)),
        ([instance(N1, 1), instance(N2, 2)], {"replicas": 1, "target_replicas": 2}, (N1, N2)),
        ([instance(N1, 1), instance(N1, 2)], {"replicas": 2}, (N1,)),
        # One that fails its probe is left out while another answers.
        ([instance(N1, 1, health=UNHEALTHY), instance(N2, 2)], {"replicas": 2}, (N2,)),
        ([instance(N1, 1, health=UNHEALTHY), instance(N2, 2, health=UNHEALTHY)], {"replicas": 2}, (N1, N2)),
        ([instance(N1, 1, health=UNHEALTHY)], {}, (N1,)),
    ],
)
def test_requests_go_to_the_newest_instances_that_are_ready(
    instances: list[Instance], fields: dict[str, Any], nodes: tuple[str, ...]
) -> None:
    found = destination_of(app(instances=instances, **fields))
    assert found == (
        Destination(nodes)
        if not fields.get("replicas")
        else Destination(nodes, own="apps/shop", bound=len(nodes) * (64 + 128))
    )


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"state": PENDING}, "NO_NODE_AVAILABLE"),
        ({"state": FAILED, "conditions": [Condition(type="Ready", reason="DATA_MISSING")]}, "DATA_MISSING"),
        ({"state": FAILED, "conditions": [Condition(type="Ready", reason="<script>")]}, "NO_NODE_AVAILABLE"),
        ({"state": STOPPED}, None),
        ({"state": PENDING, "desired_state": App.STOPPED}, None),
        ({"state": DELETING}, None),
    ],
)
def test_an_app_on_no_node_is_told_why_or_is_unknown(fields: dict[str, Any], reason: str | None) -> None:
    found = destination_of(app(**fields))
    assert found == (None if reason is None else Destination(reason=reason))


@pytest.mark.parametrize(
    ("told", "limit"), [(None, 35), (0.01, 15), (10, 15), (10.5, 35), (30, 35), (31, 65), (3600, 3605)]
)
def test_the_gateways_time_limit_is_a_little_above_the_apps(told: float | None, limit: int) -> None:
    limits = Limits()
    if told is not None:
        limits.request_timeout.CopyFrom(Duration(seconds=int(told), nanos=int(told % 1 * 1e9)))
    assert timeout_of(app(limits=limits)) == limit


class Told:
    """The resources that changed since they were last asked for."""

    def __init__(self, cache: ResourceCache) -> None:
        self._changed: list[tuple[str, str]] = []
        cache.open()
        cache.follow(lambda kind, name: self._changed.append((kind.rpartition(".")[2], name)))

    def __call__(self) -> list[tuple[str, str]]:
        changed, self._changed = self._changed, []
        return changed


@pytest.fixture
def cache() -> ResourceCache:
    return ResourceCache()


@pytest.fixture
def table(cache: ResourceCache) -> RoutingTable:
    table = RoutingTable(cache)
    for node in (N1, N2):
        table.put_node(Node(name=node, http_address="10.0.0.1:8080"))
    return table


def scopes(cache: ResourceCache) -> dict[str, str]:
    """Return the routes that each name leads to."""
    found = {}
    for name, resource in cache.of(SCOPE).items():
        if not name.startswith("k:"):
            content = message(SCOPE).FromString(resource.value)
            assert content.name == content.key.fragments[0].string_key == name
            assert resource.needs == content.route_configuration_name
            found[name] = resource.needs
    return found


def test_a_node_is_reachable_before_its_first_app(cache: ResourceCache, table: RoutingTable) -> None:
    assert sorted(cache.of(CLUSTER)) == [N1, N2]
    assert sorted(cache.of(ROUTES)) == [f"{N1}/35s", f"{N2}/35s"]
    assert sorted(cache.of(SCOPE)) == [f"k:{N1}/35s", f"k:{N2}/35s"]


def test_an_app_is_one_scope_for_each_of_its_names(cache: ResourceCache, table: RoutingTable) -> None:
    table.put_app(app(instances=[instance(N1, 1)], domains=["b.example.com", "A.example.com"]))
    assert scopes(cache) == dict.fromkeys(("shop.localhost", "a.example.com", "b.example.com"), f"{N1}/35s")


def test_a_domain_tells_its_app_which_an_own_name_does_by_itself(table: RoutingTable) -> None:
    table.put_app(app(instances=[instance(N1, 1)], domains=["b.example.com", "A.example.com"]))
    table.put_app(app("blog", [instance(N1, 1)], domains=["c.blog.localhost"]))
    assert dict(table.domains()) == {
        "a.example.com": "shop", "b.example.com": "shop", "c.blog.localhost": "blog",
    }  # fmt: skip
    table.remove_app("apps/shop")
    assert dict(table.domains()) == {"c.blog.localhost": "blog"}


def test_a_move_changes_the_apps_scope_and_nothing_else(cache: ResourceCache, table: RoutingTable) -> None:
    table.put_app(app("blog", [instance(N1, 1)]))
    table.put_app(app("shop", [instance(N1, 1)]))
    told = Told(cache)
    table.put_app(app("shop", [instance(N1, 1), instance(N2, 2, STARTING)]))
    assert told() == []
    table.put_app(app("shop", [instance(N1, 1), instance(N2, 2)]))
    assert told() == [("ScopedRouteConfiguration", "shop.localhost")]
    assert scopes(cache) == {"blog.localhost": f"{N1}/35s", "shop.localhost": f"{N2}/35s"}


def test_what_apps_share_is_there_while_one_of_them_needs_it(
    cache: ResourceCache, table: RoutingTable
) -> None:
    told = Told(cache)
    slow = Limits(request_timeout=Duration(seconds=60))
    for name in ("blog", "shop"):
        table.put_app(app(name, [instance(N1, 1)], limits=slow))
    assert told() == [
        ("RouteConfiguration", f"{N1}/65s"),
        ("ScopedRouteConfiguration", f"k:{N1}/65s"),
        ("ScopedRouteConfiguration", "blog.localhost"),
        ("ScopedRouteConfiguration", "shop.localhost"),
    ]
    table.remove_app("apps/blog")
    assert f"{N1}/65s" in cache.of(ROUTES)
    table.remove_app("apps/shop")
    assert sorted(cache.of(ROUTES)) == [f"{N1}/35s", f"{N2}/35s"]
    assert scopes(cache) == {}


def test_an_app_with_copies_on_several_nodes_has_a_cluster_of_its_own(
    cache: ResourceCache, table: RoutingTable
) -> None:
    table.put_node(Node(name=N2, http_address="10.0.0.2:8080"))
    limits = Limits(max_concurrent_requests=10, max_queued_requests=0)
    copies = [instance(N1, 1), instance(N2, 2)]
    table.put_app(app(instances=copies, replicas=2, limits=limits))
    assert scopes(cache) == {"shop.localhost": "apps/shop/35s"}
    assert addresses(cache, "apps/shop") == ["10.0.0.1:8080", "10.0.0.2:8080"]
    assert bounds(cache, "apps/shop") == {"DEFAULT": 20, "HIGH": 8192}
    own = message(CLUSTER).FromString(cache.of(CLUSTER)["apps/shop"].value).outlier_detection
    assert (own.consecutive_5xx.value, own.max_ejection_percent.value) == (10, 50)
    # Another copy changes its cluster in place, and not its name's scope.
    told = Told(cache)
    table.put_node(Node(name=N3, http_address="10.0.0.3:8080"))
    told()
    table.put_app(app(instances=[*copies, instance(N3, 3)], replicas=3, limits=limits))
    assert told() == [("Cluster", "apps/shop")]
    assert bounds(cache, "apps/shop")["DEFAULT"] == 30
    # What is tried again while the other is lost finds its cluster, and the one that is left in it.
    table.put_app(app(instances=[instance(N1, 1), instance(N2, 2, FAILED)], replicas=2))
    assert addresses(cache, "apps/shop") == ["10.0.0.1:8080"]
    assert scopes(cache) == {"shop.localhost": "apps/shop/35s"}
    table.put_app(app(instances=[instance(N1, 1)], replicas=1))
    assert sorted(cache.of(CLUSTER)) == [N1, N2, N3]
    assert scopes(cache) == {"shop.localhost": f"{N1}/35s"}


def test_an_app_that_could_fill_its_nodes_share_has_a_bound_of_its_own(
    cache: ResourceCache, table: RoutingTable
) -> None:
    table.put_app(app("large", [instance(N1, 1)], limits=Limits(max_concurrent_requests=2000)))
    table.put_app(app("small", [instance(N1, 1)]))
    assert bounds(cache, "apps/large") == {"DEFAULT": 2128, "HIGH": 4096}
    assert bounds(cache, N1) == {"DEFAULT": 4096, "HIGH": 4096}
    # Nobody passes judgement on the only one there is by its answers.
    assert message(CLUSTER).FromString(
        cache.of(CLUSTER)["apps/large"].value
    ).outlier_detection.consecutive_5xx.value == 0  # fmt: skip
    table.put_app(app("large", [instance(N2, 2)], limits=Limits(max_concurrent_requests=2000)))
    assert scopes(cache) == {"large.localhost": "apps/large/35s", "small.localhost": f"{N1}/35s"}


def test_what_an_app_was_not_given_goes_to_another_replica_in_any_method() -> None:
    def retried(destination: Destination) -> list[tuple[str, list[str]]]:
        rules = resources.routes(destination).virtual_hosts[0].routes
        policies = [rule.route.retry_policy for rule in rules]
        return [
            (policy.retry_on, [header.string_match.exact for header in policy.retriable_headers])
            for policy in policies
        ]

    unsent = "connect-failure,refused-stream,reset-before-request"
    websocket, repeatable, other = retried(Destination((N1,)))
    assert websocket == repeatable == (
        f"{unsent},reset,retriable-headers", ["INSTANCE_STOPPING", "NODE_DRAINING"],
    )  # fmt: skip
    assert other == (unsent, [])
    _, repeatable, other = retried(Destination((N1, N2), own="apps/shop", bound=1))
    assert repeatable[1] == ["INSTANCE_STOPPING", "NODE_DRAINING", "SERVER_BUSY"]
    assert other == (f"{unsent},retriable-headers", ["NODE_DRAINING", "SERVER_BUSY"])


def test_a_node_that_comes_back_elsewhere_is_found_there(cache: ResourceCache, table: RoutingTable) -> None:
    table.put_app(app(instances=[instance(N1, 1)]))
    told = Told(cache)
    table.put_node(Node(name=N1, http_address="10.0.0.9:80"))
    assert told() == [("Cluster", N1)]
    assert addresses(cache, N1) == ["10.0.0.9:80"]
    table.put_node(Node(name=N1, http_address="node.example.com:80"))
    named = message(CLUSTER).FromString(cache.of(CLUSTER)[N1].value)
    assert (named.type, named.dns_lookup_family) == (named.STRICT_DNS, named.V4_PREFERRED)


def test_a_node_that_is_deleted_leaves_its_last_apps_without_an_address(
    cache: ResourceCache, table: RoutingTable
) -> None:
    table.put_app(app(instances=[instance(N1, 1)]))
    table.remove_node(N1)
    assert addresses(cache, N1) == []
    table.remove_app("apps/shop")
    assert sorted(cache.of(CLUSTER)) == [N2]
    assert sorted(table.nodes) == [N2]


def test_an_app_may_be_told_before_its_node(cache: ResourceCache) -> None:
    table = RoutingTable(cache)
    table.put_app(app(instances=[instance(N1, 1)]))
    assert addresses(cache, N1) == []
    table.put_node(Node(name=N1, http_address="[::1]:80"))
    assert addresses(cache, N1) == ["::1:80"]


@pytest.mark.parametrize("leaves_first", [True, False])
def test_a_domain_goes_over_to_another_app_in_either_order(
    cache: ResourceCache, table: RoutingTable, leaves_first: bool
) -> None:
    table.put_app(app("old", [instance(N1, 1)], domains=["x.example.com"]))
    told = Told(cache)
    changes = [
        app("old", [instance(N1, 1)]),
        app("new", [instance(N2, 1)], domains=["x.example.com"]),
    ]
    for change in changes if leaves_first else reversed(changes):
        table.put_app(change)
    assert scopes(cache)["x.example.com"] == f"{N2}/35s"
    assert {name for _, name in told()} == {"x.example.com", "new.localhost"}


def test_a_stopped_app_is_as_one_that_is_not_there(cache: ResourceCache, table: RoutingTable) -> None:
    table.put_app(app(instances=[instance(N1, 1)], domains=["x.example.com"]))
    table.put_app(app(state=STOPPED, domains=["x.example.com"]))
    assert scopes(cache) == {}
    assert list(table.apps) == ["apps/shop"]


def addresses(cache: ResourceCache, cluster: str) -> list[str]:
    content = message(CLUSTER).FromString(cache.of(CLUSTER)[cluster].value)
    places = [it.endpoint.address.socket_address for it in content.load_assignment.endpoints[0].lb_endpoints]
    return [f"{place.address}:{place.port_value}" for place in places]


def bounds(cache: ResourceCache, cluster: str) -> dict[str, int]:
    """Return the requests at a time that a cluster takes, by priority."""
    content = message(CLUSTER).FromString(cache.of(CLUSTER)[cluster].value)
    names = {0: "DEFAULT", 1: "HIGH"}
    return {names[one.priority]: one.max_requests.value for one in content.circuit_breakers.thresholds}


def test_no_domain_stands_before_an_apps_own_name(cache: ResourceCache) -> None:
    table = RoutingTable(cache, ("localhost", "apps.example.com"))
    theirs = ["shop.localhost", "shop.apps.example.com", "a.shop.localhost"]
    table.put_app(app("shop", [instance(N1, 1)]))
    table.put_app(app("blog", [instance(N2, 1)], domains=theirs))
    found = scopes(cache)
    assert found["shop.localhost"] == found["shop.apps.example.com"] == f"{N1}/35s"
    assert found["a.shop.localhost"] == found["blog.apps.example.com"] == f"{N2}/35s"
    assert len(found) == 5


def test_calls_of_grpc_go_over_http_2_where_every_node_speaks_it(
    cache: ResourceCache, table: RoutingTable
) -> None:
    def told(name: str) -> list[str]:
        """Return the clusters of the rules for calls of gRPC among an app's routes."""
        content = message(ROUTES).FromString(cache.of(ROUTES)[f"{name}/35s"].value)
        rules = content.virtual_hosts[0].routes
        assert all("grpc" in rule.typed_per_filter_config for rule in rules if rule.match.HasField("grpc"))
        return [rule.route.cluster for rule in rules if rule.match.HasField("grpc")]

    def node(name: str, *, speaks: bool) -> None:
        table.put_node(Node(name=name, http_address="10.0.0.1:8080", serves_http2=speaks))

    table.put_app(app(instances=[instance(N1, 1), instance(N2, 2)], replicas=2))
    assert (told(N1), told("apps/shop")) == ([], [])
    node(N1, speaks=True)
    assert (told(N1), told("apps/shop")) == ([f"{N1}/grpc"], [])
    node(N2, speaks=True)
    assert told("apps/shop") == ["apps/shop/grpc"]
    calls = message(CLUSTER).FromString(cache.of(CLUSTER)["apps/shop/grpc"].value)
    assert len(calls.load_assignment.endpoints[0].lb_endpoints) == 2
    # One of an earlier version again: its cluster goes after the routes that lead to it.
    changes = Told(cache)
    node(N2, speaks=False)
    assert (told(N2), told("apps/shop")) == ([], [])
    assert {f"{N1}/grpc"} == {name for name in cache.of(CLUSTER) if name.endswith("/grpc")}
    kinds = [kind for kind, name in changes() if name.startswith("apps/shop")]
    assert kinds == ["RouteConfiguration", "Cluster"]
    # Also where it is one that is asked only when the others are not reached.
    kept = Destination((N1,), own="apps/kept", bound=7, instead=(N3,))
    table._acquire(kept)
    assert told("apps/kept") == []
    node(N3, speaks=True)
    assert told("apps/kept") == ["apps/kept/grpc"]
    node(N3, speaks=False)
    # Before its node is known an app may be.
    table.put_app(app("early", [instance(N3, 1)]))
    node(N3, speaks=True)
    assert told(N3) == [f"{N3}/grpc"]


def test_a_version_on_trial_has_its_share_of_the_calls_of_grpc(table: RoutingTable) -> None:
    share = Share((N2,), 20)
    to = replace(Destination((N1,)), share=share, shared=Destination((N2,)))
    rule, *_ = resources.routes(to, http2=True).virtual_hosts[0].routes
    assert rule.match.HasField("grpc")
    parts = {part.name: part.weight.value for part in rule.route.weighted_clusters.clusters}
    assert parts == {f"{N2}/grpc": 20, f"{N1}/grpc": 80}

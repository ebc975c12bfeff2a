"""A version on trial gets its share of an app's requests, in Envoy's words."""

from __future__ import annotations

import re
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from appsupervisor.catalog.v1.app_catalog_pb2 import App, Canary, CanaryPolicy, Rollout
from appsupervisor.fleet.v1.fleet_pb2 import Node
from services.gateway.canary import Share
from services.gateway.routes import Destination, destination_of
from services.gateway.table import RoutingTable
from services.gateway.xds.cache import CLUSTER, ROUTES, SCOPE, ResourceCache
from services.gateway.xds.messages import message
from tests.unit.gateway.test_table import FAILED, N1, N2, N3, RUNNING, STARTING, app, instance, scopes

TRIAL = "apps/shop/canary"
HEADER = CanaryPolicy.Header(name="x-try", value="yes")


def tried(
    state: Any = Canary.ANALYZING, nodes: tuple[str, ...] = (N1,), of_first: Any = RUNNING, **policy: Any
) -> App:
    return app(
        instances=[instance(N1, 4, of_first), instance(N2, 2), instance(N3, 3)],
        replicas=3,
        canary=Canary(state=state, nodes=nodes, generation=2, epoch=1),
        rollout=Rollout(canary=CanaryPolicy(**policy)),
    )


@pytest.mark.parametrize(
    ("told", "nodes", "share"),
    [
        (tried(weight_percent=10), (N2, N3), Share((N1,), 10)),
        (tried(weight_percent=10, sticky=True), (N2, N3), Share((N1,), 10, sticky="canary-shop=2.1")),
        (tried(weight_percent=10, header=HEADER), (N2, N3), Share((N1,), 10, ("x-try", "yes"))),
        (tried(header=HEADER, sticky=True), (N2, N3), Share((N1,), 0, ("x-try", "yes"))),
        (tried(nodes=(N1, N2), weight_percent=50), (N3,), Share((N1, N2), 50)),
        # What is not ready gets nothing, and what is the only one gets all.
        (tried(of_first=STARTING, weight_percent=10), (N2, N3), None),
        (tried(of_first=FAILED, weight_percent=10), (N2, N3), None),
        (tried(nodes=(N1, N2, N3), weight_percent=10), (N1, N2, N3), None),
        # Given up, it is not asked; promoted, it is as the others.
        (tried(Canary.REVERTED, weight_percent=10), (N2, N3), None),
        (tried(Canary.REVERTED, nodes=(), weight_percent=10), (N1, N2, N3), None),
        (tried(Canary.PROMOTED, nodes=(), weight_percent=10), (N1, N2, N3), None),
    ],
)
def test_a_version_on_trial_gets_its_share(told: App, nodes: tuple[str, ...], share: Share | None) -> None:
    found = destination_of(told)
    assert found is not None
    assert (found.nodes, found.share) == (nodes, share)


def only(state: Any = Canary.ANALYZING, nodes: tuple[str, ...] = (N2,), of_new: Any = RUNNING) -> App:
    return app(
        instances=[instance(N1, 1), instance(N2, 2, of_new)],
        canary=Canary(state=state, nodes=nodes, generation=2, epoch=1),
        rollout=Rollout(canary=CanaryPolicy(weight_percent=10)),
    )


@pytest.mark.parametrize(
    ("told", "nodes", "share"),
    [
        (only(), (N1,), Share((N2,), 10)),
        (only(of_new=STARTING), (N1,), None),
        (only(Canary.REVERTED), (N1,), None),
        (only(Canary.PROMOTED, nodes=()), (N2,), None),
    ],
)
def test_beside_an_only_replica_it_gets_its_share(
    told: App, nodes: tuple[str, ...], share: Share | None
) -> None:
    found = destination_of(told)
    assert found is not None
    assert (found.nodes, found.share) == (nodes, share)


def test_an_only_replica_that_moves_while_another_is_tried_is_asked_where_it_is_newer() -> None:
    told = only()
    told.instances.append(instance(N3, 3))
    found = destination_of(told)
    assert found is not None
    assert (found.nodes, found.share) == ((N3,), Share((N2,), 10))


@pytest.fixture
def cache() -> ResourceCache:
    return ResourceCache()


@pytest.fixture
def table(cache: ResourceCache) -> RoutingTable:
    table = RoutingTable(cache)
    for node in (N1, N2, N3):
        table.put_node(Node(name=node, http_address="10.0.0.1:8080"))
    return table


def rules(cache: ResourceCache) -> list[dict[str, Any]]:
    """Return the routes that the app's own name leads to."""
    told = message(ROUTES).FromString(cache.of(ROUTES)[scopes(cache)["shop.localhost"]].value)
    return [MessageToDict(it)["route"] for it in told.virtual_hosts[0].routes]


def test_its_share_is_told_by_weight_and_taken_away_with_it(
    cache: ResourceCache, table: RoutingTable
) -> None:
    before = {kind: set(cache.of(kind)) for kind in (CLUSTER, ROUTES, SCOPE)}
    table.put_app(tried(weight_percent=10))
    for route in rules(cache):
        parts = {it["name"]: it["weight"] for it in route["weightedClusters"]["clusters"]}
        assert list(parts.values()) == [10, 90]
        assert next(iter(parts)) == TRIAL
        assert set(parts) <= set(cache.of(CLUSTER)), "a cluster that is not there"
    table.put_app(tried(nodes=(N1, N2), weight_percent=50))
    assert len(rules(cache)) > 0
    table.remove_app("apps/shop")
    assert {kind: set(cache.of(kind)) for kind in before} == before


def ranks(cache: ResourceCache) -> list[list[int]]:
    """Return the ports that are asked on the share's behalf, those that are asked first first."""
    told = message(CLUSTER).FromString(cache.of(CLUSTER)[TRIAL].value).load_assignment.endpoints
    assert [it.priority for it in told] == list(range(len(told)))
    return [[one.endpoint.address.socket_address.port_value for one in it.lb_endpoints] for it in told]


def test_what_reaches_nobody_there_has_the_version_before(cache: ResourceCache, table: RoutingTable) -> None:
    for port, node in enumerate((N1, N2, N3), start=1):
        table.put_node(Node(name=node, http_address=f"10.0.0.1:{port}"))
    table.put_app(only())
    assert ranks(cache) == [[2], [1]]
    for route in rules(cache):
        assert route["retryPolicy"]["retryPriority"]["name"] == "envoy.retry_priorities.previous_priorities"
    # Its node's name is looked up before the first request goes there.
    table.put_app(only(of_new=STARTING))
    assert ranks(cache) == [[2], [1]]
    assert {route["cluster"] for route in rules(cache)} == {N1}
    table.put_app(tried(weight_percent=10))
    assert ranks(cache) == [[1], [2, 3]]
    table.remove_node(N1)
    assert ranks(cache) == [[], [2, 3]]
    table.put_app(only(Canary.REVERTED))
    assert TRIAL not in cache.of(CLUSTER)


def test_what_has_the_header_goes_there_before_the_rest_is_shared(
    cache: ResourceCache, table: RoutingTable
) -> None:
    table.put_app(tried(header=HEADER))
    found = rules(cache)
    clusters = [route["cluster"] for route in found]
    half = len(found) // 2
    assert set(clusters[:half]) == {TRIAL}
    assert TRIAL not in clusters[half:]
    told = message(ROUTES).FromString(cache.of(ROUTES)[scopes(cache)["shop.localhost"]].value)
    for route in told.virtual_hosts[0].routes[:half]:
        assert any(it.name == "x-try" and it.string_match.exact == "yes" for it in route.match.headers)


def test_a_client_stays_with_the_version_that_it_met_first(cache: ResourceCache, table: RoutingTable) -> None:
    table.put_app(tried(weight_percent=10, sticky=True))
    told = message(ROUTES).FromString(cache.of(ROUTES)[scopes(cache)["shop.localhost"]].value)
    to: dict[str, set[str]] = {"new": set(), "old": set()}
    for route in told.virtual_hosts[0].routes:
        for part in route.route.weighted_clusters.clusters:
            cookie = part.response_headers_to_add[0].header.value.partition(";")[0]
            assert cookie.startswith("canary-shop=2.1-")
            to[cookie[-3:]].add(part.name)
    for route in told.virtual_hosts[0].routes:
        for it in route.match.headers:
            if it.name == "cookie":
                (which,) = (
                    which
                    for which in to
                    if re.fullmatch(it.string_match.safe_regex.regex, f"a=b; canary-shop=2.1-{which}; c=d")
                )
                assert to[which] == {route.route.cluster}
                assert not re.fullmatch(it.string_match.safe_regex.regex, f"xcanary-shop=2.1-{which}")
                assert not re.fullmatch(it.string_match.safe_regex.regex, f"canary-shop=2.11-{which}")
    assert to["new"] == {TRIAL}


def test_apps_that_are_not_tried_share_what_they_did() -> None:
    assert destination_of(app(instances=[instance(N1, 1)])) == Destination((N1,))

"""What a gRPC client without a proxy is told of an app, by what the control plane tells."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from appsupervisor.catalog.v1.app_catalog_pb2 import Canary
from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1.runtime_environment_pb2 import Limits
from services.gateway.bootstrap import grpc_bootstrap, main
from services.gateway.proxyless import ProxylessApps
from services.gateway.table import RoutingTable
from services.gateway.xds.cache import CLUSTER, ENDPOINTS, KINDS, LISTENER, ROUTES, ResourceCache
from services.gateway.xds.messages import message
from tests.unit.gateway.test_canary import HEADER, tried
from tests.unit.gateway.test_table import FAILED, IDLE, N1, N2, N3, STOPPED, app, instance

AT = {N1: "10.0.0.1:8080", N2: "10.0.0.2:8080", N3: "node-3.example.com:8080"}


class Asked:
    """A table of two nodes by address and one by name, and somebody who follows what he asks for."""

    def __init__(self) -> None:
        self.envoys = ResourceCache()
        self.table = RoutingTable(self.envoys, ("localhost", "apps.example.com"))
        self.found: dict[str, tuple[str, ...]] = {}
        self.apps = ProxylessApps(self.table, self.found.get)
        self.changes: list[tuple[str, str]] = []
        self.apps.cache.open()
        for node, address in AT.items():
            self.table.put_node(Node(name=node, http_address=address, serves_http2=True))

    def _changed(self, kind: str, name: str) -> None:
        self.changes.append((kind, name))

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """Return a resource as JSON, and follow it."""
        self.apps.cache.follow(kind, name, self._changed)
        found = self.apps.cache.get(kind, name)
        return None if found is None else MessageToDict(message(kind).FromString(found.value))

    def leads_to(self, host: str) -> str:
        found = self.get(LISTENER, host)
        if found is None:
            return ""
        assert found["name"] == host
        return str(found["apiListener"]["apiListener"]["rds"]["routeConfigName"])

    def routes(self, name: str = "apps/shop") -> list[dict[str, Any]]:
        found = self.get(ROUTES, name)
        assert found is not None
        (host,) = found["virtualHosts"]
        assert host["domains"] == ["*"]
        return list(host["routes"])

    def places(self, name: str = "apps/shop") -> list[str] | None:
        found = self.get(ENDPOINTS, name)
        if found is None:
            return None
        assert found["clusterName"] == name
        (locality,) = found.get("endpoints") or [{"lbEndpoints": [], "loadBalancingWeight": 1}]
        assert locality["loadBalancingWeight"] == 1
        places = [one["endpoint"]["address"]["socketAddress"] for one in locality["lbEndpoints"]]
        return [f"{place['address']}:{place['portValue']}" for place in places]


@pytest.fixture
def asked() -> Asked:
    return Asked()


def test_a_listener_is_found_by_name_domain_and_wildcard_as_envoy_finds_it(asked: Asked) -> None:
    asked.table.put_app(app(instances=[instance(N1, 1)], domains=["shop.example.com", "*.shop.example.com"]))
    found = {
        host: asked.leads_to(host)
        for host in (
            "shop.localhost", "shop.apps.example.com", "shop.example.com", "eu.shop.example.com",
            "Shop.Example.com.", "shop.localhost:50051", "a.eu.shop.example.com", "other.localhost",
            "*.shop.example.com", "shop", "10.0.0.1", "", f"{'x' * 300}.shop.example.com",
        )
    }  # fmt: skip
    assert list(found.values()) == ["apps/shop"] * 6 + [""] * 7


def test_an_app_has_routes_a_cluster_and_endpoints_under_its_own_name(asked: Asked) -> None:
    told = app(instances=[instance(N1, 1)], limits=Limits(max_concurrent_requests=5, max_queued_requests=2))
    asked.table.put_app(told)
    (rule,) = asked.routes()
    assert rule["route"] == {
        "cluster": "apps/shop",
        "maxStreamDuration": {"maxStreamDuration": "35s"},
    }
    cluster = asked.get(CLUSTER, "apps/shop")
    assert cluster is not None
    assert cluster["type"] == "EDS"
    assert cluster["circuitBreakers"] == {"thresholds": [{"maxRequests": 7}]}
    assert asked.places() == ["10.0.0.1:8080"]
    # Two replicas take twice as much, by turns.
    told.instances.append(instance(N2, 2))
    told.replicas = 2
    asked.table.put_app(told)
    cluster = asked.get(CLUSTER, "apps/shop")
    assert cluster is not None
    assert cluster["circuitBreakers"] == {"thresholds": [{"maxRequests": 14}]}
    assert asked.places() == ["10.0.0.1:8080", "10.0.0.2:8080"]


def test_a_move_changes_endpoints_and_what_nobody_follows_costs_nothing(asked: Asked) -> None:
    asked.table.put_app(app(instances=[instance(N1, 1)]))
    asked.table.put_app(app("wiki", instances=[instance(N1, 1)]))
    before = [asked.get(kind, "apps/shop") for kind in (CLUSTER, ROUTES)] + [asked.leads_to("shop.localhost")]
    asked.places()
    asked.table.put_app(app("wiki", instances=[instance(N2, 2)]))
    assert asked.changes == []
    asked.table.put_app(app(instances=[instance(N2, 2)]))
    assert (ENDPOINTS, "apps/shop") in asked.changes
    assert asked.places() == ["10.0.0.2:8080"]
    after = [asked.get(kind, "apps/shop") for kind in (CLUSTER, ROUTES)] + [asked.leads_to("shop.localhost")]
    assert after == before


def test_an_app_that_sleeps_is_asked_at_its_node_which_wakes_it(asked: Asked) -> None:
    asked.table.put_app(app(instances=[instance(N2, 1, IDLE)]))
    assert asked.places() == ["10.0.0.2:8080"]


def test_an_app_without_a_node_is_nowhere_and_one_that_is_stopped_is_not_there(asked: Asked) -> None:
    assert (asked.leads_to("shop.localhost"), asked.places()) == ("", None)
    asked.table.put_app(app(state=FAILED))
    assert (asked.leads_to("shop.localhost"), asked.places()) == ("apps/shop", [])
    asked.table.put_app(app(state=STOPPED))
    gone = [asked.get(kind, "apps/shop") for kind in (CLUSTER, ENDPOINTS, ROUTES)]
    assert (asked.leads_to("shop.localhost"), gone) == ("", [None, None, None])
    asked.table.put_app(app(instances=[instance(N1, 2)]))
    assert (asked.leads_to("shop.localhost"), asked.places()) == ("apps/shop", ["10.0.0.1:8080"])
    asked.table.remove_app("apps/shop")
    assert (asked.leads_to("shop.localhost"), asked.places()) == ("", None)


def test_a_domain_that_goes_over_leads_to_the_other_app_that_is_treated_alike(asked: Asked) -> None:
    domain = ["*.example.com"]
    asked.table.put_app(app("old", instances=[instance(N1, 1)], domains=domain))
    assert asked.leads_to("www.example.com") == "apps/old"
    asked.table.put_app(app("new", instances=[instance(N1, 1)], domains=domain))
    assert asked.changes == [(LISTENER, "www.example.com")]
    assert asked.leads_to("www.example.com") == "apps/new"
    asked.table.put_app(app("newest", instances=[instance(N1, 1)], domains=["www.example.com"]))
    assert asked.leads_to("www.example.com") == "apps/newest"


def test_a_version_on_trial_has_a_cluster_by_weight_and_header(asked: Asked) -> None:
    asked.table.put_app(tried(weight_percent=10, header=HEADER, nodes=(N1,)))
    by_header, rest = asked.routes()
    assert by_header["match"]["headers"] == [{"name": "x-try", "stringMatch": {"exact": "yes"}}]
    assert by_header["route"]["cluster"] == "apps/shop/canary"
    weights = {one["name"]: one["weight"] for one in rest["route"]["weightedClusters"]["clusters"]}
    assert weights == {"apps/shop/canary": 10, "apps/shop": 90}
    asked.found["node-3.example.com"] = ("10.0.0.3",)
    assert asked.places("apps/shop/canary") == ["10.0.0.1:8080"]
    assert asked.places() == ["10.0.0.2:8080", "10.0.0.3:8080"]
    # By header alone, then given up: a client that still has the routes of before is not left alone.
    asked.table.put_app(tried(header=HEADER))
    assert asked.routes()[1]["route"]["cluster"] == "apps/shop"
    asked.table.put_app(tried(Canary.REVERTED, weight_percent=10))
    assert len(asked.routes()) == 1
    assert asked.places("apps/shop/canary") == asked.places() == ["10.0.0.2:8080", "10.0.0.3:8080"]


def test_a_node_with_a_name_is_told_by_its_addresses(asked: Asked) -> None:
    asked.table.put_app(app(instances=[instance(N1, 1), instance(N3, 3)], replicas=2))
    assert asked.places() == ["10.0.0.1:8080"]  # the other one is looked up
    assert asked.apps.hosts() == {"node-3.example.com"}
    asked.found["node-3.example.com"] = ("10.0.0.3", "10.0.0.4")
    asked.apps.host_changed("node-3.example.com")
    assert asked.changes == [(ENDPOINTS, "apps/shop")]
    assert asked.places() == ["10.0.0.1:8080", "10.0.0.3:8080", "10.0.0.4:8080"]
    # Clients refuse what names an address twice.
    asked.found["node-3.example.com"] = ("10.0.0.1", "10.0.0.4")
    asked.apps.host_changed("node-3.example.com")
    assert asked.places() == ["10.0.0.1:8080", "10.0.0.4:8080"]
    asked.table.put_node(Node(name=N3, http_address="[::1]:80", serves_http2=True))
    assert (asked.places(), asked.apps.hosts()) == (["10.0.0.1:8080", "::1:80"], set())
    asked.table.remove_node(N3)
    assert asked.places() == ["10.0.0.1:8080"]


def test_an_app_on_a_node_that_is_looked_up_waits_and_on_one_that_is_not_found_does_not(asked: Asked) -> None:
    asked.table.put_app(app(instances=[instance(N3, 1)]))
    assert asked.places() is None
    asked.found["node-3.example.com"] = ()
    asked.apps.host_changed("node-3.example.com")
    assert asked.places() == []


def test_a_node_of_a_version_before_which_has_no_http2_is_called_by_nobody(asked: Asked) -> None:
    asked.table.put_app(app(instances=[instance(N1, 1), instance(N2, 2)], replicas=2))
    asked.table.put_node(Node(name=N2, http_address=AT[N2]))
    assert asked.places() == ["10.0.0.1:8080"]
    asked.table.put_node(Node(name=N2, http_address=AT[N2], serves_http2=True))
    assert asked.changes == [(ENDPOINTS, "apps/shop")]
    assert asked.places() == ["10.0.0.1:8080", "10.0.0.2:8080"]


def test_envoys_are_told_nothing_of_it(asked: Asked) -> None:
    asked.table.put_app(app(instances=[instance(N1, 1)]))
    before = {kind: set(asked.envoys.of(kind)) for kind in KINDS}
    asked.places()
    asked.leads_to("shop.localhost")
    assert {kind: set(asked.envoys.of(kind)) for kind in KINDS} == before
    assert "apps/shop" not in before[CLUSTER]


def test_the_bootstrap_of_a_client_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["bootstrap", "--grpc", "--node-id", "c", "--xds-address", "[::1]:18000"])
    main()
    assert json.loads(capsys.readouterr().out) == grpc_bootstrap("c", "[::1]:18000")
    assert grpc_bootstrap("c", "one:1,other:2")["xds_servers"] == [
        {"server_uri": address, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}
        for address in ("one:1", "other:2")
    ]

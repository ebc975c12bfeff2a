"""The state-of-the-world protocol with one gRPC client, played by a table of what it says and is told."""

from __future__ import annotations

from typing import Any

import pytest

from services.gateway import proxyless
from services.gateway.routes import Destination
from services.gateway.xds.cache import CLUSTER, ENDPOINTS, LISTENER, ROUTES, SCOPE
from services.gateway.xds.messages import TYPE_PREFIX, message
from services.gateway.xds.on_demand import OnDemandCache
from services.gateway.xds.session import Refusal
from services.gateway.xds.state_session import MOST_NAMES, StateSession
from services.rpc.errors import SupervisorError

HERE, THERE = "10.0.0.1", "10.0.0.2"


class World:
    """What there is, by kind and name; a test changes it and says so."""

    def __init__(self, *, complete: bool = True) -> None:
        self.there: dict[tuple[str, str], Any] = {}
        self.made: list[tuple[str, str]] = []
        self.cache = OnDemandCache(self._make)
        if complete:
            self.cache.open()

    def _make(self, kind: str, name: str) -> Any | None:
        self.made.append((kind, name))
        return self.there.get((kind, name))

    def put(self, kind: str, name: str, content: Any) -> None:
        self.there[kind, name] = content
        self.cache.changed(kind, name)

    def remove(self, kind: str, name: str) -> None:
        del self.there[kind, name]
        self.cache.changed(kind, name)

    def listener(self, host: str, app: str) -> None:
        self.put(LISTENER, host, proxyless.listener(host, app))

    def at(self, app: str, *addresses: str) -> None:
        places = [{"address": address, "port_value": 1} for address in addresses]
        self.put(ENDPOINTS, app, proxyless.endpoints(app, places))


class FakeClient:
    """A client as the protocol sees it: it names all that it wants, and answers each message."""

    def __init__(self, world: World) -> None:
        self.refusals: list[Refusal] = []
        self.woken = 0
        self.session = StateSession(world.cache, self.refusals.append, self._wake)

    def _wake(self) -> None:
        self.woken += 1

    def ask(self, kind: str, *names: str, nonce: str = "", error: str = "", version: str = "") -> None:
        request = message("envoy.service.discovery.v3.DiscoveryRequest")(
            type_url=TYPE_PREFIX + kind,
            resource_names=names,
            response_nonce=nonce,
            version_info=version,
            node={"id": "client-1"},
        )
        if error:
            request.error_detail.message = error
        self.session.receive(request)

    def take(self) -> tuple[Any, str, list[str]]:
        """Return the next message: itself, its kind, the names that it tells."""
        response = self.session.next_response()
        assert response is not None
        kind = response.type_url.removeprefix(TYPE_PREFIX)
        told = [message(kind).FromString(one.value) for one in response.resources]
        return response, kind, [one.cluster_name if kind == ENDPOINTS else one.name for one in told]

    def accept(self, *names: str) -> list[str]:
        """Take the next message, accept it, follow those names from then on, and return what it told."""
        response, kind, told = self.take()
        self.ask(kind, *(names or told), nonce=response.nonce, version=response.version_info)
        return told

    def has_nothing_to_read(self) -> bool:
        return self.session.next_response() is None


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def client(world: World) -> FakeClient:
    return FakeClient(world)


def test_it_is_told_what_it_asks_for_and_nothing_else(world: World, client: FakeClient) -> None:
    for name in ("shop", "wiki"):
        world.listener(name, f"apps/{name}")
        world.at(f"apps/{name}", HERE)
    client.ask(LISTENER, "shop")
    assert client.accept() == ["shop"]
    client.ask(ENDPOINTS, "apps/shop")
    assert client.accept() == ["apps/shop"]
    world.at("apps/wiki", THERE)
    assert client.has_nothing_to_read()
    assert not client.woken
    assert {name for _, name in world.made} == {"shop", "apps/shop"}


def test_nothing_is_told_before_all_is_known() -> None:
    world = World(complete=False)
    client = FakeClient(world)
    world.listener("shop", "apps/shop")
    client.ask(LISTENER, "shop")
    assert client.has_nothing_to_read()
    world.cache.open()
    assert client.woken
    assert client.accept() == ["shop"]


def test_what_is_not_there_is_told_when_it_comes(world: World, client: FakeClient) -> None:
    client.ask(LISTENER, "shop")
    client.ask(ENDPOINTS, "apps/shop")
    assert client.has_nothing_to_read()
    world.listener("shop", "apps/shop")
    world.at("apps/shop", HERE)
    assert client.woken == 2
    assert [client.accept(), client.accept()] == [["apps/shop"], ["shop"]]


def test_a_change_of_endpoints_or_routes_is_one_resource_and_none_of_the_others(
    world: World, client: FakeClient
) -> None:
    names = ("apps/shop", "apps/wiki")
    for name in names:
        world.at(name, HERE)
        world.put(ROUTES, name, proxyless.routes(name, Destination(("n1",))))
    client.ask(ENDPOINTS, *names)
    client.ask(ROUTES, *names)
    assert [client.accept(*names), client.accept(*names)] == [list(names), list(names)]
    world.at("apps/wiki", THERE)
    assert client.accept(*names) == ["apps/wiki"]
    world.put(ROUTES, "apps/shop", proxyless.routes("apps/shop", Destination(("n1",), timeout=65)))
    assert client.accept(*names) == ["apps/shop"]
    world.at("apps/wiki", THERE)
    assert client.has_nothing_to_read()


def test_a_listener_or_cluster_that_is_gone_is_missing_among_all(world: World, client: FakeClient) -> None:
    names = ("shop", "wiki")
    for name in names:
        world.listener(name, f"apps/{name}")
    client.ask(LISTENER, *names)
    assert client.accept(*names) == ["shop", "wiki"]
    world.remove(LISTENER, "shop")
    assert client.accept(*names) == ["wiki"]
    world.remove(LISTENER, "wiki")
    assert client.accept(*names) == []
    world.listener("shop", "apps/other")
    assert client.accept(*names) == ["shop"]


def test_endpoints_that_are_gone_are_told_by_nothing_and_anew_when_they_are_back(
    world: World, client: FakeClient
) -> None:
    world.at("apps/shop", HERE)
    client.ask(ENDPOINTS, "apps/shop")
    assert client.accept() == ["apps/shop"]
    world.remove(ENDPOINTS, "apps/shop")
    assert client.has_nothing_to_read()
    world.at("apps/shop", HERE)
    assert client.accept() == ["apps/shop"]


def test_one_message_of_a_kind_is_under_way_and_the_newest_follows(world: World, client: FakeClient) -> None:
    world.at("apps/shop", HERE)
    client.ask(ENDPOINTS, "apps/shop")
    first, _, _ = client.take()
    for address in (THERE, "10.0.0.3", "10.0.0.4"):
        world.at("apps/shop", address)
        assert client.has_nothing_to_read()
    client.ask(ENDPOINTS, "apps/shop", nonce=first.nonce)
    last, _, _ = client.take()
    assert last.resources[0].value == world.there[ENDPOINTS, "apps/shop"].SerializeToString(
        deterministic=True
    )
    assert (first.nonce, first.version_info) != (last.nonce, last.version_info)
    client.ask(ENDPOINTS, "apps/shop", nonce=last.nonce)
    assert client.has_nothing_to_read()


def test_names_of_a_request_that_crossed_a_message_count_and_it_answers_nothing(
    world: World, client: FakeClient
) -> None:
    for name in ("apps/shop", "apps/wiki"):
        world.at(name, HERE)
    client.ask(ENDPOINTS, "apps/shop")
    first, _, _ = client.take()
    client.ask(ENDPOINTS, "apps/shop", "apps/wiki")
    assert client.has_nothing_to_read()
    client.ask(ENDPOINTS, "apps/shop", "apps/wiki", nonce=first.nonce)
    assert client.accept("apps/shop", "apps/wiki") == ["apps/wiki"]


def test_clusters_and_endpoints_come_before_what_leads_to_them(world: World, client: FakeClient) -> None:
    world.listener("shop", "apps/shop")
    world.put(ROUTES, "apps/shop", proxyless.routes("apps/shop", Destination(("n1",))))
    world.put(CLUSTER, "apps/shop", proxyless.cluster("apps/shop", 10))
    world.at("apps/shop", HERE)
    for kind in (ROUTES, LISTENER, ENDPOINTS, CLUSTER):
        client.ask(kind, "shop" if kind == LISTENER else "apps/shop")
    assert [client.take()[1] for _ in range(4)] == [CLUSTER, ENDPOINTS, LISTENER, ROUTES]


def test_a_cluster_is_gone_after_the_listener_that_led_to_it(world: World, client: FakeClient) -> None:
    world.listener("shop", "apps/shop")
    world.put(CLUSTER, "apps/shop", proxyless.cluster("apps/shop", 10))
    client.ask(LISTENER, "shop")
    client.ask(CLUSTER, "apps/shop")
    assert [client.accept(), client.accept()] == [["apps/shop"], ["shop"]]
    world.remove(CLUSTER, "apps/shop")
    world.remove(LISTENER, "shop")
    response, kind, told = client.take()
    assert (kind, told) == (LISTENER, [])
    assert client.has_nothing_to_read()
    client.ask(LISTENER, "shop", nonce=response.nonce)
    _, kind, told = client.take()
    assert (kind, told) == (CLUSTER, [])
    client.ask(CLUSTER, "apps/shop", nonce=response.nonce)
    # A listener that is as it was holds nothing up.
    client = FakeClient(world)
    world.put(CLUSTER, "apps/shop", proxyless.cluster("apps/shop", 10))
    client.ask(LISTENER, "shop")
    client.ask(CLUSTER, "apps/shop")
    assert client.accept() == ["apps/shop"]
    world.remove(CLUSTER, "apps/shop")
    world.cache.changed(LISTENER, "shop")
    assert client.take()[1:] == (CLUSTER, [])


def test_a_refusal_is_told_once_and_ends_with_the_next_change_that_is_accepted(
    world: World, client: FakeClient
) -> None:
    world.at("apps/shop", "nowhere")
    client.ask(ENDPOINTS, "apps/shop")
    response, _, _ = client.take()
    client.ask(ENDPOINTS, "apps/shop", nonce=response.nonce, error="no IP address")
    refusal = Refusal("client-1", ENDPOINTS, ("apps/shop",), "no IP address")
    assert (client.refusals, client.session.refusal) == ([refusal], refusal)
    assert client.has_nothing_to_read()
    world.at("apps/shop", HERE)
    assert client.accept() == ["apps/shop"]
    assert client.session.refusal is None


def test_the_version_follows_from_what_is_told_alone(world: World) -> None:
    world.listener("shop", "apps/shop")
    world.listener("wiki", "apps/wiki")
    versions = set()
    for names in (("shop", "wiki"), ("wiki", "shop")):
        client = FakeClient(world)
        client.ask(LISTENER, *names)
        versions.add(client.take()[0].version_info)
    assert len(versions) == 1


def test_what_is_left_is_not_told_and_nothing_is_kept(world: World, client: FakeClient) -> None:
    other = FakeClient(world)
    for one in (client, other):
        one.ask(ENDPOINTS, "apps/shop", "apps/wiki")
    assert len(world.cache) == 2
    client.ask(ENDPOINTS, "apps/wiki")
    world.at("apps/shop", HERE)
    assert client.has_nothing_to_read()
    assert other.accept("apps/shop") == ["apps/shop"]
    assert len(world.cache) == 2
    client.ask(ENDPOINTS)
    other.session.close()
    assert len(world.cache) == 0


@pytest.mark.parametrize(
    ("kind", "names", "said"),
    [
        (SCOPE, ("a",), "type_url: must be one of envoy.config.cluster.v3.Cluster"),
        ("x" * 500, ("a",), "type_url"),
        (LISTENER, (), "resource_names: must name what is asked for"),
        (CLUSTER, ("*",), "resource_names"),
        (ENDPOINTS, ("x" * 513,), "resource_names"),
        (ENDPOINTS, tuple(map(str, range(MOST_NAMES + 1))), "resource_names: must be at most 1,000 names"),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    world: World, client: FakeClient, kind: str, names: tuple[str, ...], said: str
) -> None:
    with pytest.raises(SupervisorError, match=said) as refused:
        client.ask(kind, *names)
    assert refused.value.reason == "INVALID_FIELD"
    assert len(world.cache) == 0

"""The incremental protocol with one Envoy, played by a table of what it says and what it is told."""

from __future__ import annotations

from typing import Any

import pytest

from services.gateway import clusters, resources
from services.gateway.routes import Destination
from services.gateway.xds.cache import CLUSTER, LISTENER, ROUTES, SCOPE, ResourceCache
from services.gateway.xds.messages import TYPE_PREFIX, message
from services.gateway.xds.session import LONGEST_NAME, MOST_UNKNOWN, DeltaSession, Refusal
from services.rpc.errors import SupervisorError

HERE, THERE = Destination(("environments/e/nodes/n1",)), Destination(("environments/e/nodes/n2",))
AT_HERE, AT_THERE = resources.routes_name(HERE), resources.routes_name(THERE)


class FakeEnvoy:
    """An Envoy as the protocol sees it: it asks, keeps what it is told, and says so."""

    def __init__(self, cache: ResourceCache, known: dict[str, dict[str, str]] | None = None) -> None:
        self.refusals: list[Refusal] = []
        self.session = DeltaSession(cache, self.refusals.append)
        self.has: dict[str, dict[str, str]] = known or {}
        self._asked: set[str] = set()
        cache.follow(self.session.changed)

    def ask(
        self, kind: str, *names: str, leave: tuple[str, ...] = (), nonce: str = "", error: str = ""
    ) -> None:
        request = message("envoy.service.discovery.v3.DeltaDiscoveryRequest")(
            type_url=TYPE_PREFIX + kind,
            response_nonce=nonce,
            resource_names_subscribe=names,
            resource_names_unsubscribe=leave,
            node={"id": "envoy-1"},
        )
        if kind not in self._asked:
            self._asked.add(kind)
            request.initial_resource_versions.update(self.has.get(kind, {}))
        if error:
            request.error_detail.message = error
        self.session.receive(request)

    def take(self) -> tuple[Any, str, dict[str, str], list[str]]:
        """Return the next message: itself, its kind, what it tells by version, what it removes."""
        response = self.session.next_response()
        assert response is not None
        kind = response.type_url.removeprefix(TYPE_PREFIX)
        told = {one.name: one.version for one in response.resources}
        return response, kind, told, sorted(response.removed_resources)

    def accept(self) -> tuple[str, dict[str, str], list[str]]:
        response, kind, told, gone = self.take()
        known = self.has.setdefault(kind, {})
        known.update(told)
        for name in gone:
            known.pop(name, None)
        self.ask(kind, nonce=response.nonce)
        return kind, told, gone

    def has_nothing_to_read(self) -> bool:
        return self.session.next_response() is None


def cluster(cache: ResourceCache, destination: Destination, *addresses: str) -> None:
    name = clusters.cluster_name(destination)
    cache.put(CLUSTER, name, clusters.cluster(destination, addresses or ("127.0.0.1:1",)))


def routes(cache: ResourceCache, destination: Destination) -> None:
    name = resources.routes_name(destination)
    cluster(cache, destination)
    cache.put(ROUTES, name, resources.routes(destination))
    cache.put(SCOPE, resources.keeper_name(name), resources.keeper(name))


def point(cache: ResourceCache, app: str, destination: Destination) -> None:
    name = resources.routes_name(destination)
    cache.put(SCOPE, f"{app}.localhost", resources.scope(f"{app}.localhost", name), needs=name)


@pytest.fixture
def cache() -> ResourceCache:
    cache = ResourceCache()
    routes(cache, HERE)
    for app in ("blog", "shop"):
        point(cache, app, HERE)
    cache.open()
    return cache


@pytest.fixture
def envoy(cache: ResourceCache) -> FakeEnvoy:
    """An Envoy that has been told everything."""
    envoy = FakeEnvoy(cache)
    for kind in (CLUSTER, SCOPE):
        envoy.ask(kind)
        envoy.accept()
    envoy.ask(ROUTES, AT_HERE)
    envoy.accept()
    assert envoy.has_nothing_to_read()
    return envoy


def test_a_first_request_is_told_everything_of_its_kind_at_once(cache: ResourceCache) -> None:
    envoy = FakeEnvoy(cache)
    envoy.ask(SCOPE)
    kind, told, gone = envoy.accept()
    assert (kind, set(told), gone) == (SCOPE, {"blog.localhost", "shop.localhost", f"k:{AT_HERE}"}, [])
    assert envoy.has_nothing_to_read()


@pytest.mark.parametrize("names", [(), ("*",)])
def test_everything_is_asked_for_in_two_ways(cache: ResourceCache, names: tuple[str, ...]) -> None:
    envoy = FakeEnvoy(cache)
    envoy.ask(CLUSTER, *names)
    assert sorted(envoy.accept()[1]) == list(HERE.nodes)


def test_an_empty_kind_is_answered_once_so_that_nobody_waits(cache: ResourceCache) -> None:
    envoy = FakeEnvoy(cache)
    envoy.ask(LISTENER)
    assert envoy.accept() == (LISTENER, {}, [])
    assert envoy.has_nothing_to_read()


def test_nothing_is_told_before_all_is_known() -> None:
    cache = ResourceCache()
    envoy = FakeEnvoy(cache)
    envoy.ask(CLUSTER)
    cluster(cache, HERE)
    assert envoy.has_nothing_to_read()
    cache.open()
    assert list(envoy.accept()[1]) == list(HERE.nodes)


def test_one_changed_app_is_one_small_message(cache: ResourceCache, envoy: FakeEnvoy) -> None:
    routes(cache, THERE)
    while not envoy.has_nothing_to_read():
        response, kind, _, _ = envoy.take()
        envoy.ask(kind, nonce=response.nonce)
    envoy.ask(ROUTES, AT_THERE)
    envoy.accept()
    point(cache, "shop", THERE)
    response, kind, told, gone = envoy.take()
    assert (kind, list(told), gone) == (SCOPE, ["shop.localhost"], [])
    assert response.ByteSize() < 300


def test_what_is_the_same_again_is_not_told(cache: ResourceCache, envoy: FakeEnvoy) -> None:
    point(cache, "shop", HERE)
    cluster(cache, HERE)
    assert envoy.has_nothing_to_read()


def test_a_new_app_is_told_and_one_that_is_gone_too(cache: ResourceCache, envoy: FakeEnvoy) -> None:
    point(cache, "wiki", HERE)
    assert list(envoy.accept()[1]) == ["wiki.localhost"]
    cache.remove(SCOPE, "blog.localhost")
    assert envoy.accept() == (SCOPE, {}, ["blog.localhost"])


def test_what_came_and_went_unseen_is_never_told(cache: ResourceCache, envoy: FakeEnvoy) -> None:
    point(cache, "wiki", HERE)
    cache.remove(SCOPE, "wiki.localhost")
    assert envoy.has_nothing_to_read()


def test_a_slow_envoy_gets_the_newest_of_each_name(cache: ResourceCache, envoy: FakeEnvoy) -> None:
    point(cache, "wiki", HERE)
    response, *_ = envoy.take()
    for number in range(50):
        point(cache, f"app-{number % 5}", HERE)
        cache.remove(SCOPE, f"none-{number % 5}")
    cluster(cache, HERE, "127.0.0.1:2")
    assert envoy.accept()[0] == CLUSTER  # another kind does not wait
    assert envoy.has_nothing_to_read()
    envoy.ask(SCOPE, nonce=response.nonce)
    assert sorted(envoy.accept()[1]) == [f"app-{number}.localhost" for number in range(5)]
    assert envoy.has_nothing_to_read()


def test_an_app_follows_to_routes_once_the_envoy_has_them(cache: ResourceCache, envoy: FakeEnvoy) -> None:
    routes(cache, THERE)
    point(cache, "shop", THERE)
    assert envoy.accept() == (CLUSTER, {THERE.nodes[0]: cache.of(CLUSTER)[THERE.nodes[0]].version}, [])
    assert list(envoy.accept()[1]) == [f"k:{AT_THERE}"]
    assert envoy.has_nothing_to_read()
    envoy.ask(ROUTES, AT_THERE)
    response, kind, told, _ = envoy.take()
    assert (kind, list(told)) == (ROUTES, [AT_THERE])
    assert envoy.has_nothing_to_read()
    envoy.ask(ROUTES, nonce=response.nonce)
    assert list(envoy.accept()[1]) == ["shop.localhost"]


def test_a_cluster_goes_once_nothing_leads_to_it(cache: ResourceCache, envoy: FakeEnvoy) -> None:
    cache.remove(SCOPE, "shop.localhost")
    cache.remove(CLUSTER, HERE.nodes[0])
    response, kind, _, gone = envoy.take()
    assert (kind, gone) == (SCOPE, ["shop.localhost"])
    assert envoy.has_nothing_to_read()
    envoy.ask(SCOPE, nonce=response.nonce)
    assert envoy.accept() == (CLUSTER, {}, [HERE.nodes[0]])


def test_an_envoy_that_comes_back_is_told_the_difference_alone(
    cache: ResourceCache, envoy: FakeEnvoy
) -> None:
    again = FakeEnvoy(cache, known={kind: dict(known) for kind, known in envoy.has.items()})
    point(cache, "wiki", HERE)
    cache.remove(SCOPE, "blog.localhost")
    again.ask(CLUSTER)
    again.ask(SCOPE)
    again.ask(ROUTES, AT_HERE)
    kind, told, gone = again.accept()
    assert (kind, list(told), gone) == (SCOPE, ["wiki.localhost"], ["blog.localhost"])
    assert again.has_nothing_to_read()


def test_versions_outlive_the_gateway(cache: ResourceCache) -> None:
    other = ResourceCache()
    routes(other, HERE)
    for app in ("shop", "blog"):
        point(other, app, HERE)
    for kind in (CLUSTER, ROUTES, SCOPE):
        assert {name: it.version for name, it in other.of(kind).items()} == {
            name: it.version for name, it in cache.of(kind).items()
        }


def test_a_refusal_is_told_and_the_same_is_not_sent_again(cache: ResourceCache, envoy: FakeEnvoy) -> None:
    cluster(cache, HERE, "127.0.0.1:9")
    response, *_ = envoy.take()
    envoy.ask(CLUSTER, nonce=response.nonce, error="no such address")
    assert envoy.refusals == [Refusal("envoy-1", CLUSTER, HERE.nodes, "no such address")]
    assert envoy.session.refusal == envoy.refusals[0]
    assert envoy.has_nothing_to_read()
    cluster(cache, HERE, "127.0.0.1:10")
    envoy.accept()
    assert envoy.session.refusal is None


def test_an_answer_to_something_else_changes_nothing(cache: ResourceCache, envoy: FakeEnvoy) -> None:
    point(cache, "wiki", HERE)
    response, *_ = envoy.take()
    point(cache, "news", HERE)
    envoy.ask(SCOPE, nonce="none of ours", error="late")
    assert (envoy.refusals, envoy.has_nothing_to_read()) == ([], True)
    envoy.ask(SCOPE, nonce=response.nonce)
    assert list(envoy.accept()[1]) == ["news.localhost"]


def test_what_is_asked_for_by_name_and_is_not_there_is_said_to_be_gone(envoy: FakeEnvoy) -> None:
    envoy.ask(ROUTES, "nobody/NO_SUCH")
    assert envoy.accept() == (ROUTES, {}, ["nobody/NO_SUCH"])


def test_a_name_asked_for_again_is_told_again(envoy: FakeEnvoy) -> None:
    envoy.ask(ROUTES, AT_HERE)
    assert list(envoy.accept()[1]) == [AT_HERE]


def test_what_an_envoy_has_left_is_not_told(cache: ResourceCache, envoy: FakeEnvoy) -> None:
    envoy.ask(ROUTES, leave=(AT_HERE,))
    cache.remove(ROUTES, AT_HERE)
    assert envoy.has_nothing_to_read()


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (ROUTES, [f"none/{number}" for number in range(MOST_UNKNOWN + 3)]),
        (CLUSTER, ["n" * (LONGEST_NAME + 1)]),
    ],
)
def test_what_nobody_can_have_a_reason_to_follow_is_refused(
    envoy: FakeEnvoy, kind: str, names: list[str]
) -> None:
    with pytest.raises(SupervisorError, match="resource_names_subscribe"):
        envoy.ask(kind, *names)


def test_an_envoy_that_comes_back_before_all_is_known_may_follow_any_number() -> None:
    cache = ResourceCache()
    envoy = FakeEnvoy(cache)
    envoy.ask(ROUTES, *(f"routes/{number}" for number in range(MOST_UNKNOWN + 3)))
    cache.open()
    assert len(envoy.accept()[2]) == MOST_UNKNOWN + 3


def test_a_kind_that_there_is_nothing_of_is_not_answered(cache: ResourceCache) -> None:
    envoy = FakeEnvoy(cache)
    envoy.ask("envoy.extensions.transport_sockets.tls.v3.Secret")
    assert envoy.has_nothing_to_read()

"""Which apps are forwarded, for how long, and what their routes are: by a virtual clock."""

import asyncio

import pytest

from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance as Message
from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec
from runtime_node.forwarding import Carrier, Target, parse_target
from runtime_node.http import Gate, Router
from runtime_node.http.gate import Gate as AnyGate
from runtime_node.instances.forwards import IDLE_SECONDS, LONGEST_SECONDS, Forwards, Move
from runtime_node.instances.holds import Hold
from runtime_node.instances.record import Instance
from runtime_node.instances.routes import Routes

B, C = Target("10.0.0.2", 8080, "nodes/b"), Target("10.0.0.3", 8080, "nodes/c")


class Node:
    """The routes of a node, a few instances, and a clock."""

    def __init__(self, max_apps=3):
        self.now = 100.0
        self.router = Router()
        carrier = Carrier(asyncio.get_running_loop(), "environments/default/nodes/a")
        self.forwards = Forwards(carrier, clock=lambda: self.now, max_apps=max_apps)
        self.routes = Routes(self.router, self.forwards)
        self.instances = {}

    def of(self, app):
        return tuple(self.instances.get(app, ()))

    def has(self, app, epoch, state=Message.RUNNING, uid="mine"):
        name = f"apps/{app}/instances/g1-e{epoch}"
        spec = InstanceSpec(name=name, app_uid=uid, epoch=epoch, generation=1, domains=["shop.example.com"])
        instance = Instance(name, spec, Gate(name), 0.0, state)
        self.instances.setdefault(app, []).append(instance)
        self.routes.update(app, self.of(app))
        return instance

    def becomes(self, instance, state):
        instance.state = state
        self.routes.update(instance.app, self.of(instance.app))

    def gone(self, instance):
        self.instances[instance.app].remove(instance)
        self.routes.update(instance.app, self.of(instance.app))

    def moved(self, app, epoch, target=B, uid="mine") -> AnyGate:
        return self.routes.moved(Move(app, uid, epoch, target, ("shop.example.com",)), self.of)

    def route(self, host):
        found = self.router.lookup(host.encode(), None, b"/")
        return found[0] if isinstance(found, tuple) else found.reason

    def sweep(self):
        self.routes.sweep(self.of)

    def target(self, app):
        forward = self.forwards.get(app)
        return forward.forwarder.target if forward is not None else None


@pytest.fixture
async def node():
    return Node()


async def test_all_names_of_an_app_that_has_left_lead_to_where_it_is(node):
    instance = node.has("shop", 1)
    gate = node.moved("shop", 2)
    assert node.route("shop.localhost") is gate, "at once, while the instance still answers what it has"
    node.becomes(instance, Message.STOPPING)
    node.gone(instance)
    assert node.route("shop.localhost") is node.route("shop.example.com") is gate
    assert (gate.relays, gate.lease) == (True, None)


async def test_an_instance_that_comes_back_answers_once_it_is_ready(node):
    gate = node.moved("shop", 2)
    back = node.has("shop", 3, Message.STARTING)
    assert node.route("shop.localhost") is gate
    assert node.forwards.get("shop").forwarder.returning
    node.becomes(back, Message.FAILED)
    assert node.route("shop.localhost") is gate
    assert not node.forwards.get("shop").forwarder.returning
    node.becomes(back, Message.RUNNING)
    assert node.route("shop.localhost") is back.gate
    assert node.target("shop") is None


async def test_another_app_of_that_name_is_not_forwarded(node):
    node.moved("shop", 7, uid="before")
    new = node.has("shop", 1)
    assert node.route("shop.localhost") is new.gate
    assert node.target("shop") is None


async def test_an_app_that_moves_on_is_forwarded_there_and_no_older_news_counts(node):
    gate = node.moved("shop", 2)
    assert node.moved("shop", 3, C) is gate
    node.moved("shop", 2, B)
    assert node.target("shop") == C


async def test_a_forward_ends_when_nobody_asks_and_at_last_whoever_asks(node):
    gate = node.moved("shop", 2)
    node.now += IDLE_SECONDS
    node.sweep()
    assert node.route("shop.localhost") is gate
    gate._last_time = node.now
    node.now += IDLE_SECONDS
    node.sweep()
    assert node.route("shop.localhost") is gate
    node.now += 1
    node.sweep()
    assert node.route("shop.localhost") == "APP_NOT_FOUND"
    gate = node.moved("shop", 2)
    for _ in range(int(LONGEST_SECONDS)):
        gate._last_time = node.now
        node.now += 1
        node.sweep()
    assert node.route("shop.localhost") is gate
    gate._last_time = node.now
    node.now += 1
    node.sweep()
    assert node.route("shop.localhost") == "APP_NOT_FOUND"


async def test_the_app_that_left_first_gives_way_to_the_newest(node):
    for number in range(4):
        node.moved(f"app-{number}", 2)
    assert node.route("app-0.localhost") == "APP_NOT_FOUND"
    assert [node.target(f"app-{number}") for number in range(1, 4)] == [B] * 3
    assert node.forwards.figures().apps == 3


async def test_what_fails_here_is_no_longer_hidden_when_a_forward_ends(node):
    failed = node.has("shop", 1, Message.FAILED)
    node.moved("shop", 1)
    node.now += IDLE_SECONDS + 1
    node.sweep()
    assert node.route("shop.localhost") is failed.gate


async def test_an_app_that_is_held_apart_is_forwarded_once_it_is_told_where_it_goes(node):
    instance = node.has("shop", 1)
    hold = Hold("apps/shop", instance.gate.limits, ["shop.example.com"], [instance])
    node.routes.hold("shop", hold)
    node.becomes(instance, Message.STOPPING)
    node.gone(instance)
    assert node.route("shop.localhost") is node.route("shop.example.com") is hold.gate
    gate = node.moved("shop", 2)
    assert node.route("shop.localhost") is gate
    assert node.routes.held("shop") is None


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("10.0.0.2:8080", B._replace(node="")),
        ("[::1]:80", Target("::1", 80)),
        ("node-2.lan:65535", Target("node-2.lan", 65535)),
    ],
)
def test_an_address_is_taken_apart(text, target):
    assert parse_target(text) == target
    assert str(target) == text


@pytest.mark.parametrize(
    "text", ["", "host", "host:0", "host:65536", "ho st:80", "host:80/x", "user@host:80", "::1:80"]
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ValueError, match="host:port"):
        parse_target(text)

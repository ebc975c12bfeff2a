"""Nodes that die or stand still, as processes: their apps answer elsewhere, and nobody answers twice."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from appsupervisor.runtime.v1.runtime_environment_pb2 import Database, Instance, InstanceSpec
from tests.e2e.stack import DEADLINE, ROOT, Stack, eventually

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(300)]

NODES = "environments/default/nodes"
PATIENT: dict[str, Any] = {
    "entrypoint": "patient:create_app",
    "database": Database(no_database=Database.NoDatabase()),
    "isolation": InstanceSpec.SHARED,
    "availability": InstanceSpec.CONSISTENT,
}


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[Stack]:
    """Give a control plane with one node."""
    stack = Stack(tmp_path / "stack", app_dirs=(ROOT / "tests/apps/failover",))
    try:
        stack.start()
        yield stack
    finally:
        stack.clean_up()


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path / "stack", app_dirs=(ROOT / "tests/apps/failover",)).serving("node-2") as stack:
        yield stack


def home(stack: Stack, app_id: str) -> str:
    """Return the node on which an app serves, as the catalog tells it; empty if it does not."""
    app = stack.get(app_id)
    serves = app.state == Instance.RUNNING and app.health == Instance.HEALTHY and not app.reconciling
    return app.instances[0].node.rpartition("/")[2] if serves else ""


def ready_message(stack: Stack, app_id: str) -> str:
    return next((it.message for it in stack.get(app_id).conditions if it.type == "Ready"), "")


def answers(stack: Stack, app_id: str, where: str) -> bool:
    return stack.http(app_id, "/", node=where)[0] == 200


def test_the_apps_of_a_killed_node_answer_elsewhere(stack: Stack) -> None:
    for number in range(4):
        stack.create(f"app-{number}", **PATIENT)
    names = [f"app-{number}" for number in range(4)]
    homes = {
        name: eventually(lambda name=name: home(stack, name), f"{name} is told to serve") for name in names
    }
    assert sorted(homes.values()) == ["node-1", "node-1", "node-2", "node-2"]
    before = {name: stack.get(name).instances[0].name for name, at in homes.items() if at == "node-2"}
    stack.nodes["node-1"].kill()
    for name in homes:
        eventually(lambda name=name: answers(stack, name, "node-2"), f"{name} answers on node-2")
        eventually(lambda name=name: home(stack, name) == "node-2", f"{name} is told to be there")
    assert stack.node("node-1").lease_state == fleet.Node.EXPIRED
    assert {name: stack.get(name).instances[0].name for name in before} == before, "nobody else is touched"
    # A new life of it begins with nothing of them, and may be given others.
    stack.nodes["node-1"].start()
    eventually(lambda: stack.node("node-1").lease_state == fleet.Node.GRANTED, "node-1 has a lease again")
    for name in homes:
        eventually(lambda name=name: home(stack, name) == "node-2", f"{name} is told to be there still")


def test_a_node_that_stood_still_too_long_sends_not_a_byte_of_what_it_computed(stack: Stack) -> None:
    stack.create("shop", **PATIENT)
    assert eventually(lambda: home(stack, "shop"), "it is told to serve") == "node-1"
    eventually(lambda: answers(stack, "shop", "node-1"), "it holds a lease")
    with socket.create_connection(("127.0.0.1", stack.http_port("node-1")), timeout=DEADLINE) as client:
        client.sendall(b"GET /0.5 HTTP/1.1\r\nHost: shop.localhost\r\nConnection: close\r\n\r\n")
        eventually(lambda: stack.http("shop", "/begun")[1] == "1", "the request has begun")
        stack.nodes["node-1"].signal(signal.SIGSTOP)
        eventually(lambda: home(stack, "shop") == "node-2", "the app serves elsewhere")
        assert stack.http("shop", "/", node="node-2")[1].startswith("answered by apps/shop/instances/g1-e2")
        stack.nodes["node-1"].signal(signal.SIGCONT)
        data = b""
        while piece := client.recv(65536):
            data += piece
    assert b"answered by" not in data

    def gone() -> bool:
        text = stack.http("shop", "/", node="node-1")[1]
        assert "instances/g1-e1" not in text, "the old copy has answered"
        return "answered by apps/shop/instances/g1-e2" in text  # forwarded

    eventually(gone, "the old copy is gone")
    eventually(lambda: home(stack, "shop") == "node-2", "it is told to be on node-2 still")
    eventually(lambda: stack.node("node-1").lease_state == fleet.Node.GRANTED, "node-1 has a lease again")


def test_what_a_lost_control_plane_costs(stack: Stack) -> None:
    stack.create("strict", **PATIENT)
    stack.create("easy", **{**PATIENT, "availability": InstanceSpec.AVAILABLE})
    where = {
        name: eventually(lambda name=name: home(stack, name), f"{name} is told to serve")
        for name in ("strict", "easy")
    }
    eventually(lambda: answers(stack, "strict", where["strict"]), "it holds a lease")
    before = {name: stack.get(name).instances[0].name for name in where}
    stack.control_plane.kill()
    eventually(lambda: stack.http("strict", "/", node=where["strict"])[0] == 503, "a CONSISTENT app stops")
    assert "LEASE_EXPIRED" in stack.http("strict", "/", node=where["strict"])[1]
    assert answers(stack, "easy", where["easy"])
    stack.control_plane.start()
    eventually(lambda: answers(stack, "strict", where["strict"]), "and goes on with the next lease")
    assert {name: stack.get(name).instances[0].name for name in where} == before


def test_the_only_node_serves_on_without_a_control_plane_and_one_of_two_does_not(lone: Stack) -> None:
    outside = Database(external=Database.External(secret_key="DATABASE"))
    by_default = {**PATIENT, "database": outside, "secret_env": {"DATABASE": "postgresql://outside/shop"}}
    del by_default["availability"]
    lone.create("shop", **by_default)
    lone.create("strict", **PATIENT)

    def holds(availability: int, reason: int) -> bool:
        app = lone.get("shop")
        return (app.effective_availability, app.availability_reason) == (availability, reason)

    eventually(lambda: holds(InstanceSpec.AVAILABLE, App.ONLY_NODE), "the app says what holds, and why")
    eventually(lambda: answers(lone, "strict", "node-1"), "it holds a lease")
    eventually(
        lambda: "lease.alone alone=True" in lone.nodes["node-1"].text(), "it has heard that it is alone"
    )
    lone.control_plane.kill()
    eventually(lambda: not answers(lone, "strict", "node-1"), "the lease has run out")
    assert answers(lone, "shop", "node-1")
    lone.control_plane.start()
    eventually(lambda: answers(lone, "strict", "node-1"), "it holds a lease again")
    # Another one comes while it cannot hear of that.
    lone.nodes["node-1"].signal(signal.SIGSTOP)
    lone.add_node("node-2")
    eventually(lambda: home(lone, "strict") == "node-2", "what needs the lease goes elsewhere")
    eventually(lambda: "RecoverApp" in ready_message(lone, "shop"), "the other one waits, and says so")
    assert {it.node for it in lone.get("shop").instances} == {f"{NODES}/node-1"}
    lone.nodes["node-1"].signal(signal.SIGCONT)
    eventually(lambda: not lone.node("node-1").serves_alone, "node-1 has heard that it is not alone")
    eventually(lambda: holds(InstanceSpec.CONSISTENT, App.DATABASE_SHARED), "what holds now is told")
    eventually(lambda: answers(lone, "shop", "node-1"), "it serves on")
    lone.control_plane.kill()
    eventually(lambda: not answers(lone, "shop", "node-1"), "it stops with the lease")
    assert "LEASE_EXPIRED" in lone.http("shop", "/", node="node-1")[1]

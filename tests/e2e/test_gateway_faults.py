"""What is killed, ill or full behind the gateway costs its own app what is told, and the others nothing."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from appsupervisor.runtime.v1.runtime_environment_pb2 import Limits
from tests.e2e.edge import MIXED, STATELESS, Answer, Edge, edge, move, node_of, replicas, stack
from tests.e2e.edge_traffic import EdgeTraffic
from tests.e2e.stack import DEADLINE, Stack, eventually
from tests.e2e.traffic import delete

__all__ = ("edge", "stack")

pytestmark = pytest.mark.slow


def test_a_killed_envoy_comes_back_and_finds_everything(edge: Edge) -> None:
    starts = edge.figure("appsupervisor_gateway_envoy_starts")
    envoy = int(eventually(lambda: _envoy_of(edge.process.pid), "the Envoy runs"))
    os.kill(envoy, signal.SIGKILL)
    eventually(
        lambda: edge.figure("appsupervisor_gateway_envoy_starts") > starts, "another Envoy was started"
    )
    assert edge.serves("home.localhost").told["app"] == "home"
    assert edge.figure("appsupervisor_gateway_xds_refusals_total") == 0


def test_replicas_share_the_requests_and_one_that_is_killed_costs_none_that_may_be_repeated(
    stack: Stack, edge: Edge
) -> None:
    stack.create("twin", MIXED, database=STATELESS, replicas=2)
    replicas(edge, "twin")
    stack.nodes["node-2"].kill()
    answers = [edge.ask(host="twin.localhost").status for _ in range(100)]
    assert answers == [200] * 100
    stack.nodes["node-2"].start()
    eventually(lambda: stack.is_ready("node-2"), "node-2 is back")
    delete(stack, "twin")


def test_more_than_the_replicas_take_is_told_by_the_gateway_and_costs_no_neighbour(
    stack: Stack, edge: Edge
) -> None:
    limits = Limits(max_concurrent_requests=1, max_queued_requests=0)
    stack.create("busy", MIXED, database=STATELESS, replicas=2, limits=limits)
    replicas(edge, "busy")
    edge.serves("home.localhost")  # its node may have been killed before
    told: list[Answer] = []

    def overloaded() -> bool:
        told.append(edge.ask("/", "POST", b"x", host="busy.localhost"))
        assert told[-1].status in {200, 503}, told[-1]
        return told[-1].status == 503 and "gateway" in told[-1].told["detail"]

    with ExitStack() as held:
        for _ in range(4):  # some are refused, two are held
            wire = held.enter_context(socket.create_connection(("127.0.0.1", edge.port)))
            wire.sendall(b"GET /slow/25 HTTP/1.1\r\nhost: busy.localhost\r\n\r\n")
        eventually(overloaded, "the gateway has as many as both replicas take")
        assert told[-1].told["reason"] == told[-1].headers["x-appsupervisor-reason"] == "SERVER_BUSY"
        assert int(told[-1].headers["retry-after"]) > 0
        assert edge.ask(host="home.localhost").status == 200
    edge.serves("busy.localhost")
    delete(stack, "busy")


def test_a_replica_that_does_nothing_but_fail_is_left_out_for_a_while(stack: Stack, edge: Edge) -> None:
    stack.create("pair", MIXED, database=STATELESS, replicas=2)
    ill = min(replicas(edge, "pair"))

    def left_out() -> bool:
        assert edge.ask(f"/ill/{ill}", host="pair.localhost").status in {200, 500}
        return edge.figure("envoy_cluster_outlier_detection_ejections_enforced_consecutive_5xx_total") > 0

    eventually(left_out, "the replica is left out")
    assert edge.ask(host="pair.localhost").status == 200
    delete(stack, "pair")


def test_a_killed_node_costs_its_own_apps_a_told_pause_and_the_others_nothing(
    stack: Stack, edge: Edge
) -> None:
    for name in ("stays", "goes"):
        stack.create(name, MIXED, database=STATELESS)
    move(stack, "stays", "node-1")
    move(stack, "goes", "node-2")
    for name in ("stays", "goes"):
        edge.serves(f"{name}.localhost")
    with EdgeTraffic(edge.port, ["stays"]) as others, EdgeTraffic(edge.port, ["goes"], 20) as own:
        for traffic in (others, own):
            traffic.goes_on()
        stack.nodes["node-2"].kill()
        eventually(lambda: node_of(stack, "goes") == "node-1", "the app is elsewhere", 2 * DEADLINE)
        for traffic in (others, own):
            traffic.goes_on()
    print(own.answers, own.refused, own.failed)
    assert (others.wrong, others.failed, dict(others.refused)) == ([], [], {})
    assert own.wrong == []
    # What was under way on the node is told as broken off, or cut; all that came later could be told to wait.
    assert len(own.failed) <= 2 * len(own.kinds), own.failed
    reasons = {kind.split()[-1] for kind in own.refused}
    assert reasons <= {"NODE_UNREACHABLE", "NO_NODE_AVAILABLE", "1012"}, own.refused
    stack.nodes["node-2"].start()


def test_the_control_plane_and_the_gateways_own_program_are_not_in_the_way(stack: Stack, edge: Edge) -> None:
    # It may have been on the node that was killed before.
    eventually(lambda: node_of(stack, "home"), "the app runs")
    edge.serves("home.localhost")
    with EdgeTraffic(edge.port, ["home"]) as traffic:
        traffic.goes_on()
        stack.control_plane.kill()
        traffic.goes_on(10)
        stack.control_plane.start()
        stack.wait_until_called()
        traffic.goes_on()
    assert (traffic.wrong, traffic.failed, dict(traffic.refused)) == ([], [], {})
    # What changes from then on is followed again.
    stack.create("late", MIXED, database=STATELESS)
    edge.serves("late.localhost")
    delete(stack, "late")


def _envoy_of(parent: int) -> str:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return children[0] if children else ""

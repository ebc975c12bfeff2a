"""Mixed traffic through the gateway while apps are swapped, moved and drained, and a node is killed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from itertools import cycle

import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from tests.e2e.edge import MIXED, NODES, STATELESS, Edge, edge, move, node_of, replicas
from tests.e2e.edge import fleet as fleet_of
from tests.e2e.edge_traffic import EdgeTraffic
from tests.e2e.stack import DEADLINE, Stack, eventually
from tests.e2e.traffic import delete

__all__ = ("edge",)

pytestmark = pytest.mark.slow

# What is aimed at; how much of it a machine gives is printed, and no matter here.
SWAPS, MOVES, RATE, WIDTH = (
    int(os.environ.get(f"GATEWAY_{what}", count))
    for what, count in (("SWAPS", 6), ("MOVES", 4), ("RATE", 200), ("WIDTH", 2))
)
NAMES = ("node-1", "node-2", "node-3")
SINGLE = ("ant", "bee")
"""Apps of one replica; `cow` has two."""
REPEATED = ("get", "http2")
"""Kinds of requests that may be repeated until their answer has begun, and have it in one piece."""
TOLD_TO_WAIT = {"NODE_UNREACHABLE", "NO_NODE_AVAILABLE", "1012"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with fleet_of(tmp_path_factory.mktemp("load") / "stack", NAMES) as stack:
        yield stack


def swap(stack: Stack, app: str) -> None:
    stack.result(stack.apps.RestartApp(catalog.RestartAppRequest(name=f"apps/{app}"), timeout=DEADLINE))


def move_anywhere(stack: Stack, app: str) -> None:
    stack.result(stack.apps.MoveApp(catalog.MoveAppRequest(name=f"apps/{app}"), timeout=DEADLINE))


def drain(stack: Stack, node: str) -> None:
    request = fleet.DrainNodeRequest(name=f"{NODES}/{node}")
    done = stack.wait(stack.fleet.DrainNode(request, timeout=DEADLINE))
    assert done.WhichOneof("result") == "response", done
    stack.fleet.UncordonNode(fleet.UncordonNodeRequest(name=f"{NODES}/{node}"), timeout=DEADLINE)


def nodes_of(stack: Stack, app: str) -> set[str]:
    return {it.node.rpartition("/")[2] for it in stack.get(app).instances}


def kill_and_bring_back(stack: Stack) -> None:
    """Kill a node that has a replica of `cow` and all of `ant`; once both are elsewhere start it again."""
    victim = min(nodes_of(stack, "cow"))
    if node_of(stack, "ant") != victim:
        move(stack, "ant", victim)
    stack.nodes[victim].kill()

    def elsewhere() -> bool:
        return all(
            victim not in nodes_of(stack, app) and stack.get(app).ready_replicas == count
            for app, count in (("ant", 1), ("bee", 1), ("cow", 2))
        )

    eventually(elsewhere, "all is elsewhere", 2 * DEADLINE)
    stack.nodes[victim].start()
    eventually(lambda: stack.is_ready(victim), f"{victim} is back")


def test_no_request_is_lost_while_apps_are_swapped_moved_drained_and_a_node_is_killed(
    stack: Stack, edge: Edge
) -> None:
    for name in SINGLE:
        stack.create(name, MIXED, database=STATELESS)
        edge.serves(f"{name}.localhost")
    stack.create("cow", MIXED, database=STATELESS, replicas=2)
    replicas(edge, "cow")
    swapped, moved = cycle((*SINGLE, "cow")), cycle(SINGLE)
    with (
        EdgeTraffic(edge.port, SINGLE, RATE / 2, max(1, WIDTH // 2)) as single,
        EdgeTraffic(edge.port, ["cow"], RATE / 2, max(1, WIDTH // 2)) as double,
    ):
        loads = (single, double)

        def goes_on() -> None:
            for load in loads:
                load.goes_on()

        def change_everything() -> None:
            for _ in range(SWAPS // 2):
                swap(stack, next(swapped))
            for _ in range(MOVES // 2):
                move_anywhere(stack, next(moved))
            drain(stack, node_of(stack, "bee"))
            goes_on()

        goes_on()
        change_everything()
        before = [(len(load.failed), load.refused.copy()) for load in loads]
        kill_and_bring_back(stack)
        goes_on()
        after = [(len(load.failed), load.refused.copy()) for load in loads]
        change_everything()
    parts = zip(("single", "double"), loads, before, after, strict=True)
    for name, load, (begin, refused), (end, told) in parts:
        broken = load.failed[begin:end]
        print(f"{name}: {load.rate:.0f} answers a second", load.answers)
        print("  by the kill:", Counter(it.split()[0] for it in broken), told - refused, broken)
        print("  in all:", load.refused)
        assert load.wrong == []
        assert load.failed[:begin] + load.failed[end:] == []
        assert only_replaced(refused)
        assert only_replaced(load.refused - (told - refused))
        # What was under way on the node when it died: what became of it nobody can know.
        assert len(broken) <= 2 * len(load.kinds) * WIDTH, broken
        assert {it.rpartition(" ")[2] for it in told - refused} <= TOLD_TO_WAIT
    (begin, refused), (end, told) = before[1], after[1]
    assert [it for it in double.failed[begin:end] if it.startswith(REPEATED)] == []
    # Another replica has what may be repeated, or was not sent; but for bodies too large for another try.
    assert only_replaced(told - refused, "post 503 NODE_UNREACHABLE")
    for name in (*SINGLE, "cow"):
        delete(stack, name)


def only_replaced(refused: Counter[str], *others: str) -> bool:
    """Tell whether nobody was refused but a WebSocket whose app was replaced, or `others` that may be."""
    return set(+refused) <= {"websocket 1012", *others}

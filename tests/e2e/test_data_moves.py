"""An app's SQLite database goes from node to node with it, under writes and over kills."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.longrunning import operations_pb2

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance, InstanceSpec
from tests.e2e.stack import DEADLINE, ROOT, Stack, eventually
from tests.e2e.visitors import Visitors

NODES = "environments/default/nodes"
ENTRYPOINT = "numbered:create_app"


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path / "stack", app_dirs=(ROOT / "tests/apps/travel",)).serving("node-2") as stack:
        yield stack


class Writer(Visitors):
    """Writes numbered rows at some nodes in turn, and remembers which were acknowledged."""

    def __init__(self, stack: Stack, app_id: str, *nodes: str, begin: int = 1) -> None:
        self._stack = stack
        self._app_id = app_id
        self._nodes = nodes or tuple(stack.nodes)
        self._next = begin
        self.acknowledged: list[int] = []
        self.failures: set[str] = set()
        super().__init__(self._run)

    def goes_on(self) -> None:
        before = len(self.acknowledged)
        eventually(lambda: len(self.acknowledged) > before + 5, f"rows are written: {self.failures}")

    def _run(self) -> None:
        while not self._ended.wait(0.002):
            number, self._next = self._next, self._next + 1
            for node in self._nodes:
                status, text = self._stack.http(self._app_id, f"/?n={number}", "POST", node=node)
                if status == 200:
                    self.acknowledged.append(number)
                    break
                self.failures.add(f"{node} {status} {text[:120]}")


def created(stack: Stack, isolation: Any = InstanceSpec.SHARED, **config: Any) -> str:
    """Create the app, and return the node that it serves on."""
    app = catalog.App(isolation=isolation)
    app.config.update(config)
    # It writes on its loop; a disk that is busy with other tests is no fault of its.
    app.limits.block_budget.seconds = 25
    stack.create("shop", ENTRYPOINT, isolation=isolation, config=app.config, limits=app.limits)
    return eventually(lambda: home_of(stack, "shop"), "it serves at one node")


def home_of(stack: Stack, app_id: str) -> str:
    """Return the node on which an app serves; empty if it is not one, or not for good."""
    app = stack.get(app_id)
    nodes = {it.node.rpartition("/")[2] for it in app.instances if it.state == Instance.RUNNING}
    return nodes.pop() if len(nodes) == 1 and not app.reconciling else ""


def rows_at(stack: Stack, app_id: str, node: str) -> set[int]:
    status, text = stack.http(app_id, node=node)
    assert status == 200, text
    return {int(number) for number in text.split(",") if number}


def copies(stack: Stack, app_id: str) -> list[str]:
    """Return the nodes that have a data directory of the app."""
    return [node for node in stack.nodes if list((stack.folder / node / "apps").glob(f"{app_id}.*"))]


def move(stack: Stack, app_id: str, node: str) -> operations_pb2.Operation:
    request = catalog.MoveAppRequest(name=f"apps/{app_id}", node=f"{NODES}/{node}")
    done: operations_pb2.Operation = stack.apps.MoveApp(request, timeout=DEADLINE)
    return done


def other(node: str) -> str:
    return "node-2" if node == "node-1" else "node-1"


@pytest.mark.parametrize(
    ("wal", "isolation"),
    [
        pytest.param(True, InstanceSpec.SHARED, id="wal"),
        pytest.param(False, InstanceSpec.PROCESS, id="journal", marks=pytest.mark.slow),
    ],
)
def test_every_acknowledged_row_goes_along(two_nodes: Stack, wal: bool, isolation: Any) -> None:
    stack = two_nodes
    first = created(stack, isolation, wal=wal, padding_mib=8)
    # It keeps to the address that it knows: what is held there is forwarded once the app is elsewhere.
    with Writer(stack, "shop", first) as writer:
        writer.goes_on()
        stack.result(move(stack, "shop", other(first)))
        writer.goes_on()
    assert writer.failures == set()
    eventually(lambda: home_of(stack, "shop") == other(first), "it serves at its new node alone")
    assert set(writer.acknowledged) <= rows_at(stack, "shop", other(first))
    eventually(lambda: copies(stack, "shop") == [other(first)], "one node has its data")
    eventually(
        lambda: stack.get("shop").data_move.state == catalog.DataMove.DONE, "the move of its data is told"
    )
    told = stack.get("shop").data_move
    assert told.target_node == f"{NODES}/{other(first)}"
    assert told.copied_bytes > 8 << 20
    assert told.HasField("hold_duration")
    timeline = catalog.ListAppEventsRequest(parent="apps/shop")
    eventually(
        lambda: (
            "DataMoved" in {it.type for it in stack.apps.ListAppEvents(timeline, timeout=DEADLINE).app_events}
        ),
        "it is on its timeline",
    )


MOMENTS = {"copying": "travel.offered", "frozen": "travel.frozen", "arrived": "travel.arrived"}
"""What the source's or the target's log says when a move has come so far."""


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", ["source", "target", "control plane"])
def test_whoever_is_killed_on_the_way_one_node_has_every_acknowledged_row(
    two_nodes: Stack, victim: str
) -> None:
    stack = two_nodes
    created(stack, padding_mib=32)
    acknowledged: set[int] = set()
    for moment, told in MOMENTS.items():
        first = eventually(lambda: home_of(stack, "shop"), "it serves at one node")
        process = {"source": stack.nodes[first], "target": stack.nodes[other(first)]}
        killed = process.get(victim, stack.control_plane)
        said = {name: node.text().count(told) for name, node in stack.nodes.items()}
        with Writer(stack, "shop", begin=max(acknowledged, default=0) + 1) as writer:
            writer.goes_on()
            move(stack, "shop", other(first))
            come_so_far = lambda said=said, told=told: any(  # noqa: E731
                node.text().count(told) > said[name] for name, node in stack.nodes.items()
            )
            eventually(come_so_far, f"the move is {moment}")
            killed.kill()
            killed.start()
            stack.wait_until_called()
            eventually(lambda: home_of(stack, "shop"), f"it serves at one node after {moment}", 3 * DEADLINE)
            writer.goes_on()
        acknowledged |= set(writer.acknowledged)
        home = eventually(lambda: home_of(stack, "shop"), "it serves at one node")
        assert acknowledged <= rows_at(stack, "shop", home), (victim, moment)
        eventually(lambda home=home: copies(stack, "shop") == [home], "one node has its data", 2 * DEADLINE)


def test_a_drain_takes_data_along_and_a_stopped_app_too(two_nodes: Stack) -> None:
    stack = two_nodes
    first = created(stack)
    assert stack.http("shop", "/?n=1", "POST", node=first)[0] == 200
    drain = fleet.DrainNodeRequest(name=f"{NODES}/{first}")
    done = stack.wait(stack.fleet.DrainNode(drain, timeout=DEADLINE))
    assert done.WhichOneof("result") == "response", done
    eventually(lambda: home_of(stack, "shop") == other(first), "it serves at the other node")
    assert rows_at(stack, "shop", other(first)) == {1}
    stack.result(stack.apps.StopApp(catalog.StopAppRequest(name="apps/shop"), timeout=DEADLINE))
    stack.fleet.UncordonNode(fleet.UncordonNodeRequest(name=f"{NODES}/{first}"), timeout=DEADLINE)
    app = stack.result(move(stack, "shop", first))
    assert app.state == Instance.STOPPED
    eventually(lambda: copies(stack, "shop") == [first], "one node has its data")
    stack.result(stack.apps.StartApp(catalog.StartAppRequest(name="apps/shop"), timeout=DEADLINE))
    assert rows_at(stack, "shop", first) == {1}

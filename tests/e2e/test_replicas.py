"""An app of three replicas on three nodes: rolled under requests to all of them, and one node dies."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition, Database, Instance
from tests.e2e.conftest import GUEST_DIRS
from tests.e2e.stack import DEADLINE, Stack, eventually
from tests.e2e.visitors import Visitors

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NODES = "environments/default/nodes"
NAMES = ("node-1", "node-2", "node-3")
LONG = 4 * DEADLINE


@pytest.fixture
def three_nodes(tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path / "stack", app_dirs=GUEST_DIRS).serving(*NAMES[1:]) as stack:
        yield stack


class Clients(Visitors):
    """Clients that send requests to every node, one after the other."""

    def __init__(self, stack: Stack, app_id: str) -> None:
        self._stack = stack
        self._app_id = app_id
        self.answers = dict.fromkeys(NAMES, 0)
        self.failures: list[str] = []
        super().__init__(*(partial(self._ask, node) for node in NAMES))

    def go_on(self) -> None:
        """Wait until every node has answered some more."""
        before = dict(self.answers)
        eventually(
            lambda: all(self.answers[node] > before[node] + 5 for node in NAMES),
            f"requests go on: {self.failures[:3]}",
        )

    def _ask(self, node: str) -> None:
        while not self._ended.wait(0.02):
            status, text = self._stack.http(self._app_id, node=node)
            if status != 200:
                self.failures.append(f"{node} {status} {text}")
            self.answers[node] += 1


def homes(stack: Stack, app_id: str) -> dict[str, str]:
    """Return the id of the instance that serves on each node."""
    app = stack.get(app_id)
    ready = [it for it in app.instances if it.state == Instance.RUNNING and it.health == Instance.HEALTHY]
    return {it.node.rpartition("/")[2]: it.name.rpartition("/")[2] for it in ready}


def at_rest(stack: Stack) -> None:
    """Wait until what was replaced is gone, too: an operation ends as soon as what is new serves."""
    eventually(lambda: not stack.get("shop").reconciling, "it is at rest", LONG)


def condition(app: catalog.App, kind: str) -> Condition:
    return next(it for it in app.conditions if it.type == kind)


def update(stack: Stack, path: str, **fields: object) -> catalog.UpdateAppRequest:
    request = catalog.UpdateAppRequest(app=catalog.App(name="apps/shop", **fields))  # type: ignore[arg-type]
    request.update_mask.paths.append(path)
    return request


def test_three_replicas_are_rolled_without_a_failed_request_and_outlive_a_node(three_nodes: Stack) -> None:
    stack = three_nodes
    none = Database(no_database=Database.NoDatabase())
    app = stack.create("shop", "behaviours:ready", replicas=3, database=none)
    assert (app.ready_replicas, len(app.instances), app.reconciling) == (3, 3, False)
    first = homes(stack, "shop")
    assert sorted(first) == list(NAMES)
    assert sorted(first.values()) == ["g1-e1", "g1-e2-r1", "g1-e3-r2"]
    with Clients(stack, "shop") as clients:
        clients.go_on()
        better = update(stack, "env", env={"EDITION": "two"})
        stack.result(stack.apps.UpdateApp(better, timeout=DEADLINE), LONG)
        at_rest(stack)
        assert {it.generation for it in stack.get("shop").instances} == {2}
        clients.go_on()
        # A version that does not start: the first replica finds it out, and the others are never touched.
        second = homes(stack, "shop")
        broken = stack.wait(
            stack.apps.UpdateApp(
                update(stack, "entrypoint", entrypoint="behaviours:nothing"), timeout=DEADLINE
            ),
            LONG,
        )
        assert broken.WhichOneof("result") == "error", broken
        at_rest(stack)
        assert homes(stack, "shop") == second
        clients.go_on()
        app = stack.result(
            stack.apps.UpdateApp(
                update(stack, "entrypoint", entrypoint="behaviours:ready"), timeout=DEADLINE
            ),
            LONG,
        )
        app = stack.result(
            stack.apps.RestartApp(catalog.RestartAppRequest(name=app.name), timeout=DEADLINE), LONG
        )
        assert app.ready_replicas == 3
        at_rest(stack)
        clients.go_on()
    assert clients.failures == []
    before = homes(stack, "shop")
    stack.nodes["node-3"].kill()

    def is_short() -> bool:
        return condition(stack.get("shop"), "Replicas").message == "2 of 3 are ready."

    eventually(is_short, "one replica is missed", LONG)
    app = stack.get("shop")
    assert (app.state, app.health) == (Instance.RUNNING, Instance.DEGRADED)
    for node in NAMES[:2]:
        assert stack.http("shop", node=node)[0] == 200
        assert homes(stack, "shop")[node] == before[node], "its siblings are not touched"
    stack.nodes["node-3"].start()
    eventually(lambda: sorted(homes(stack, "shop")) == list(NAMES), "it is there again", LONG)
    eventually(lambda: stack.http("shop", node="node-3")[0] == 200, "it answers again")

"""A gateway with a real Envoy in front of a stack, and what tests ask through it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.runtime.v1.runtime_environment_pb2 import Database, Instance
from tests.e2e.stack import DEADLINE, ROOT, Process, Stack, eventually, free_port
from tests.envoy import needed_envoy

NODES = "environments/default/nodes"
MIXED = "mixed:create_app"
STATELESS = Database(no_database=Database.NoDatabase())


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def told(self) -> dict[str, Any]:
        found = json.loads(self.text)
        assert isinstance(found, dict)
        return found


class Edge:
    """A gateway with an Envoy, in front of a stack."""

    def __init__(self, stack: Stack, *flags: str) -> None:
        self.port, xds, metrics = free_port(), free_port(), free_port()
        self.xds = f"127.0.0.1:{xds}"
        self.metrics = metrics
        self.process = Process(
            "gateway",
            [
                *("-m", "services.gateway", "--control-plane", stack.address),
                *("--listen", f"127.0.0.1:{self.port}", "--xds-listen", self.xds),
                *("--metrics-listen", f"127.0.0.1:{metrics}", "--envoy-workers", "1"),
                *flags,
            ],
            stack.folder / "gateway.log",
        )

    def ask(
        self,
        path: str = "/",
        method: str = "GET",
        body: bytes | None = None,
        *,
        host: str = "",
        port: int = 0,
        **headers: str,
    ) -> Answer:
        """Send one request on a connection of its own; status 0 if no answer came."""
        with closing(
            http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=DEADLINE)
        ) as connection:
            told = {name.replace("_", "-"): value for name, value in headers.items()}
            try:
                connection.request(method, path, body, {**({"Host": host} if host else {}), **told})
                answer = connection.getresponse()
                text = answer.read().decode("utf-8", "replace")
            except (OSError, http.client.HTTPException) as broken:
                return Answer(0, {}, repr(broken))
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, text)

    def serves(self, host: str) -> Answer:
        """Wait until an app answers."""
        last = [Answer(0, {}, "")]

        def look() -> bool:
            last[0] = self.ask(host=host)
            return last[0].status == 200

        eventually(look, f"{host} is served by the gateway")
        return last[0]

    def figure(self, name: str) -> float:
        """Return one of the gateway's metrics; 0 while it has none."""
        answer = self.ask("/metrics", port=self.metrics)
        lines = (line.rpartition(" ") for line in answer.text.splitlines() if not line.startswith("#"))
        return sum(float(value) for key, _, value in lines if key.partition("{")[0] == name)


@contextmanager
def fleet(folder: Path, nodes: Sequence[str]) -> Iterator[Stack]:
    """Give a stack of so many nodes, each of which believes the gateway, with an app `home`."""
    needed_envoy()
    folders = ("compose/apps", "tests/apps/gateway", "tests/apps/grpc")
    stack = Stack(folder, app_dirs=tuple(ROOT / it for it in folders))
    with stack.serving(*nodes[1:], flags=("--trusted-proxy=127.0.0.1",)):
        stack.create("home", MIXED, database=STATELESS, domains=["home.example.com"])
        yield stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with fleet(tmp_path_factory.mktemp("gateway") / "stack", ("node-1", "node-2")) as stack:
        yield stack


@pytest.fixture(scope="module")
def edge(stack: Stack) -> Iterator[Edge]:
    edge = Edge(stack)
    try:
        edge.process.start()
        edge.serves("home.localhost")
        yield edge
    finally:
        edge.process.clean_up()
        print(f"---- gateway\n{edge.process.text()[-20_000:]}")


def replicas(edge: Edge, app_id: str) -> set[str]:
    """Wait until both of an app's replicas answer; return their names."""
    told: set[str] = set()

    def both() -> bool:
        answer = edge.ask(host=f"{app_id}.localhost")
        told.update([answer.told["instance"]] if answer.status == 200 else [])
        return len(told) == 2

    eventually(both, "both replicas answer")
    return told


def move(stack: Stack, app_id: str, node: str) -> None:
    request = catalog.MoveAppRequest(name=f"apps/{app_id}", node=f"{NODES}/{node}")
    stack.result(stack.apps.MoveApp(request, timeout=DEADLINE))


def node_of(stack: Stack, app_id: str) -> str:
    newest = max(stack.get(app_id).instances, key=lambda one: one.epoch, default=None)
    return "" if newest is None or newest.state != Instance.RUNNING else newest.node.rpartition("/")[2]

"""gRPC clients without a proxy call an app on real nodes while it is replaced, moved and drained away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from appsupervisor.runtime.v1.runtime_environment_pb2 import Database, InstanceSpec
from services.gateway.bootstrap import grpc_bootstrap
from tests.e2e.stack import DEADLINE, ROOT, Process, Stack, eventually, free_port
from tests.e2e.test_moves import homes

pytestmark = pytest.mark.slow

NODES = "environments/default/nodes"
STATELESS = Database(no_database=Database.NoDatabase())


class Client:
    """A client in a process of its own, that finds apps at a gateway."""

    def __init__(self, stack: ExitStack, xds: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/integration/gateway/caller.py")],
            env={**os.environ, "GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps(grpc_bootstrap("client-1", xds))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(self._end)

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def do(self, what: str, app: str, **more: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        command = {"do": what, "target": f"xds:///{app}.localhost", **more}
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))

    def calls(self, app: str) -> str:
        """Return which instance answers; empty for a call that fails."""
        return str(self.do("call", app).get("from", ""))


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path / "stack", app_dirs=(ROOT / "tests/apps/grpc",)).serving("node-2") as stack:
        yield stack


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    xds = f"127.0.0.1:{free_port()}"
    with ExitStack() as ends:
        gateway = Process(
            "gateway",
            [
                *("-m", "services.gateway", "--no-envoy", "--control-plane", stack.address),
                *("--xds-listen", xds, "--metrics-listen", "off"),
            ],
            stack.folder / "gateway.log",
        )
        ends.callback(lambda: print(f"---- gateway\n{gateway.text()[-20_000:]}"))
        ends.callback(gateway.clean_up)
        gateway.start()
        yield Client(ends, xds)


def test_no_call_is_lost_while_an_app_is_replaced_moved_and_drained_away(
    stack: Stack, client: Client
) -> None:
    stack.create("talk", "talker:create_app", database=STATELESS)
    stack.create("sleepy", "talker:create_app", database=STATELESS, activation=InstanceSpec.ON_REQUEST)
    eventually(lambda: client.calls("talk"), "the app answers")
    client.do("begin", "talk")
    seen: set[str] = set()

    def followed(what: str) -> None:
        now = eventually(lambda: (told := set(client.do("look", "talk")["answers"])) > seen and told, what)
        seen.update(now)

    followed("its first instance answers")
    restart = catalog.RestartAppRequest(name="apps/talk")
    stack.result(stack.apps.RestartApp(restart, timeout=DEADLINE))
    followed("its next instance answers")
    (first,) = eventually(lambda: len(told := homes(stack, "talk")) == 1 and told, "it is on one node")
    (second,) = {"node-1", "node-2"} - {first}
    move = catalog.MoveAppRequest(name="apps/talk", node=f"{NODES}/{second}")
    stack.result(stack.apps.MoveApp(move, timeout=DEADLINE))
    followed("it answers where it was moved to")
    drain = fleet.DrainNodeRequest(name=f"{NODES}/{second}")
    done = stack.wait(stack.fleet.DrainNode(drain, timeout=DEADLINE))
    assert done.WhichOneof("result") == "response", done
    followed("it answers where it was drained to")
    # What sleeps is woken by its node.
    assert eventually(lambda: client.calls("sleepy"), "the app that slept answers")
    told = client.do("end", "talk")
    # What the former node has given to nobody, and said so, was called again.
    assert not told["failed"], told

"""An app goes from node to node under requests that go on all the while, also over a killed control plane."""

from __future__ import annotations

import contextlib
import http.client
import queue
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest
from google.longrunning import operations_pb2
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import connect

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from appsupervisor.runtime.v1.runtime_environment_pb2 import Database, Forwarding, GetRuntimeStatusRequest
from tests.e2e.conftest import GUEST_DIRS
from tests.e2e.stack import DEADLINE, ROOT, Stack, eventually
from tests.e2e.visitors import Visitors

PER_SECOND = 100
NODES = "environments/default/nodes"


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path / "stack", app_dirs=(*GUEST_DIRS, ROOT / "tests/apps/grpc")).serving(
        "node-2"
    ) as stack:
        yield stack


class Follower(Visitors):
    """A client that sends requests to where the app's `uri` leads, as a watch told it last."""

    def __init__(self, stack: Stack, app_id: str) -> None:
        self._stack = stack
        self._app_id = app_id
        self.uri = stack.get(app_id).uri
        self.answers = 0
        self.seen: set[str] = set()
        self.failures: list[str] = []
        super().__init__(self._watch, self._ask)

    def goes_on(self) -> None:
        """Wait until there have been some more answers."""
        before = self.answers
        eventually(lambda: self.answers > before + 20, f"requests go on: {self.failures[:3]}")

    def _watch(self) -> None:
        request = catalog.WatchAppsRequest(filter=f'name = "apps/{self._app_id}"')
        while not self._ended.is_set():
            # A control plane that was killed is asked again; meanwhile the last address holds.
            with contextlib.suppress(grpc.RpcError):
                stream = self._stack.apps.WatchApps(request, wait_for_ready=True, timeout=DEADLINE)
                for message in stream:
                    self.uri = message.app.uri or self.uri
                    if self._ended.is_set():
                        stream.cancel()
                        return

    def _ask(self) -> None:
        while not self._ended.wait(1 / PER_SECOND):
            uri = urlsplit(self.uri)
            connection = http.client.HTTPConnection("127.0.0.1", uri.port, timeout=DEADLINE)
            try:
                connection.request("GET", "/", headers={"Host": uri.hostname or ""})
                answer = connection.getresponse()
                text = answer.read().decode()
                if answer.status == 200:
                    self.seen.add(f"{uri.port} {text}")
                else:
                    self.failures.append(f"{uri.port} {answer.status} {text}")
            except (OSError, http.client.HTTPException) as broken:
                self.failures.append(f"{uri.port} {broken!r}")
            finally:
                connection.close()
            self.answers += 1


class Holdout(Visitors):
    """A client that goes on at one node's address, whatever `uri` says: GET, POST, and WebSockets in turn."""

    BODY = bytes(range(256)) * 400

    def __init__(self, stack: Stack, app_id: str, node: str) -> None:
        self._port = stack.http_port(node)
        self._host = f"{app_id}.localhost"
        self.answers = 0
        self.failures: list[str] = []
        super().__init__(*(partial(self._run, way) for way in (self._get, self._post, self._talk)))

    def goes_on(self) -> None:
        """Wait until there have been some more answers."""
        before = self.answers
        eventually(lambda: self.answers > before + 20, f"requests go on: {self.failures[:3]}")

    def _run(self, way: Callable[[], str]) -> None:
        while not self._ended.wait(3 / PER_SECOND):
            try:
                if problem := way():
                    self.failures.append(f"{way.__name__}: {problem}")
            except (OSError, http.client.HTTPException, WebSocketException) as broken:
                self.failures.append(f"{way.__name__}: {broken!r}")
            self.answers += 1

    def _ask(self, method: str, body: bytes | None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=DEADLINE)
        with contextlib.closing(connection):
            chunks = [body[:1000], body[1000:]] if body else None
            connection.request(method, "/", chunks, {"Host": self._host}, encode_chunked=bool(body))
            answer = connection.getresponse()
            return answer.status, answer.read()

    def _get(self) -> str:
        status, text = self._ask("GET", None)
        return "" if (status, text[:5]) == (200, b"shop ") else f"{status} {text!r}"

    def _post(self) -> str:
        status, text = self._ask("POST", self.BODY)
        return "" if (status, text) == (200, self.BODY) else f"{status} {text[:200]!r}"

    def _talk(self) -> str:
        sock = socket.create_connection(("127.0.0.1", self._port), DEADLINE)
        with sock, connect(f"ws://{self._host}/", sock=sock, open_timeout=DEADLINE) as talk:
            try:
                talk.send("hello")
                return "" if talk.recv(DEADLINE) == "hello" else "another echo"
            except ConnectionClosed as closed:
                # One that is open when its app leaves is told so, and comes again.
                return "" if closed.rcvd is not None and closed.rcvd.code == 1012 else repr(closed)


class Caller(Visitors):
    """A gRPC client that goes on at one node's address: small calls, large ones, both sides by turns."""

    LARGE = bytes(range(256)) * 800

    def __init__(self, stack: Stack, app_id: str, node: str) -> None:
        authority = [("grpc.default_authority", f"{app_id}.localhost")]
        self._channel = grpc.insecure_channel(f"127.0.0.1:{stack.http_port(node)}", authority)
        self._echo = self._channel.unary_unary("/demo.Calculator/Echo")
        self._chat = self._channel.stream_stream("/demo.Calculator/Chat")
        self.answers = 0
        self.failures: list[str] = []
        ways = (partial(self._say, b"hello"), partial(self._say, self.LARGE), self._talk)
        super().__init__(*(partial(self._run, way) for way in ways))

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._channel.close()

    def goes_on(self) -> None:
        """Wait until there have been some more answers."""
        before = self.answers
        eventually(lambda: self.answers > before + 20, f"calls go on: {self.failures[:3]}")

    def _run(self, way: Callable[[], bool]) -> None:
        while not self._ended.wait(3 / PER_SECOND):
            try:
                if not way():
                    self.failures.append("another answer")
            except grpc.RpcError as refused:
                self.failures.append(f"{refused.code()} {refused.details()}")
            self.answers += 1

    def _say(self, what: bytes) -> bool:
        return bool(self._echo(what, timeout=DEADLINE) == what)

    def _talk(self) -> bool:
        said: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        answers = self._chat(iter(said.get, None), timeout=DEADLINE)
        for word in (b"one", b"two"):
            said.put(word)
            if next(answers) != b"you said " + word:
                return False
        said.put(None)
        return not list(answers)


def forwarded(stack: Stack, node: str) -> Forwarding:
    with stack.runtime(node) as runtime:
        return runtime.GetRuntimeStatus(GetRuntimeStatusRequest(), timeout=DEADLINE).forwarding


def homes(stack: Stack, app_id: str) -> list[str]:
    """Return the nodes of an app's instances."""
    return [it.node.rpartition("/")[2] for it in stack.get(app_id).instances]


def move_app(stack: Stack, app_id: str, node: str) -> catalog.App:
    request = catalog.MoveAppRequest(name=f"apps/{app_id}", node=f"{NODES}/{node}")
    return stack.result(stack.apps.MoveApp(request, timeout=DEADLINE))


def test_a_move_and_a_drain_over_a_killed_control_plane_fail_no_request(two_nodes: Stack) -> None:
    stack = two_nodes
    stack.create("shop", "behaviours:talks", database=Database(no_database=Database.NoDatabase()))
    (first,) = homes(stack, "shop")
    (second,) = {"node-1", "node-2"} - {first}
    stack.create("calc", "calculator:create_app", database=Database(no_database=Database.NoDatabase()))
    if homes(stack, "calc") != [first]:
        move_app(stack, "calc", first)
    with (
        Follower(stack, "shop") as follower,
        Holdout(stack, "shop", first) as holdout,
        Caller(stack, "calc", first) as caller,
    ):
        for client in (follower, holdout, caller):
            client.goes_on()
        app = move_app(stack, "shop", second)
        assert f"{NODES}/{second}" in [it.node for it in app.instances]
        move_app(stack, "calc", second)
        eventually(lambda: homes(stack, "shop") == [second], "it is told to be there alone")
        follower.goes_on()
        # Who goes on asking where the app was is answered by the node that has it.
        holdout.goes_on()
        caller.goes_on()
        eventually(lambda: forwarded(stack, first).app_count == 2, "the former node forwards")
        carried = forwarded(stack, first).request_count
        eventually(lambda: forwarded(stack, first).request_count > carried, "and goes on to")
        # Back again, by a drain, and whoever brings it on is killed as soon as it has begun.
        drain = fleet.DrainNodeRequest(name=f"{NODES}/{second}")
        operation: operations_pb2.Operation = stack.fleet.DrainNode(drain, timeout=DEADLINE)
        stack.control_plane.kill()
        follower.goes_on()
        stack.control_plane.start()
        stack.wait_until_called()
        done = stack.wait(operation, 2 * DEADLINE)
        assert done.WhichOneof("result") == "response", done
        follower.goes_on()
        eventually(lambda: forwarded(stack, first).app_count == 0, "its own instance answers again")
        holdout.goes_on()
        caller.goes_on()
    assert follower.failures == []
    assert holdout.failures == []
    assert caller.failures == []
    assert forwarded(stack, first).failure_count == 0
    ports = {line.split()[0] for line in follower.seen}
    assert ports == {str(stack.http_port(node)) for node in (first, second)}
    eventually(lambda: homes(stack, "shop") == [first], "it is told to be where it was")
    request = fleet.GetNodeRequest(name=f"{NODES}/{second}")
    eventually(lambda: stack.fleet.GetNode(request, timeout=DEADLINE).app_count == 0, "nothing is left there")
    assert stack.fleet.GetNode(request, timeout=DEADLINE).cordoned

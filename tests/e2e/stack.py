"""A control plane and nodes as real processes, for tests that kill and restart them."""

import contextlib
import http.client
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import duration_pb2

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.catalog.v1.app_catalog_pb2_grpc import AppCatalogStub
from appsupervisor.catalog.v1.certificates_pb2_grpc import CertificatesStub
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from appsupervisor.fleet.v1.fleet_pb2_grpc import FleetStub
from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from appsupervisor.runtime.v1.runtime_environment_pb2_grpc import RuntimeEnvironmentStub
from tests.eventually import NeverCameAbout, eventually_blocking

ROOT = Path(__file__).resolve().parents[2]
CHILD = ROOT / "services/rpc/child.py"
APP_DIRS = (ROOT / "compose/apps", ROOT / "tests/apps")
DEADLINE = 60.0
_CLAIMS: list[socket.socket] = []

T = TypeVar("T")


def free_port() -> int:
    """Return a port that nothing listens on and that no other test gets until this process ends.

    A process keeps its port over restarts, so it is none of those that the system gives to connections by
    itself. The one after it is free, too. The claim is a name in the kernel's table of local sockets.
    """
    for port in random.sample(range(10_000, 32_000, 2), 100):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0appsupervisor-tests-{port}")
            for one in (port, port + 1):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", one))
        except OSError:
            claim.close()
        else:
            _CLAIMS.append(claim)
            return port
    raise AssertionError("no free port among a hundred")


def eventually(look: Callable[[], T], what: str, timeout: float = DEADLINE) -> T:
    """Return the first truthy value of `look`; fail with `what` was waited for after `timeout` seconds."""
    try:
        return cast("T", eventually_blocking(look, within=timeout))
    except NeverCameAbout as never:
        raise AssertionError(f"not within {timeout:.0f} s: {what}; {never}") from None


class Process:
    """One program of the stack. It ends with the test process, whatever happens to that."""

    def __init__(
        self,
        name: str,
        command: list[str],
        log: Path,
        root: Path = ROOT,
        runs: Sequence[str] = (sys.executable,),
    ) -> None:
        """`root` is the tree whose program it is; `runs` the program that is given `command`."""
        self.name = name
        self.log = log
        self._root = root
        # child.py takes a path; the system looks its programs up.
        program = [shutil.which(runs[0]) or runs[0], *runs[1:], *command]
        self._command = [sys.executable, "-S", str(CHILD), str(os.getpid()), *program]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{self._root}{os.pathsep}{self._root / 'gen'}"}
        # As an installed program it keeps what it has compiled: 300 modules take as long as its start.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """End it as kill -9 does; only the process itself, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def terminate(self, timeout: float = DEADLINE) -> int:
        """End it with SIGTERM and return its exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(timeout)

    def clean_up(self) -> None:
        """End it and what it forked, whatever state it is in."""
        if self._process is not None:
            for number in (signal.SIGCONT, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, number)
            self._process.wait()

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


@dataclass
class Stack:
    """A control plane and its nodes in a folder. Processes keep their ports and data over restarts."""

    folder: Path
    app_dirs: tuple[Path, ...] = APP_DIRS
    control_plane_root: Path = ROOT
    node_root: Path = ROOT
    control_plane_flags: tuple[str, ...] = ()
    control_plane_port: int = field(default_factory=free_port)
    nodes: dict[str, Process] = field(default_factory=dict)
    _node_ports: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.control_plane = Process(
            "control-plane",
            [
                *("-m", "services.control_plane"),
                *("--listen", self.address),
                *("--database-url", f"sqlite:///{self.folder / 'control-plane.db'}"),
                *self.control_plane_flags,
            ],
            self.folder / "control-plane.log",
            self.control_plane_root,
        )
        # A channel that has seen its server die would otherwise wait longer and longer before it looks again.
        reconnect = (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200))
        self.channel = grpc.insecure_channel(self.address, reconnect)
        self.apps = AppCatalogStub(self.channel)
        self.certificates = CertificatesStub(self.channel)
        self.fleet = FleetStub(self.channel)
        self.operations = operations_pb2_grpc.OperationsStub(self.channel)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.control_plane_port}"

    def node_pid(self, node: str = "node-1") -> int:
        """Return the id of a node's process, in which apps run that are not in one of their own."""
        return self.nodes[node].pid

    def node_address(self, node: str = "node-1") -> str:
        return f"127.0.0.1:{self._node_ports[node][0]}"

    def http_port(self, node: str = "node-1") -> int:
        return self._node_ports[node][1]

    def add_node(self, node: str = "node-1", environment: str = "default", *flags: str) -> Process:
        """Declare a node and start it."""
        grpc_port, http_port = self._node_ports.setdefault(node, (free_port(), free_port()))
        app_dirs = [f"--app-dir={path}" for path in self.app_dirs if path.is_dir()]
        self.nodes[node] = Process(
            node,
            [
                *("-m", "runtime_node"),
                *("--listen", f"127.0.0.1:{grpc_port}", "--http-listen", f"127.0.0.1:{http_port}"),
                *("--control-plane", self.address, "--environment", environment, "--node", node),
                *("--data-dir", str(self.folder / node)),
                *app_dirs,
                *flags,
            ],
            self.folder / f"{node}.log",
            self.node_root,
        )
        self.nodes[node].start()
        return self.nodes[node]

    def start(self, *flags: str) -> "Stack":
        """Start a control plane and one node, with those flags, and wait until both can be called."""
        self.control_plane.start()
        self.add_node("node-1", "default", *flags)
        self.wait_until_called()
        with grpc.insecure_channel(self.node_address()) as channel:
            grpc.channel_ready_future(channel).result(DEADLINE)
        return self

    @contextlib.contextmanager
    def serving(self, *others: str, flags: Sequence[str] = ()) -> Iterator["Stack"]:
        """Run the stack, with further nodes, all of them ready, from entering to leaving the context."""
        try:
            self.start(*flags)
            for node in others:
                self.add_node(node, "default", *flags)
            for node in ("node-1", *others):
                eventually(lambda node=node: self.is_ready(node), f"{node} is ready")  # type: ignore[misc]
            yield self
        finally:
            self.clean_up()

    def wait_until_called(self) -> None:
        """Wait until the control plane answers."""

        def answers() -> bool:
            request = catalog.ListAppsRequest(page_size=1)
            try:
                self.apps.ListApps(request, timeout=DEADLINE, wait_for_ready=True)
            except grpc.RpcError as failure:
                # The call may go out on the connection of one that was killed a moment ago.
                if failure.code() != grpc.StatusCode.UNAVAILABLE:  # type: ignore[attr-defined]
                    raise
                return False
            return True

        eventually(answers, "the control plane answers")

    def node(self, node: str) -> fleet.Node:
        """Return a node as the catalog tells it; an empty one while it cannot be asked."""
        request = fleet.GetNodeRequest(name=f"environments/default/nodes/{node}")
        try:
            return self.fleet.GetNode(request, timeout=DEADLINE, wait_for_ready=True)
        except grpc.RpcError:
            return fleet.Node()

    def is_ready(self, node: str) -> bool:
        """Tell whether the control plane follows a node, by its own word."""
        return self.node(node).state == fleet.Node.READY

    @contextlib.contextmanager
    def runtime(self, node: str = "node-1") -> Iterator[RuntimeEnvironmentStub]:
        """Give a client of a node's own API."""
        with grpc.insecure_channel(self.node_address(node)) as channel:
            yield RuntimeEnvironmentStub(channel)

    def figures(self, app_id: str, node: str = "node-1") -> pb.InstanceFigures:
        """Return the figures of an app's newest instance on a node; empty ones while it is not there."""
        request = pb.ListInstancesRequest(parent=f"apps/{app_id}")
        with self.runtime(node) as stub:
            found = stub.ListInstances(request, timeout=DEADLINE).instances
        newest = max(found, key=lambda one: (one.epoch, one.generation), default=pb.Instance())
        return newest.figures

    def create(self, app_id: str, entrypoint: str = "notes:create_app", **fields: object) -> catalog.App:
        """Create an app and return it as it is when its operation is done; fails if that failed."""
        app = catalog.App(entrypoint=entrypoint, **fields)  # type: ignore[arg-type]
        request = catalog.CreateAppRequest(app_id=app_id, app=app)
        return self.result(self.apps.CreateApp(request, timeout=DEADLINE))

    def result(self, operation: operations_pb2.Operation, timeout: float = DEADLINE) -> catalog.App:
        """Wait for an operation and return its app; fails with the operation's error."""
        done = self.wait(operation, timeout)
        assert done.WhichOneof("result") == "response", done
        app = catalog.App()
        assert done.response.Unpack(app)
        return app

    def wait(
        self, operation: operations_pb2.Operation, timeout: float = DEADLINE
    ) -> operations_pb2.Operation:
        """Return an operation when it is done."""
        request = operations_pb2.WaitOperationRequest(
            name=operation.name, timeout=duration_pb2.Duration(seconds=int(timeout))
        )
        if not operation.done:
            operation = self.operations.WaitOperation(request, timeout=timeout + 5, wait_for_ready=True)
        assert operation.done, f"not done within {timeout:.0f} s: {operation}"
        return operation

    def get(self, app_id: str) -> catalog.App:
        """Return an app as the catalog tells it."""
        request = catalog.GetAppRequest(name=f"apps/{app_id}")
        return self.apps.GetApp(request, timeout=DEADLINE, wait_for_ready=True)

    def http(
        self, app_id: str, path: str = "/", method: str = "GET", body: str | None = None, node: str = "node-1"
    ) -> tuple[int, str]:
        """Send one request to an app through a node; return status and body, or (0, reason) if none came."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port(node), timeout=DEADLINE)
        headers = {"Host": f"{app_id}.localhost"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as broken:
            return 0, str(broken)
        finally:
            connection.close()

    def serves(self, app_id: str, timeout: float = DEADLINE) -> None:
        """Wait until an app answers its health path."""
        eventually(lambda: self.http(app_id, "/healthz")[0] == 200, f"{app_id} serves", timeout)

    def clean_up(self) -> None:
        """End everything and print the logs, which pytest shows for a test that failed."""
        self.channel.close()
        for process in (*self.nodes.values(), self.control_plane):
            process.clean_up()
            print(f"---- {process.name}\n{process.text()[-20_000:]}")

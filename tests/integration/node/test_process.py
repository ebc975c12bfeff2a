"""The node as a process: flags, locks, signals, sudden death."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from appsupervisor.runtime.v1.runtime_environment_pb2_grpc import RuntimeEnvironmentStub
from tests.eventually import WITHIN, eventually_blocking
from tests.fakes.node_client import APPS

ROOT = Path(__file__).resolve().parents[3]
DEADLINE = WITHIN


class NodeProcess:
    """One `python -m runtime_node`."""

    def __init__(self, directory: Path, *flags: str, **environment: str) -> None:
        self.log = directory / "log"
        arguments = ["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--app-dir", str(APPS)]
        arguments += ["--data-dir", str(directory / "data"), *flags]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "runtime_node", *arguments],
                stderr=log,
                env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}", **environment},
                start_new_session=True,
            )

    def wait_for(self, text: str) -> str:
        """Wait for a line of the log that matches, and return it."""

        def look() -> str | None:
            ended = self.process.poll() is not None
            found = [line for line in self.log.read_text().splitlines() if re.search(text, line)]
            if not found and ended:
                raise AssertionError(f"no {text!r} in:\n{self.log.read_text()}")
            return found[0] if found else None

        return str(eventually_blocking(look))

    def addresses(self) -> tuple[str, str]:
        line = self.wait_for("node.ready")
        grpc_address = re.search(r"grpc=(\S+)", line)
        http_address = re.search(r"http=(\S+)", line)
        assert grpc_address is not None
        assert http_address is not None
        return grpc_address[1], http_address[1]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE)


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[type[NodeProcess]]:
    started: list[NodeProcess] = []

    def start(*flags: str, directory: Path = tmp_path, **environment: str) -> NodeProcess:
        directory.mkdir(exist_ok=True)
        node = NodeProcess(directory, *flags, **environment)
        started.append(node)
        return node

    yield start  # type: ignore[misc]
    for node in started:
        if node.process.poll() is None:
            node.process.kill()
            node.process.wait()


def start_app(address: str, name: str = "apps/shop/instances/a1", **fields: object) -> str:
    """Start an app, wait until it runs, return the node's incarnation."""
    with grpc.insecure_channel(address) as channel:
        stub = RuntimeEnvironmentStub(channel)
        spec = pb.InstanceSpec(
            **{
                "name": name, "app_uid": "uid-1", "generation": 1, "epoch": 1,
                "entrypoint": "behaviours:ready", "isolation": pb.InstanceSpec.SHARED, **fields,
            }
        )  # fmt: skip
        accepted = stub.StartInstance(pb.StartInstanceRequest(spec=spec), timeout=DEADLINE).instance
        for message in stub.WatchInstances(pb.WatchInstancesRequest(), timeout=DEADLINE):
            if message.instance.name == name and message.instance.state == pb.Instance.RUNNING:
                break
        return accepted.incarnation


def ask(address: str) -> httpx.Response:
    return httpx.get(f"http://{address}/", headers={"X-App": "shop"}, timeout=DEADLINE, verify=False)


def test_sigterm_drains_and_exits_with_success(launch) -> None:
    node = launch()
    grpc_address, http_address = node.addresses()
    start_app(grpc_address)
    assert (
        httpx.get(f"http://{http_address}/", headers={"X-App": "shop"}, timeout=DEADLINE, verify=False).text
        == "shop a1 1"
    )
    assert node.end() == 0
    log = node.log.read_text()
    assert log.index("node.draining") < log.index("instance.gone") < log.index("node.ended")


def test_sigint_does_too(launch) -> None:
    node = launch()
    node.addresses()
    assert node.end(signal.SIGINT) == 0


def test_a_second_signal_ends_a_drain_at_once(launch) -> None:
    node = launch()
    grpc_address, _ = node.addresses()
    config = Struct()
    config["stop_seconds"] = 600
    limits = pb.Limits(stop_timeout=Duration(seconds=600))
    start_app(grpc_address, entrypoint="behaviours:slow_to_stop", config=config, limits=limits)
    node.process.send_signal(signal.SIGTERM)
    node.wait_for("node.draining")
    assert node.end() == 1


def test_a_killed_node_comes_back_with_nothing_running_and_all_data(launch, tmp_path: Path) -> None:
    first = launch()
    address, _ = first.addresses()
    incarnation = start_app(address)
    data = tmp_path / "data/apps/shop.uid-1/kept"
    data.write_text("x")
    first.end(signal.SIGKILL)
    first.log.unlink()
    second = launch()
    address, http_address = second.addresses()
    with grpc.insecure_channel(address) as channel:
        stub = RuntimeEnvironmentStub(channel)
        assert not stub.ListInstances(pb.ListInstancesRequest(parent="apps/-"), timeout=DEADLINE).instances
    assert start_app(address) != incarnation
    assert (
        httpx.get(
            f"http://{http_address}/", headers={"X-App": "shop"}, timeout=DEADLINE, verify=False
        ).status_code
        == 200
    )
    assert data.read_text() == "x"


def test_a_second_node_on_the_same_data_or_the_same_port_is_refused(launch, tmp_path: Path) -> None:
    first = launch()
    grpc_address, http_address = first.addresses()
    second = launch()
    assert second.process.wait(DEADLINE) == 1
    assert "is in use by another node" in second.log.read_text()
    assert str(first.process.pid) in second.log.read_text()
    for flag, address in (("--listen", grpc_address), ("--http-listen", http_address)):
        second = launch(flag, address, directory=tmp_path / flag)
        assert second.process.wait(DEADLINE) == 1
        assert re.search(r"node.refused.*(in use|address)", second.log.read_text())


def test_a_setting_may_come_from_the_environment_and_a_flag_wins(launch) -> None:
    node = launch(
        "--node", "by-flag",
        APPSUPERVISOR_NODE="by-variable", APPSUPERVISOR_ENVIRONMENT="elsewhere",
    )  # fmt: skip
    assert "environments/elsewhere/nodes/by-flag" in node.wait_for("node.ready")


def test_no_process_of_a_node_outlives_it(launch) -> None:
    node = launch()
    node.addresses()
    zygote = re.search(r"pid=(\d+)", node.wait_for("zygote.ready"))
    assert zygote is not None
    node.end(signal.SIGKILL)
    eventually_blocking(lambda: not Path(f"/proc/{zygote[1]}").exists())

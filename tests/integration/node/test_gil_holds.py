"""Apps that keep the interpreter's lock in C code: found out by the monitor, moved to a process."""

import os
import signal
import time
from collections.abc import Callable, Iterator

import grpc
import httpx
import pytest

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from appsupervisor.runtime.v1.runtime_environment_pb2_grpc import RuntimeEnvironmentStub
from tests.eventually import eventually_blocking

from .test_faults import condition, ms
from .test_process import DEADLINE, NodeProcess

SHOP = "apps/shop/instances/x"
HOG = {"entrypoint": "blockers:asked", "limits": pb.Limits(block_budget=ms(600), stop_timeout=ms(500))}


class Client:
    """A node process as its users see it."""

    def __init__(self, node: NodeProcess) -> None:
        self.node = node
        address, url = node.addresses()
        self._channel = grpc.insecure_channel(address)
        self.stub = RuntimeEnvironmentStub(self._channel)
        self.http = httpx.Client(base_url=f"http://{url}", timeout=DEADLINE, verify=False)

    def start(self, name: str, **fields: object) -> pb.Instance:
        fields = {"app_uid": name.split("/")[1], "generation": 1, "epoch": 1, **fields}
        spec = pb.InstanceSpec(name=name, **fields)  # type: ignore[arg-type]
        self.stub.StartInstance(pb.StartInstanceRequest(spec=spec))
        return self.becomes(lambda i: i.state == pb.Instance.RUNNING, name)

    def becomes(self, what: Callable[[pb.Instance], bool], name: str) -> pb.Instance:
        request = pb.GetInstanceRequest(name=name)
        return eventually_blocking(lambda: self.stub.GetInstance(request), what, within=DEADLINE)

    def moved(self, name: str) -> pb.Instance:
        """Wait until an instance runs in a process of its own."""
        return self.becomes(
            lambda i: i.isolation == pb.InstanceSpec.PROCESS and i.state == pb.Instance.RUNNING, name
        )

    def ask(self, app: str, path: str = "/") -> int:
        return self.http.get(path, headers={"X-App": app}).status_code

    def close(self) -> None:
        self.http.close()
        self._channel.close()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Give the node that the tests of this module share; each has a hog of its own."""
    client = Client(NodeProcess(tmp_path_factory.mktemp("node")))
    client.start(SHOP, entrypoint="behaviours:ready", isolation=pb.InstanceSpec.SHARED)
    try:
        yield client
        client.close()
        assert client.node.end() == 0
    finally:
        client.node.process.kill()


@pytest.mark.parametrize("tier", [pb.InstanceSpec.SHARED, pb.InstanceSpec.THREAD])
@pytest.mark.parametrize("do", ["hold", "compute"])
def test_a_call_that_keeps_the_lock_is_found_and_its_app_moved_to_a_process(
    client: Client, tier: int, do: str
) -> None:
    app = f"hog-{do}-{tier}"
    hog = client.start(f"apps/{app}/instances/x", isolation=tier, **HOG)
    assert client.ask(app, f"/?do={do}&seconds=1.5") in {200, 504}
    hog = client.moved(hog.name)
    assert hog.last_error.reason == "APP_BLOCKED_LOOP"
    assert "held the interpreter's lock" in hog.last_error.message
    assert "_do" in hog.last_error.detail
    assert "blockers.py" in hog.last_error.detail
    demoted = condition(hog, "Demoted")
    assert (demoted.status, demoted.reason) == (pb.Condition.MET, "APP_BLOCKED_LOOP")
    assert "PROCESS" in demoted.message
    assert hog.health == pb.Instance.Health.DEGRADED
    shop = client.stub.GetInstance(pb.GetInstanceRequest(name=SHOP))
    assert (shop.isolation, shop.last_error.reason) == (pb.InstanceSpec.SHARED, "")
    # There it holds a lock of its own.
    with httpx.Client(base_url=client.http.base_url, timeout=DEADLINE, verify=False) as other:
        assert other.get("/", headers={"X-App": "shop"}).status_code == 200
    assert client.ask(app) == 200


def test_a_hold_in_a_worker_thread_is_found_too(client: Client) -> None:
    hog = client.start("apps/in-thread/instances/x", isolation=pb.InstanceSpec.SHARED, **HOG)
    client.ask("in-thread", "/?do=hold-in-thread&seconds=1.5")
    assert "blockers.py" in client.moved(hog.name).last_error.detail


def test_a_node_that_was_stopped_for_a_while_blames_nobody(client: Client) -> None:
    hog = client.start("apps/idle/instances/x", isolation=pb.InstanceSpec.SHARED, **HOG)
    before = len(client.node.log.read_text())
    os.kill(client.node.process.pid, signal.SIGSTOP)
    time.sleep(1.2)  # twice its budget
    os.kill(client.node.process.pid, signal.SIGCONT)
    assert client.ask("idle") == 200
    assert client.becomes(lambda i: i.state == pb.Instance.RUNNING, hog.name).last_error.reason == ""
    assert "watchdog.held" not in client.node.log.read_text()[before:]

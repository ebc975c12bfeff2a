"""kill -9 at random moments: nothing acknowledged is lost, and every process comes back by itself.

CHAOS_ROUNDS says how many times (default 2); tests/seeds.py says from which seed the moments are drawn.
"""

import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.runtime.v1 import runtime_environment_pb2 as runtime
from tests.e2e.stack import DEADLINE, Stack, eventually
from tests.seeds import SEED

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "2"))

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300 + 20 * ROUNDS)]


@contextmanager
def meanwhile(step: Callable[[], None]) -> Iterator[None]:
    """Repeat `step` in a thread while the block runs; raise what it raised."""
    ended = threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while not ended.is_set():
                step()
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(2 * DEADLINE)  # a step waits for an answer that long
    assert not thread.is_alive()
    if failures:
        raise failures[0]


class Writer:
    """Creates apps one after the other and remembers which were acknowledged."""

    def __init__(self, stack: Stack, stopped: bool) -> None:
        self.acknowledged: list[str] = []
        self._stack = stack
        self._stopped = stopped
        self._number = 0

    def step(self) -> None:
        app_id = f"chaos-{self._number}"
        state = catalog.App.STOPPED if self._stopped else catalog.App.RUNNING
        app = catalog.App(entrypoint="notes:create_app", desired_state=state, labels={"made": app_id})
        request = catalog.CreateAppRequest(app_id=app_id, app=app, request_id=app_id)
        try:
            self._stack.apps.CreateApp(request, timeout=5, wait_for_ready=True)
        except grpc.RpcError:
            return  # not acknowledged: the same request is sent again, which its request_id makes safe
        self.acknowledged.append(app_id)
        self._number += 1


def pause(moments: random.Random) -> None:
    """Let a random span pass: which moment is hit is the point."""
    threading.Event().wait(moments.uniform(0.02, 0.6))


@pytest.mark.slow
def test_a_control_plane_killed_at_any_moment_loses_nothing_and_touches_no_app(stack: Stack) -> None:
    print(f"CHAOS_SEED={SEED}")
    moments = random.Random(SEED)
    stack.create("steady")
    stack.serves("steady")
    pid = stack.nodes["node-1"].pid
    writer = Writer(stack, stopped=True)

    def visit() -> None:
        status, text = stack.http("steady", "/healthz")
        assert status == 200, text
        time.sleep(0.005)

    with meanwhile(visit), meanwhile(writer.step):
        for _ in range(ROUNDS):
            pause(moments)
            stack.control_plane.kill()
            stack.control_plane.start()
            stack.wait_until_called()
        written = len(writer.acknowledged)
        eventually(lambda: len(writer.acknowledged) > written + 5, "writes go on")

    stack.control_plane.kill()
    stack.control_plane.start()
    stack.wait_until_called()
    for app_id in writer.acknowledged:
        app = stack.get(app_id)
        assert app.labels["made"] == app_id
        assert app.desired_state == catalog.App.STOPPED
    steady = eventually(
        lambda: app if (app := stack.get("steady")).health == runtime.Instance.Health.HEALTHY else None,
        "steady is heard",
    )
    assert steady.state == runtime.Instance.RUNNING
    assert steady.instances[0].restart_count == 0
    assert (stack.nodes["node-1"].pid, stack.nodes["node-1"].running()) == (pid, True)


@pytest.mark.slow
def test_a_node_killed_at_any_moment_brings_its_apps_back_and_no_stopped_one(stack: Stack) -> None:
    print(f"CHAOS_SEED={SEED}")
    moments = random.Random(SEED)
    running = [f"live-{number}" for number in range(3)]
    for app_id in running:
        stack.create(app_id)
    stack.create("halted")
    request = catalog.StopAppRequest(name="apps/halted")
    stack.result(stack.apps.StopApp(request, timeout=DEADLINE))
    notes: dict[str, list[str]] = {app_id: [] for app_id in running}

    def write() -> None:
        for app_id, kept in notes.items():
            text = f"{app_id} {len(kept)} {time.monotonic_ns()}"
            status, _ = stack.http(app_id, "/notes", "POST", json.dumps({"text": text}))
            if status == 201:
                kept.append(text)
        time.sleep(0.005)

    with meanwhile(write):
        for _ in range(ROUNDS):
            for app_id in running:
                stack.serves(app_id)
            pause(moments)
            stack.nodes["node-1"].kill()
            stack.nodes["node-1"].start()
        eventually(lambda: all(notes.values()), "each app has acknowledged a note")
    for app_id, kept in notes.items():
        stack.serves(app_id)
        stored: list[str] = []
        before = ""
        while page := json.loads(stack.http(app_id, f"/notes?limit=200{before}")[1]):
            stored += [note["text"] for note in page]
            before = f"&before={page[-1]['id']}"
        assert set(kept) <= set(stored), "an acknowledged note is gone"
    # An app's own answer comes before its node's report of it.
    states = {runtime.Instance.RUNNING}
    eventually(lambda: {stack.get(app_id).state for app_id in running} == states, "all are told to run")
    eventually(
        lambda: stack.get("halted").state == runtime.Instance.STOPPED, "and that one is told as stopped"
    )
    assert stack.http("halted", "/healthz")[0] >= 400


def test_both_killed_while_apps_are_being_created_end_with_all_of_them_serving(stack: Stack) -> None:
    print(f"CHAOS_SEED={SEED}")
    moments = random.Random(SEED)
    writer = Writer(stack, stopped=False)
    victims = [stack.control_plane, stack.nodes["node-1"]]
    with meanwhile(writer.step):
        for _ in range(ROUNDS):
            pause(moments)
            for victim in moments.sample(victims, moments.randint(1, 2)):
                victim.kill()
                victim.start()
            stack.wait_until_called()
            if len(writer.acknowledged) > 100:
                break
        eventually(lambda: writer.acknowledged, "a write gets through")
    for app_id in writer.acknowledged:
        stack.serves(app_id, timeout=DEADLINE)
        eventually(
            lambda app_id=app_id: stack.get(app_id).state == runtime.Instance.RUNNING,
            f"{app_id} is told as running",
        )

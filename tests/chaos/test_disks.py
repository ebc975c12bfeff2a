"""Full disks: a node's, a move target's, the control plane's. What cannot be written is refused, not lost."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance, InstanceSpec
from tests.chaos.faults import killed
from tests.chaos.fleet import NODES, Fleet
from tests.chaos.network import disk, full, require
from tests.chaos.rows import Rows
from tests.e2e.stack import DEADLINE, ROOT, Stack, eventually
from tests.e2e.traffic import info_of, reason_of

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(300)]


def refused(rows: Rows, times: int = 5) -> None:
    """Wait until the app could not write some rows."""
    before = rows.refusals["500 APP_RAISED"]
    eventually(lambda: rows.refusals["500 APP_RAISED"] >= before + times, "rows are refused")


LONG = pytest.mark.skipif(
    os.environ.get("CHAOS_ROUNDS", "1") == "1", reason="takes long: make chaos CHAOS_ROUNDS=2"
)


@pytest.mark.parametrize(
    "spare",
    [pytest.param(0, id="nothing free"), pytest.param(64 << 10, id="little free", marks=LONG)],
)
def test_rows_that_find_no_room_are_refused_and_the_node_serves_on(fleet: Fleet, spare: int) -> None:
    home = fleet.settles("local")
    pid = fleet.nodes[home].pid
    with Rows(fleet, "local") as rows:
        rows.go_on()
        with full(fleet.data(home), but=spare):
            refused(rows)
            assert fleet.home("local") == home
        rows.go_on(20)
    print(rows.summary())
    rows.judge(home, one_writer=True)
    assert (fleet.nodes[home].pid, fleet.nodes[home].running()) == (pid, True)
    # What it logs is heard again, too.
    request = catalog.TailAppLogsRequest(name="apps/local", follow=False)
    newest = max(rows.acknowledged)

    def logged() -> bool:
        tail = fleet.ask(lambda channel, limit: list(tail_of(channel, request, limit)))
        return f"row {newest}" in {entry.text for message in tail for entry in message.entries}

    eventually(logged, "its log goes on")


def tail_of(channel: grpc.Channel, request: catalog.TailAppLogsRequest, limit: float) -> Iterator[object]:
    from appsupervisor.catalog.v1.app_catalog_pb2_grpc import AppCatalogStub  # noqa: PLC0415

    yield from AppCatalogStub(channel).TailAppLogs(request, timeout=limit)


@LONG
def test_a_node_killed_with_a_full_disk_comes_back_with_every_row(fleet: Fleet) -> None:
    home = fleet.settles("local")
    with Rows(fleet, "local") as rows:
        rows.go_on()
        with full(fleet.data(home)):
            refused(rows)
            with killed(fleet.nodes[home]):
                pass
            said = fleet.nodes[home].text().count("node.registered")
            eventually(lambda: fleet.nodes[home].text().count("node.registered") > said - 1, "it joins")
            fleet.is_whole()
        rows.go_on()
    print(rows.summary())
    rows.judge(fleet.settles("local"), one_writer=True)


@LONG
def test_a_new_app_that_finds_no_room_fails_with_the_reason_and_starts_later(fleet: Fleet) -> None:
    with contextlib.ExitStack() as disks:
        for node in NODES:
            disks.enter_context(full(fleet.data(node)))
        operation = fleet.begin_create("cramped", isolation=InstanceSpec.SHARED)
        done = fleet.wait(operation, 3 * DEADLINE)
        assert done.WhichOneof("result") == "error", done
        print("no room for a new app:", reason_of(done), done.error.message, dict(info_of(done).metadata))
        assert reason_of(done)
        assert "space" in done.error.message or "full" in done.error.message, done.error.message
    done = fleet.wait(fleet.start_app("cramped"), 3 * DEADLINE)
    assert done.WhichOneof("result") == "response", done
    with Rows(fleet, "cramped") as rows:
        rows.go_on()
    rows.judge(fleet.settles("cramped"), one_writer=True)


@LONG
def test_a_move_to_a_full_disk_leaves_the_app_where_it_was(fleet: Fleet) -> None:
    source = fleet.settles("local")
    target = next(it for it in NODES if it != source)
    with Rows(fleet, "local") as rows:
        rows.go_on()
        with full(fleet.data(target)):
            done = fleet.wait(fleet.move("local", target), 3 * DEADLINE)
            rows.go_on()
        print("move to a full disk:", reason_of(done), done.error.message)
        assert done.WhichOneof("result") == "error", done
        assert reason_of(done) == "DATA_NOT_MOVED"
    rows.judge(fleet.settles("local"), one_writer=True)
    eventually(lambda: fleet.copies("local") == [source], "one node has its data")
    done = fleet.wait(fleet.move("local", target), 3 * DEADLINE)
    assert done.WhichOneof("result") == "response", done
    rows.judge(fleet.settles("local"), one_writer=True)


def test_a_control_plane_without_room_refuses_commands_reads_on_and_recovers(tmp_path: Path) -> None:
    require()
    with disk(tmp_path / "small", 48) as small:
        stack = Stack(small / "stack", app_dirs=(ROOT / "tests/apps/chaos",))
        try:
            stack.start()
            stack.create("before", "rows:create_app", isolation=InstanceSpec.SHARED)
            acknowledged, refusals = ["before"], []
            with full(small):
                for number in range(5):
                    try:
                        app = catalog.App(entrypoint="rows:create_app", desired_state=catalog.App.STOPPED)
                        request = catalog.CreateAppRequest(app_id=f"during-{number}", app=app)
                        stack.apps.CreateApp(request, timeout=DEADLINE)
                        acknowledged.append(f"during-{number}")
                    except grpc.RpcError as refusal:
                        refusals.append(f"{refusal.code()} {refusal.details()}")  # type: ignore[attr-defined]
                print(refusals)
                assert stack.get("before").desired_state == catalog.App.RUNNING
                stack.control_plane.kill()
                stack.control_plane.start()
                # Whether it can begin without room or waits for it: it says why.
                eventually(
                    lambda: (
                        "leads: term" in stack.control_plane.text().rpartition("control_plane.ready")[2]
                        or "full" in stack.control_plane.text()
                    ),
                    "it says what is the matter",
                )
            assert refusals
            assert all("is full" in it for it in refusals), refusals
            if not stack.control_plane.running():
                stack.control_plane.start()
            stack.wait_until_called()
            stack.create("after", "rows:create_app", isolation=InstanceSpec.SHARED)
            for app_id in acknowledged:
                assert stack.get(app_id).name == f"apps/{app_id}"
            eventually(lambda: stack.get("before").state == Instance.RUNNING, "it is told to run")
        finally:
            stack.clean_up()

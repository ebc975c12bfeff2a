"""Guests that use what they share with their node against it: it serves on, and tells how they end."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import signal
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from appsupervisor.runtime.v1.runtime_environment_pb2 import Limits
from runtime_node.tiers.process import procfs
from runtime_node.tiers.process.proxy import AppRaisedError
from runtime_node.tiers.process.zygote_server import NODE_DIED
from services.rpc.errors import SupervisorError
from tests.eventually import WITHIN, eventually

from .conftest import Guests, alive, ended, request

HOSTILE = "hostile:app"


async def impatient(guests: Guests) -> Any:
    """Start a guest that is given up after half a second without an answer, not after half a minute."""
    app = await guests.start(HOSTILE, limits=Limits(block_budget=Duration(nanos=200_000_000)))
    app._guest._limits = dataclasses.replace(app._guest._limits, unresponsive_seconds=0.5)
    return app


def websocket_scope(path: str) -> dict[str, Any]:
    return {
        "type": "websocket", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "ws", "path": path,
        "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": [], "client": None,
        "server": None, "subprotocols": [],
    }  # fmt: skip


async def test_the_memory_shared_with_the_node_cannot_be_cut_off(guests: Guests) -> None:
    app = await guests.start(HOSTILE)
    # The node reads it ten times a second, and would be killed by SIGBUS.
    assert (await request(app, "/truncate-beat")).body == b"PermissionError PermissionError"
    assert app.usage().loop_lag_seconds is not None
    assert (await request(app)).body == b"ok"


@pytest.mark.parametrize("path", ["/nested-reports", "/flood-reports"])
async def test_a_guest_that_sends_what_is_no_report_is_ended(guests: Guests, path: str) -> None:
    app, neighbour = await guests.start(HOSTILE), await guests.start()
    before = len(os.listdir("/proc/self/fd"))
    asking = asyncio.create_task(request(app, path))
    error = await ended(guests, app)
    assert error.reason == "APP_CRASHED"
    assert "what a guest does not send" in error.message
    await eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)
    assert (await request(neighbour)).body == b"ok"
    await asyncio.gather(asking, return_exceptions=True)


@pytest.mark.parametrize(
    "report",
    [
        {"v": 1, "op": "failed", "reason": "NODE_FULL"}, {"v": 1, "op": ["stopped"]},
        {"v": 2, "op": "stopped"}, [], {"v": 1},
    ],
)  # fmt: skip
async def test_a_report_out_of_its_turn_ends_the_guest(guests: Guests, report: Any) -> None:
    app = await guests.start(HOSTILE)
    asking = asyncio.create_task(request(app, "/report", json.dumps(report)))
    assert (await ended(guests, app)).reason == "APP_CRASHED"
    await asyncio.gather(asking, return_exceptions=True)


@pytest.mark.parametrize(
    "told", [{"cut": "many", "error": 3}, {"cut": -(10**30), "error": {"reason": "INTERNAL"}}]
)
async def test_what_a_guest_tells_of_its_stop_is_looked_at_before_it_is_believed(
    guests: Guests, told: dict[str, Any]
) -> None:
    app = await guests.start(HOSTILE)
    await request(app, "/tell", json.dumps({"v": 1, "op": "stopped", **told}))
    report = app._guest._report(None, True, 1.0)
    assert report.cancelled_tasks == 0
    assert report.error is not None
    assert report.error.reason == "APP_CRASHED"


@pytest.mark.parametrize("way", ["control", "channel"])
async def test_a_descriptor_whose_close_would_hang_does_not_reach_the_node(guests: Guests, way: str) -> None:
    app, neighbour = await guests.start(HOSTILE), await guests.start()
    asking = asyncio.create_task(request(app, "/lingering-descriptor", way))
    await asyncio.wait({asking}, timeout=WITHIN)
    # Either the kernel refuses it (Linux 6.16), or it is a message that ends the guest.
    if asking.exception() is None:
        assert asking.result().body == b"refused"
    assert (await request(neighbour)).body == b"ok"


async def test_a_guest_that_closes_its_link_to_the_node_is_ended(guests: Guests) -> None:
    app = await guests.start(HOSTILE)
    assert (await request(app, "/close-control")).body == b"closed"
    assert (await ended(guests, app)).reason == "APP_UNRESPONSIVE"


async def test_a_guest_that_closes_all_its_files_is_ended(guests: Guests) -> None:
    app = await impatient(guests)
    with pytest.raises((SupervisorError, AppRaisedError)):
        await request(app, "/close-everything")
    assert (await ended(guests, app)).reason in ("APP_UNRESPONSIVE", "APP_CRASHED", "APP_BLOCKED_LOOP")


async def test_a_guest_that_takes_no_requests_any_more_is_ended(guests: Guests) -> None:
    app = await impatient(guests)
    with pytest.raises(AppRaisedError):
        await request(app, "/deaf")
    waiting = asyncio.create_task(request(app))
    error = await ended(guests, app)
    assert error.reason == "APP_UNRESPONSIVE"
    assert "took no request" in error.message
    with pytest.raises(SupervisorError):
        await waiting


async def test_a_guest_that_a_signal_has_stopped_is_ended(guests: Guests) -> None:
    app = await impatient(guests)
    with pytest.raises(SupervisorError):
        await request(app, "/stop-itself")
    error = await ended(guests, app)
    assert error.reason == "APP_UNRESPONSIVE"
    assert "signal" in error.message


@pytest.mark.parametrize("words", [[0], [2**62], [1, -(2**62), 0, 2**63 - 1]])
async def test_a_forged_sign_of_life_does_not_hide_a_hanging_loop(guests: Guests, words: list[int]) -> None:
    app = await impatient(guests)
    with pytest.raises(SupervisorError):
        await request(app, "/forge-beat", json.dumps(words))
    assert (await ended(guests, app)).reason == "APP_BLOCKED_LOOP"
    lag = app.usage().loop_lag_seconds
    assert lag is None or 0 <= lag <= 3600


@pytest.mark.parametrize("path", ["/string-body", "/cancel-itself", "/break-off"])
async def test_an_apps_own_fault_in_a_request_is_told_as_that(guests: Guests, path: str) -> None:
    app = await guests.start(HOSTILE)
    with pytest.raises(AppRaisedError):
        await request(app, path)
    assert (await request(app)).body == b"ok"
    assert app.exits == []


async def test_a_body_that_is_still_being_sent_when_the_app_returns_comes_whole(guests: Guests) -> None:
    app = await guests.start(HOSTILE)
    response = await request(app, "/sends-on")
    assert len(response.body) == 20_000_000
    assert response.complete
    with pytest.raises(AppRaisedError):
        await request(app, "/sends-on", "raise")
    assert (await request(app)).body == b"ok"
    assert app.exits == []


async def test_a_fork_that_answers_twice_reaches_no_other_request(guests: Guests) -> None:
    app, neighbour = await guests.start(HOSTILE), await guests.start()
    # One answer, then one too many, which ends the guest: whichever comes first, nobody gets another's.
    (first,) = await asyncio.gather(request(app, "/naive-fork"), return_exceptions=True)
    (second,) = await asyncio.gather(request(app), return_exceptions=True)
    assert isinstance(first, SupervisorError) or first.body == b"twice"
    assert isinstance(second, SupervisorError | AppRaisedError) or second.body == b"ok"
    assert (await request(neighbour)).body == b"ok"


@pytest.mark.parametrize("path", ["/garbage", "/many-headers"])
async def test_an_answer_that_is_none_ends_the_guest(guests: Guests, path: str) -> None:
    app = await guests.start(HOSTILE)
    with pytest.raises(SupervisorError) as caught:
        await request(app, path)
    assert caught.value.reason == "APP_CRASHED"
    assert (await ended(guests, app)).reason == "APP_CRASHED"


async def test_what_follows_an_answer_is_never_the_next_ones(guests: Guests) -> None:
    app = await guests.start(HOSTILE)
    # Whether its own answer is still whole depends on how the kernel cuts the stream.
    await asyncio.gather(request(app, "/after-the-end"), return_exceptions=True)
    assert (await ended(guests, app)).reason == "APP_CRASHED"
    with pytest.raises(SupervisorError):
        await request(app)


@pytest.mark.parametrize("path", ["/nested-close", "/empty-fragments"])
async def test_a_websocket_event_that_is_none_does_not_reach_the_client(guests: Guests, path: str) -> None:
    app = await guests.start(HOSTILE)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not sent:
            return {"type": "websocket.connect"}
        return await asyncio.Future()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = websocket_scope(path)
    if path == "/empty-fragments":
        with pytest.raises(SupervisorError):
            await app.asgi(scope, receive, send)
        assert (await ended(guests, app)).reason == "APP_CRASHED"
        assert [message["type"] for message in sent] == ["websocket.accept"]
        return
    serving = asyncio.create_task(app.asgi(scope, receive, send))
    await eventually(lambda: len(sent) == 2)
    # Its code is two bytes, whatever they say: the front checks what may be sent to a client.
    assert 0 <= sent[1]["code"] <= 0xFFFF
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def test_events_that_an_app_asks_for_and_does_not_read_are_not_fetched(guests: Guests) -> None:
    app = await guests.start(HOSTILE)
    fetched = 0

    async def receive() -> dict[str, Any]:
        nonlocal fetched
        fetched += 1
        if fetched == 1:
            return {"type": "websocket.connect"}
        return {"type": "websocket.receive", "bytes": bytes(1 << 16)}

    async def send(message: dict[str, Any]) -> None:
        pass

    scope = websocket_scope("/wants")
    serving = asyncio.create_task(app.asgi(scope, receive, send))
    await eventually(lambda: fetched > 1)
    last = -1
    while fetched != last:
        last = fetched
        await asyncio.sleep(0.1)
    # Of 900 asked for, what one buffer and the kernel's hold: 58 MB would wait in the node otherwise.
    assert fetched < 100
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def test_a_flood_of_empty_parts_delays_no_neighbour(guests: Guests) -> None:
    app, neighbour = await guests.start(HOSTILE), await guests.start()
    parts = 0

    async def count(_: bytes) -> None:
        nonlocal parts
        parts += 1

    most = 0

    async def turns() -> None:
        nonlocal most
        while True:
            before = parts
            await asyncio.sleep(0)
            most = max(most, parts - before)

    flooding = asyncio.create_task(request(app, "/empty-parts", on_body=count))
    turning = asyncio.create_task(turns())
    await eventually(lambda: parts > 10_000)
    assert (await request(neighbour)).body == b"ok"
    # How many are carried in one turn of the loop, by which a neighbour waits: today's bound is 64.
    assert most < 1000
    for task in (flooding, turning):
        task.cancel()
    await asyncio.gather(flooding, turning, return_exceptions=True)


async def test_log_records_that_are_none_stop_no_others(
    guests: Guests, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    app = await guests.start(HOSTILE)
    assert (await request(app, "/records")).body == b"written"
    await eventually(lambda: any(record.getMessage() == "last" for record in caplog.records))
    for record in caplog.records:
        record.getMessage().encode()
        assert 0 <= record.created < 4e10


async def test_a_signal_to_a_forked_child_does_not_reach_its_parent(guests: Guests) -> None:
    app = await guests.start(HOSTILE)
    assert (await request(app, "/fork-and-terminate")).body == b"-15"
    assert (await request(app)).body == b"ok"
    assert app.exits == []


@pytest.mark.parametrize("path", ["/terminate-itself", "/hang-at-exit"])
async def test_a_guest_that_ends_unasked_says_so_and_is_not_waited_for(guests: Guests, path: str) -> None:
    app = await guests.start(HOSTILE)
    app._guest._limits = dataclasses.replace(app._guest._limits, stop_timeout=2.0)
    with pytest.raises(SupervisorError) as caught:
        await request(app, path)
    assert caught.value.reason == "APP_EXITED"
    assert (await ended(guests, app)).reason == "APP_EXITED"
    assert (app.data_dir / "shutdown-ran").exists()


async def test_children_that_lose_their_mark_are_counted_and_end_with_their_guest(guests: Guests) -> None:
    app = await guests.start(HOSTILE)
    asking = asyncio.create_task(request(app, "/unmarked-children", "120"))
    error = await ended(guests, app)
    assert error.reason == "APP_CRASHED"
    assert "where 64 are allowed" in error.message
    (told,) = await asyncio.gather(asking, return_exceptions=True)
    if not isinstance(told, BaseException):
        assert not any(alive(pid) for pid in json.loads(told.body))


@pytest.mark.parametrize("path", ["/unmarked-children", "/ordinary-daemon"])
async def test_what_an_app_started_ends_with_its_stop(guests: Guests, path: str) -> None:
    app = await guests.start(HOSTILE)
    pids = json.loads((await request(app, path, "3")).body)
    assert all(alive(pid) for pid in pids)
    report = await guests.stop(app)
    assert report.leaks == (f"{len(pids)} processes that the app had started, now killed",)
    assert not any(alive(pid) for pid in pids)


async def test_what_lost_its_mark_ends_with_the_zygote_where_the_kernel_has_groups(guests: Guests) -> None:
    app = await guests.start(HOSTILE)
    if guests.zygote._groups is None:
        pytest.skip("this process may make no control groups of version 2 with cgroup.kill")
    pids = json.loads((await request(app, "/unmarked-children", "3")).body)
    assert guests.zygote.pid is not None
    os.kill(guests.zygote.pid, signal.SIGKILL)
    assert (await ended(guests, app)).reason == "APP_CRASHED"
    assert not any(alive(pid) for pid in pids)


async def test_a_daemon_that_lost_the_mark_of_its_guest_is_killed_another_is_not(
    guests: Guests,
) -> None:
    app = await guests.start(HOSTILE)
    (kept,) = json.loads((await request(app, "/ordinary-daemon")).body)
    (lost,) = json.loads((await request(app, "/unmarked-orphan")).body)
    await eventually(lambda: not alive(lost))
    assert alive(kept)
    assert (await request(app)).body == b"ok"


async def test_descendants_that_fork_on_and_on_end_with_their_guest(guests: Guests) -> None:
    app, neighbour = await guests.start(HOSTILE), await guests.start()
    zygote = guests.zygote.pid
    assert zygote is not None
    assert (await request(app, "/escape-artists")).body == b"running"
    await guests.stop(app)
    await eventually(lambda: procfs.children(zygote) == {neighbour.pid})
    assert (await request(neighbour)).body == b"ok"


async def test_the_signal_of_the_nodes_death_is_believed_of_a_dead_node_alone(guests: Guests) -> None:
    app = await guests.start(HOSTILE)
    assert guests.zygote.pid is not None
    os.kill(guests.zygote.pid, NODE_DIED)
    await guests.start()
    assert (await request(app)).body == b"ok"

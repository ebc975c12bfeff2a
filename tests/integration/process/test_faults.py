"""What an app can do wrong in a process of its own, and that it reaches nobody else."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from appsupervisor.runtime.v1.runtime_environment_pb2 import Limits
from runtime_node.instances.supervision import FINAL_REASONS
from runtime_node.tiers.process import procfs, running, wire, zygote
from runtime_node.tiers.process.proxy import AppRaisedError
from runtime_node.tiers.process.watch import Watch
from runtime_node.tiers.process.zygote import Zygote
from services.rpc.errors import SupervisorError
from tests.eventually import eventually

from .conftest import APPS, Guests, alive, ended, request

FOR_EVER = "600"
"""Seconds: longer than any test may take."""


async def crash(guests: Guests, path: str, query: str = "", **more: object) -> tuple[Any, Any]:
    """Let a guest end itself by a request; return it and what was told, with a neighbour under load."""
    app, neighbour = await guests.start(**more), await guests.start()
    stop = asyncio.Event()

    async def load() -> int:
        count = 0
        while not stop.is_set():
            assert (await request(neighbour)).body == b"ok"
            count += 1
        return count

    loading = asyncio.create_task(load())
    with pytest.raises(SupervisorError) as caught:
        await request(app, path, query)
    assert caught.value.reason in ("APP_CRASHED", "APP_OUT_OF_MEMORY", "APP_BLOCKED_LOOP")
    await eventually(lambda: app.exits)
    stop.set()
    assert await loading > 0
    assert not alive(app.pid)
    with pytest.raises(SupervisorError):
        await request(app)
    guests.running.remove(app)
    assert len(app.exits) == 1
    return app, app.exits[0]


async def test_a_segfault_is_reported_with_signal_and_last_words(guests: Guests) -> None:
    _, error = await crash(guests, "/segfault")
    assert error.reason == "APP_CRASHED"
    assert error.metadata["signal"] == "SIGSEGV"
    assert "about to crash" in error.metadata["detail"]
    assert "string_at" in error.metadata["detail"]
    assert len(error.metadata["detail"]) <= 4096


async def test_a_stop_after_a_crash_has_nothing_to_report(guests: Guests) -> None:
    app, _ = await crash(guests, "/segfault")
    report = await app.stop(5)
    assert (report.error, report.leaks) == (None, ())


async def test_a_crash_in_the_middle_of_a_response_breaks_it_off(guests: Guests) -> None:
    _, error = await crash(guests, "/half")
    assert error.metadata["signal"] == "SIGSEGV"


async def test_an_exit_behind_pythons_back_is_a_crash(guests: Guests) -> None:
    _, error = await crash(guests, "/hard-exit", "5")
    assert error.reason == "APP_CRASHED"
    assert error.metadata["exit_status"] == "5"


async def test_an_exit_with_status_zero_is_an_end_without_an_error(guests: Guests) -> None:
    _, error = await crash(guests, "/hard-exit", "0")
    assert error is None


async def test_an_exit_from_a_callback_ends_the_guest_alone(guests: Guests) -> None:
    _, error = await crash(guests, "/callback-exit")
    assert error.metadata["exit_status"] == "4"


async def test_memory_beyond_the_limit_ends_the_guest(guests: Guests) -> None:
    app, neighbour = await guests.start(limits=Limits(memory_bytes=100 << 20)), await guests.start()
    # Whichever is first, the node's look or the kernel's own bound, it holds too much and is ended.
    with pytest.raises((SupervisorError, AppRaisedError)):
        await request(app, "/eat")
    assert (await ended(guests, app)).reason == "APP_OUT_OF_MEMORY"
    assert (await request(neighbour)).body == b"ok"


async def test_a_guest_that_the_kernel_refused_more_is_ended_for_what_it_holds(
    guests: Guests, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = await guests.start(limits=Limits(memory_bytes=64 << 20))
    with monkeypatch.context() as late:
        late.setattr(Watch, "_look_at_memory", lambda *_: None)
        assert (await request(app, "/gulp", str(100 << 20))).body == b"swallowed"
        with pytest.raises(AppRaisedError, match="MemoryError"):
            await request(app, "/gulp", str(1 << 30))
        assert (await request(app)).body == b"ok"
        assert app.exits == []
    assert (await ended(guests, app)).reason == "APP_OUT_OF_MEMORY"


async def test_a_burst_beyond_all_limits_fails_at_once(guests: Guests) -> None:
    app = await guests.start(limits=Limits(memory_bytes=64 << 20))
    with pytest.raises(Exception, match="MemoryError"):
        await request(app, "/gulp", str(4 << 30))
    assert (await request(app)).body == b"ok"


async def test_a_guest_within_its_limit_is_left_alone(guests: Guests) -> None:
    app = await guests.start(limits=Limits(memory_bytes=100 << 20))
    assert (await request(app, "/gulp", str(50 << 20))).body == b"swallowed"
    await looks(guests, 3)
    assert (await request(app)).body == b"ok"
    assert app.exits == []


async def looks(guests: Guests, count: int) -> None:
    """Wait until the node has looked at its guests so many times more."""
    watch = guests.runner._watch
    for _ in range(count):
        timer = watch._timer
        await eventually(lambda timer=timer: watch._timer is not timer)


async def test_a_held_gil_is_told_with_its_stack_and_delays_nobody(guests: Guests) -> None:
    app = await guests.start(limits=Limits(block_budget=Duration(nanos=500_000_000)))
    neighbour = await guests.start()
    holding = asyncio.create_task(request(app, "/gil-until-told"))
    await eventually(lambda: app.blocked)
    for _ in range(10):
        assert (await request(neighbour)).body == b"ok"
    assert not holding.done()
    ((stack, seconds),) = app.blocked
    assert seconds >= 0.5
    assert "chaos.py" in stack
    with (app.data_dir / "told").open("r+b") as told:  # cut off, even for a moment, it would be a bus error
        told.write(b"\1")
    await asyncio.gather(holding, return_exceptions=True)
    assert (await request(app)).body == b"ok"
    assert app.exits == []


@pytest.mark.parametrize("how", ["/spin", "/sleep"])
async def test_a_blocked_loop_is_interrupted_and_serves_on(guests: Guests, how: str) -> None:
    app = await guests.start(limits=Limits(block_budget=Duration(nanos=300_000_000)))
    with pytest.raises(SupervisorError) as caught:
        await request(app, how, FOR_EVER)
    assert caught.value.reason == "APP_BLOCKED_LOOP"
    assert "chaos.py" in app.blocked[0][0]
    assert (await request(app)).body == b"ok"
    assert app.exits == []


@pytest.mark.parametrize("action", [Limits.REPORT, Limits.STOP])
async def test_a_blocked_loop_is_interrupted_whatever_is_to_follow_on_repeats(
    guests: Guests, action: Limits.BlockAction.ValueType
) -> None:
    limits = Limits(block_budget=Duration(nanos=200_000_000), block_action=action)
    app = await guests.start(limits=limits)
    with pytest.raises(SupervisorError) as caught:
        await request(app, "/sleep", FOR_EVER)
    assert caught.value.reason == "APP_BLOCKED_LOOP"
    assert len(app.blocked) == 1
    assert (await request(app)).body == b"ok"
    assert app.exits == []


async def test_what_nothing_interrupts_ends_the_guest_where_the_policy_says_so(guests: Guests) -> None:
    limits = Limits(block_budget=Duration(nanos=200_000_000), block_action=Limits.STOP)
    _, error = await crash(guests, "/gil", "20", limits=limits)
    assert error.reason == "APP_BLOCKED_LOOP"


async def test_descendants_end_with_their_guest_however_they_left(guests: Guests) -> None:
    app = await guests.start()
    child = int((await request(app, "/fork")).body)
    tag = app._guest.tag
    await eventually(lambda: len(list(procfs.marked({tag}))) == 3)
    report = await guests.stop(app)
    assert report.leaks == ("2 processes that the app had started, now killed",)
    assert not alive(child)
    assert list(procfs.marked({tag})) == []


async def test_a_fork_bomb_ends_its_guest(guests: Guests) -> None:
    app, error = await crash(guests, "/bomb")
    assert error.reason == "APP_CRASHED"
    assert "processes" in error.message
    tag = app._guest.tag
    assert list(procfs.marked({tag})) == []


async def test_the_zygotes_death_is_reported_for_each_guest_and_survived(guests: Guests) -> None:
    first, second = await guests.start(), await guests.start()
    await request(first, "/fork")
    old = guests.zygote.pid
    assert old is not None
    os.kill(old, signal.SIGKILL)
    await eventually(lambda: first.exits and second.exits)
    assert {error.reason for error in (*first.exits, *second.exits)} == {"APP_CRASHED"}
    assert not alive(first.pid)
    assert not alive(second.pid)
    guests.running.clear()
    third = await guests.start()
    assert (await request(third)).body == b"ok"
    assert guests.zygote.pid != old


NODE = """
import asyncio, json, logging, sys
from pathlib import Path
from typing import Any
from runtime_node.tiers.process.zygote import Zygote
zygote = Zygote.launch([Path(sys.argv[1])], preload=[])
sys.path.insert(0, sys.argv[3])
from tests.integration.process.conftest import Guests, request
from runtime_node.tiers.process.runner import ProcessRunner
async def main():
    guests = Guests(ProcessRunner(zygote), zygote, Path(sys.argv[2]))
    apps = [await guests.start() for _ in range(3)]
    await request(apps[0], "/fork")
    hostile = await guests.start("hostile:app")
    unmarked = json.loads((await request(hostile, "/unmarked-children", "5")).body)
    unmarked += json.loads((await request(hostile, "/unmarked-children", "5")).body)
    apps.append(hostile)
    print(len(unmarked), *unmarked, zygote.pid, *(app.pid for app in apps), zygote._first_tag, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_a_killed_node_leaves_no_orphan(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[3])
    env = {**os.environ, "PYTHONPATH": f"{root}:{root}/gen"}
    node = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", NODE, str(APPS), str(tmp_path), root], stdout=subprocess.PIPE, env=env
    )
    try:
        assert node.stdout is not None
        line = await asyncio.to_thread(node.stdout.readline)
        count, *pids, first = (int(word) for word in line.split())
        assert count == 10
        assert all(alive(pid) for pid in pids)
        assert len(list(procfs.marked(range(first, first + 100)))) >= 6
    finally:
        node.kill()
        node.wait()
        node.stdout.close()
    await eventually(lambda: not any(alive(pid) for pid in pids))
    await eventually(lambda: not list(procfs.marked(range(first, first + 100))))


async def test_a_module_that_starts_threads_is_not_preloaded(tmp_path: Path) -> None:
    (tmp_path / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(9,), daemon=True).start()\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        zygote = Zygote.launch([], preload=["threaded", "json"])
        await zygote.ready()
        assert zygote.pid is not None
        assert procfs.thread_count(zygote.pid) == 1
        await zygote.close()
    finally:
        sys.path.remove(str(tmp_path))


@pytest.mark.parametrize("opened", range(5))
async def test_a_start_for_which_descriptors_run_out_leaves_none_open(
    guests: Guests, monkeypatch: pytest.MonkeyPatch, opened: int
) -> None:
    await guests.stop(await guests.start())
    before = os.listdir("/proc/self/fd")
    left = iter(range(opened))

    def pipe() -> tuple[int, int]:
        if next(left, None) is None:
            raise OSError(errno.EMFILE, "Too many open files")
        return zygote.pipe()

    with monkeypatch.context() as scarce:
        scarce.setattr(running, "pipe", pipe)
        if opened == 4:
            refuse = partial(_raise, OSError(errno.EMFILE, "Too many open files"))
            scarce.setattr(wire, "pack_parcel", refuse)
        with pytest.raises((OSError, SupervisorError)):
            await guests.start()
    await eventually(lambda: os.listdir("/proc/self/fd") == before)
    assert (await request(await guests.start())).body == b"ok"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), "NODE_FULL"),
        (ConnectionError("the zygote died"), "APP_CRASHED"),
        (wire.WireError("a start of 9 bytes is longer than 8"), "ISOLATION_UNSUPPORTED"),
    ],
)
async def test_a_process_that_is_not_to_be_had_now_is_asked_for_again(
    guests: Guests, monkeypatch: pytest.MonkeyPatch, fault: Exception, reason: str
) -> None:
    monkeypatch.setattr(guests.zygote, "spawn", partial(_raise, fault))
    with pytest.raises(SupervisorError) as refused:
        await guests.start()
    assert refused.value.reason == reason
    assert (reason in FINAL_REASONS) == isinstance(fault, wire.WireError)


def _raise(fault: Exception, *_: object) -> None:
    raise fault

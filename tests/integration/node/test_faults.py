"""What an app's faults do to it, and what they don't do to the others."""

import asyncio
import random
import sys
import threading
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from runtime_node.isolation import tasks_of
from tests.eventually import WITHIN, eventually

from .conftest import Hosted, hosting

TEMPORARY = pb.RestartPolicy(mode=pb.RestartPolicy.TEMPORARY)
TIERS = [pb.InstanceSpec.SHARED, pb.InstanceSpec.THREAD]


def ms(count: int) -> Duration:
    return Duration(seconds=count // 1000, nanos=count % 1000 * 1_000_000)


def condition(instance: pb.Instance, kind: str) -> pb.Condition:
    return next((c for c in instance.conditions if c.type == kind), pb.Condition())


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize(
    ("entrypoint", "reason", "where"),
    [
        ("cannot_import:app", "ENTRYPOINT_IMPORT_FAILED", "cannot_import.py"),
        ("behaviours:raises_in_factory", "APP_FACTORY_FAILED", "raises_in_factory"),
        ("behaviours:raises_what_exits_when_shown", "APP_FACTORY_FAILED", "raises_what_exits"),
        ("behaviours:raises_in_startup", "APP_STARTUP_FAILED", "in startup"),
        ("behaviours:no_such_thing", "ENTRYPOINT_ATTRIBUTE_NOT_FOUND", ""),
        ("asyncio:AbstractServer.sockets", "ENTRYPOINT_ATTRIBUTE_NOT_FOUND", ""),
        ("string:ascii_letters", "ENTRYPOINT_NOT_AN_APP", ""),
    ],
)
async def test_a_start_that_fails_tells_reason_and_place(
    hosted: Hosted, tier: int, entrypoint: str, reason: str, where: str
) -> None:
    await hosted.start(entrypoint=entrypoint, isolation=tier, restart_policy=TEMPORARY)
    error = (await hosted.reaches(pb.Instance.FAILED)).last_error
    assert error.reason == reason
    assert where in error.detail
    assert len(error.detail.encode()) <= 16 * 1024


@pytest.mark.parametrize("tier", TIERS)
async def test_a_start_that_hangs_is_ended_at_its_limit_and_leaves_nothing(hosted: Hosted, tier: int) -> None:
    limits = pb.Limits(start_timeout=ms(200))
    await hosted.start(
        entrypoint="behaviours:hangs_in_startup", isolation=tier, limits=limits, restart_policy=TEMPORARY
    )
    error = (await hosted.reaches(pb.Instance.FAILED)).last_error
    assert (error.reason, "limits.start_timeout" in error.message) == ("APP_START_TIMEOUT", True)
    await hosted.stop()
    await hosted.is_gone()
    assert await owned_tasks(hosted) == 0


async def owned_tasks(hosted: Hosted) -> int:
    """Return how many tasks of apps there are on the front's loop."""
    loop = hosted.node.front.loop

    async def count() -> int:
        return len(tasks_of(loop, "apps/shop/instances/a1"))

    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(count(), loop))


async def test_slow_starts_hold_up_nobody(tmp_path: Path) -> None:
    async with hosting(tmp_path, concurrent_starts="2") as hosted:
        for index in range(12):
            name = f"apps/slow-{index}/instances/x"
            await hosted.start(name=name, app_uid=f"u{index}", entrypoint="behaviours:hangs_in_startup")
        # Six rounds of half a second each, and not of thirty.
        await hosted.start()
        await hosted.reaches(pb.Instance.RUNNING)
        assert (await hosted.ask("shop")).status_code == 200


async def test_code_that_blocks_while_it_is_built_delays_no_request(hosted: Hosted, tmp_path: Path) -> None:
    await hosted.start()
    await hosted.reaches(pb.Instance.RUNNING)
    slow = "apps/slow/instances/x"
    await hosted.start(name=slow, app_uid="s", entrypoint="behaviours:waits_in_factory")
    await hosted.reaches(pb.Instance.STARTING, slow)
    assert (await hosted.ask("shop")).status_code == 200
    assert (await hosted.get(slow)).state == pb.Instance.STARTING
    (tmp_path / "data/apps/slow.s/go").touch()
    await hosted.reaches(pb.Instance.RUNNING, slow)


async def test_a_failing_start_is_tried_again_and_tells_when(hosted: Hosted, tmp_path: Path) -> None:
    policy = pb.RestartPolicy(min_backoff=ms(50), max_backoff=ms(100), max_restarts=100)
    await hosted.start(entrypoint="behaviours:fails_until_file", restart_policy=policy)
    failed = await hosted.reaches(pb.Instance.FAILED)
    assert condition(failed, "BackingOff").status == pb.Condition.MET
    assert "Restart 1 " in condition(failed, "BackingOff").message
    told = await hosted.ask("shop")
    assert (told.status_code, told.json()["reason"]) == (503, "APP_FACTORY_FAILED")
    (tmp_path / "data/apps/shop.uid-1/go").touch()
    running = await hosted.reaches(pb.Instance.RUNNING)
    assert running.restart_count >= 1
    assert running.last_error.reason == "APP_FACTORY_FAILED"
    assert condition(running, "BackingOff").status == pb.Condition.UNMET
    assert (await hosted.ask("shop")).status_code == 200


async def test_too_many_failures_are_a_crash_loop_which_a_restart_ends(
    hosted: Hosted, tmp_path: Path
) -> None:
    policy = pb.RestartPolicy(min_backoff=ms(10), max_restarts=2)
    await hosted.start(entrypoint="behaviours:fails_until_file", restart_policy=policy)
    looping = await crash_loop(hosted)
    assert looping.restart_count == 2
    assert (await hosted.ask("shop")).json()["reason"] == "APP_CRASH_LOOP"
    (tmp_path / "data/apps/shop.uid-1/go").touch()
    await hosted.restart()
    running = await hosted.reaches(pb.Instance.RUNNING)
    assert condition(running, "CrashLoop").status == pb.Condition.UNMET
    assert (await hosted.ask("shop")).status_code == 200


async def crash_loop(hosted: Hosted) -> pb.Instance:
    async with asyncio.timeout(WITHIN):
        async for message in hosted.watch():
            if condition(message.instance, "CrashLoop").status == pb.Condition.MET:
                return message.instance
    raise AssertionError


async def test_a_failure_that_no_repeat_can_cure_is_not_repeated(hosted: Hosted) -> None:
    policy = pb.RestartPolicy(min_backoff=ms(10), max_restarts=100)
    await hosted.start(entrypoint="no_such_module:app", restart_policy=policy)
    failed = await hosted.reaches(pb.Instance.FAILED)
    assert condition(failed, "BackingOff") == pb.Condition()
    assert hosted.node.instances.find(failed.name).history.retry is None


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("behaviour", ["never_stops", "raises_in_shutdown", "leaves_tasks"])
async def test_a_stop_ends_whatever_the_app_does(hosted: Hosted, tier: int, behaviour: str) -> None:
    limits = pb.Limits(stop_timeout=ms(100))
    await hosted.start(entrypoint=f"behaviours:{behaviour}", isolation=tier, limits=limits)
    await hosted.reaches(pb.Instance.RUNNING)
    await hosted.stop()
    await hosted.is_gone()
    assert await owned_tasks(hosted) == 0


async def test_a_restart_records_a_shutdown_that_failed(hosted: Hosted) -> None:
    await hosted.start(entrypoint="behaviours:raises_in_shutdown")
    await hosted.reaches(pb.Instance.RUNNING)
    await hosted.restart()
    running = await hosted.reaches(pb.Instance.RUNNING)
    assert running.last_error.reason == "APP_SHUTDOWN_FAILED"
    assert "the shutdown is broken" in running.last_error.message


@pytest.mark.parametrize("tier", TIERS)
async def test_many_starts_and_stops_leave_nothing(hosted: Hosted, tier: int) -> None:
    for epoch in range(1, 26):
        await hosted.start(entrypoint="behaviours:leaves_tasks", isolation=tier, epoch=epoch)
        await hosted.reaches(pb.Instance.RUNNING)
        await hosted.stop(epoch=epoch)
        await hosted.is_gone()
    assert await owned_tasks(hosted) == 0
    await eventually(lambda: threads_of("shop"), lambda left: left == [])
    assert hosted.node.instances.all() == ()
    assert hosted.node.instances._by_app == {}


async def test_commands_in_any_order_and_at_any_moment_end_in_a_clean_stop(hosted: Hosted) -> None:
    draw = random.Random(7)
    for epoch in range(1, 31):
        await hosted.start(epoch=epoch)
        for _ in range(draw.randrange(4)):
            await asyncio.sleep(draw.choice([0, 0, 0.001, 0.005]))
            await hosted.restart(epoch=epoch)
        await asyncio.sleep(draw.choice([0, 0.001, 0.004]))
        await hosted.stop(epoch=epoch)
        await hosted.is_gone()
    assert await owned_tasks(hosted) == 0


def threads_of(app: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if app in thread.name]


async def test_a_thread_app_that_blocks_its_loop_delays_nobody_else(hosted: Hosted, tmp_path: Path) -> None:
    await hosted.start()
    await hosted.reaches(pb.Instance.RUNNING)
    await hosted.start(
        name="apps/hog/instances/x", app_uid="hog", entrypoint="hogs:holds_its_loop",
        isolation=pb.InstanceSpec.THREAD, limits=pb.Limits(stop_timeout=ms(100), block_budget=ms(60_000)),
    )  # fmt: skip
    await hosted.reaches(pb.Instance.RUNNING, "apps/hog/instances/x")
    hog = asyncio.create_task(hosted.ask("hog"))
    await eventually((tmp_path / "data/apps/hog.hog/here").exists)
    assert (await hosted.ask("shop")).status_code == 200
    await hosted.get()
    assert not hog.done()
    (tmp_path / "data/apps/hog.hog/go").touch()
    assert (await hog).status_code == 200


@pytest.mark.slow
async def test_the_thread_of_an_app_that_blocked_beyond_its_stop_ends_when_it_can(hosted: Hosted) -> None:
    await hosted.start(
        entrypoint="blockers:asked", isolation=pb.InstanceSpec.THREAD,
        limits=pb.Limits(stop_timeout=ms(0), block_action=pb.Limits.REPORT),
    )  # fmt: skip
    await hosted.reaches(pb.Instance.RUNNING)
    # One call of C code that nothing can end, for longer than anybody waits.
    blocking = asyncio.create_task(hosted.ask("shop", "/?do=select&seconds=12"))
    await becomes_blocked(hosted)
    await hosted.stop()
    await blocking
    await eventually(lambda: threads_of("apps/shop"), lambda left: left == [])


async def becomes_blocked(hosted: Hosted) -> None:
    await eventually(hosted.get, lambda i: condition(i, "BlockedLoop").status == pb.Condition.MET)


async def test_an_app_whose_workers_are_busy_delays_no_other_apps(hosted: Hosted, tmp_path: Path) -> None:
    for app in ("busy", "shop"):
        await hosted.start(
            name=f"apps/{app}/instances/x", app_uid=app, entrypoint="hogs:worker",
            limits=pb.Limits(max_threads=2, stop_timeout=ms(100)),
        )  # fmt: skip
        await hosted.reaches(pb.Instance.RUNNING, f"apps/{app}/instances/x")
    busy = [asyncio.create_task(hosted.ask("busy", "/held")) for _ in range(50)]
    await eventually((tmp_path / "data/apps/busy.busy/here").exists)
    assert (await hosted.ask("shop")).status_code == 200
    assert not any(task.done() for task in busy)
    (tmp_path / "data/apps/busy.busy/go").touch()
    assert {answer.status_code for answer in await asyncio.gather(*busy)} == {200}


async def test_a_process_that_dies_is_started_again_and_harms_nobody(
    hosted_with_processes: Hosted,
) -> None:
    hosted = hosted_with_processes
    await hosted.start()
    await hosted.reaches(pb.Instance.RUNNING)
    name = "apps/frail/instances/x"
    policy = pb.RestartPolicy(min_backoff=ms(10))
    await hosted.start(
        name=name,
        app_uid="f",
        entrypoint="hogs:exits",
        isolation=pb.InstanceSpec.PROCESS,
        restart_policy=policy,
    )
    await hosted.reaches(pb.Instance.RUNNING, name)
    await hosted.ask("frail", "/?exit=3")
    await eventually(lambda: hosted.get(name), lambda instance: instance.restart_count == 1)
    running = await hosted.reaches(pb.Instance.RUNNING, name)
    assert running.last_error.reason == "APP_CRASHED"
    assert (await hosted.ask("frail")).status_code == 200
    assert (await hosted.ask("shop")).status_code == 200


async def test_a_plain_app_object_gets_a_process_and_a_factory_does_not(
    hosted_with_processes: Hosted,
) -> None:
    hosted = hosted_with_processes
    unset = pb.InstanceSpec.ISOLATION_TIER_UNSPECIFIED
    await hosted.start(name="apps/plain/instances/x", app_uid="p", entrypoint="plain:app", isolation=unset)
    await hosted.start(isolation=unset)
    assert (
        await hosted.reaches(pb.Instance.RUNNING, "apps/plain/instances/x")
    ).isolation == pb.InstanceSpec.PROCESS
    assert (await hosted.reaches(pb.Instance.RUNNING)).isolation == pb.InstanceSpec.SHARED
    assert "plain" not in sys.modules

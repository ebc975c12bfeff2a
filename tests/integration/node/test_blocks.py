"""Apps that block the loop they share: they are interrupted, the others go on."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from websockets.asyncio.client import connect

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from runtime_node.watchdog.loops import Step, WatchedLoop
from runtime_node.watchdog.watchdog import Watchdog
from tests.eventually import WITHIN, eventually

from .conftest import Hosted
from .test_faults import condition, ms

HOG = "apps/hog/instances/x"
BUDGET = 100


async def start_hog(hosted: Hosted, entrypoint: str = "blockers:asked", **fields: Any) -> pb.Instance:
    fields.setdefault(
        "limits", pb.Limits(block_budget=ms(BUDGET), block_action=pb.Limits.REPORT, stop_timeout=ms(200))
    )
    await hosted.start(name=HOG, app_uid="hog", entrypoint=entrypoint, **fields)
    return await hosted.reaches(pb.Instance.RUNNING, HOG)


async def becomes(hosted: Hosted, what: Callable[[pb.Instance], Any], name: str = HOG) -> pb.Instance:
    """Wait until an instance looks so."""
    return await eventually(lambda: hosted.get(name), what)


@pytest.mark.parametrize("tier", [pb.InstanceSpec.SHARED, pb.InstanceSpec.THREAD])
@pytest.mark.parametrize(
    ("query", "where"),
    [
        ("do=spin", "_spin"),
        ("do=sleep", "time.sleep"),
        ("do=wait", "_wait_for_own_loop"),
        ("do=swallow", "_swallow_exceptions"),
        ("do=swallow-all&times=3", "_swallow_all"),
    ],
)
async def test_a_blocking_request_is_answered_504_and_the_stack_is_told(
    hosted: Hosted, tier: int, query: str, where: str
) -> None:
    await start_hog(hosted, isolation=tier)
    answer = await hosted.ask("hog", f"/?{query}")
    assert (answer.status_code, answer.json()["reason"]) == (504, "APP_BLOCKED_LOOP")
    hog = await becomes(hosted, lambda i: i.last_error.reason == "APP_BLOCKED_LOOP")
    assert where in hog.last_error.detail
    assert "runtime_node" not in hog.last_error.detail.partition("\n")[0]
    assert condition(hog, "BlockedLoop").status == pb.Condition.MET
    assert hog.health == pb.Instance.Health.DEGRADED
    assert (await hosted.ask("hog")).status_code == 200
    await becomes(hosted, lambda i: i.figures.rescue_count == 1)


async def test_a_call_that_nothing_can_end_is_interrupted_when_it_is_over(hosted: Hosted) -> None:
    await start_hog(hosted)
    answer = await hosted.ask("hog", "/?do=select&seconds=1.6")
    assert (answer.status_code, answer.json()["reason"]) == (504, "APP_BLOCKED_LOOP")
    hog = await becomes(hosted, lambda i: "cannot be interrupted" in i.last_error.message)
    assert "_do" in hog.last_error.detail


@pytest.mark.parametrize("what", ["task", "callback"])
async def test_background_work_that_blocks_is_interrupted_and_its_request_is_not(
    hosted: Hosted, what: str
) -> None:
    await start_hog(hosted)
    answer = await hosted.ask("hog", f"/?do={what}&seconds=600")
    assert answer.status_code == 200
    hog = await becomes(hosted, lambda i: i.last_error.reason == "APP_BLOCKED_LOOP")
    assert "_spin" in hog.last_error.detail


async def test_a_websocket_that_blocks_is_closed_and_its_neighbours_are_not(hosted: Hosted) -> None:
    await start_hog(hosted)
    url = f"ws://{hosted.node.http}/"
    async with (
        connect(url, additional_headers={"X-App": "hog"}) as well,
        connect(url, additional_headers={"X-App": "hog"}) as bad,
    ):
        await bad.send("do=spin")
        await asyncio.wait_for(bad.wait_closed(), WITHIN)
        assert bad.close_code == 1011
        await well.send("do=nothing")
        assert await asyncio.wait_for(well.recv(), WITHIN) == "done"
    assert (await hosted.get(HOG)).last_error.reason == "APP_BLOCKED_LOOP"


async def test_sync_code_in_a_worker_thread_is_no_block(hosted: Hosted) -> None:
    await start_hog(hosted)
    assert (await hosted.ask("hog", "/?do=thread&seconds=0.5")).status_code == 200
    hog = await hosted.get(HOG)
    assert hog.last_error.reason == ""
    assert condition(hog, "BlockedLoop") == pb.Condition()


async def test_many_short_steps_are_no_block(hosted: Hosted) -> None:
    # Together they take longer; each of them far less, also where the machine makes it wait.
    await start_hog(hosted, limits=pb.Limits(block_budget=ms(700), block_action=pb.Limits.REPORT))
    answers = await asyncio.gather(*(hosted.ask("hog", "/?do=spin&seconds=0.02") for _ in range(40)))
    assert {answer.status_code for answer in answers} == {200}
    assert (await hosted.get(HOG)).last_error.reason == ""


async def test_a_startup_that_blocks_the_shared_loop_is_tried_again_on_its_own(hosted: Hosted) -> None:
    limits = pb.Limits(block_budget=ms(BUDGET), stop_timeout=ms(200))
    fields = {"limits": limits, "restart_policy": pb.RestartPolicy(min_backoff=ms(10), max_restarts=10)}
    spec = hosted.spec(name=HOG, app_uid="hog", entrypoint="blockers:in_startup", **fields)
    spec.config["seconds"] = 0.5
    await hosted.start(spec)
    running = await hosted.reaches(pb.Instance.RUNNING, HOG)
    assert running.isolation == pb.InstanceSpec.THREAD
    assert running.last_error.reason == "APP_BLOCKED_LOOP"
    assert condition(running, "Demoted").status == pb.Condition.MET


async def test_a_startup_on_a_loop_of_its_own_may_take_its_time(hosted: Hosted) -> None:
    spec = hosted.spec(
        name=HOG, app_uid="hog", entrypoint="blockers:in_startup", isolation=pb.InstanceSpec.THREAD,
        limits=pb.Limits(block_budget=ms(50)),
    )  # fmt: skip
    spec.config["seconds"] = 0.5
    await hosted.start(spec)
    assert (await hosted.reaches(pb.Instance.RUNNING, HOG)).last_error.reason == ""


async def test_a_repeat_offender_is_moved_to_a_loop_of_its_own_and_loses_no_request(hosted: Hosted) -> None:
    await start_hog(hosted, limits=pb.Limits(block_budget=ms(BUDGET), stop_timeout=ms(2000)))
    harmless = asyncio.create_task(ask_until(hosted, "hog", moved := asyncio.Event()))
    for _ in range(3):
        assert (await hosted.ask("hog", "/?do=spin")).status_code == 504
    hog = await becomes(
        hosted, lambda i: i.isolation == pb.InstanceSpec.THREAD and i.state == pb.Instance.RUNNING
    )
    moved.set()
    assert set(await harmless) == {200}
    demoted = condition(hog, "Demoted")
    assert (demoted.status, demoted.reason) == (pb.Condition.MET, "APP_BLOCKED_LOOP")
    assert "3 times" in demoted.message
    assert "THREAD" in demoted.message
    assert hog.health == pb.Instance.Health.DEGRADED
    assert (await hosted.ask("hog")).status_code == 200
    # There it harms only itself, and is left there.
    for _ in range(4):
        assert (await hosted.ask("hog", "/?do=spin")).status_code == 504
    assert (await hosted.get(HOG)).isolation == pb.InstanceSpec.THREAD
    await hosted.restart(HOG)
    assert (await hosted.reaches(pb.Instance.RUNNING, HOG)).isolation == pb.InstanceSpec.THREAD


async def ask_until(hosted: Hosted, app: str, end: asyncio.Event) -> list[int]:
    statuses = []
    while not end.is_set():
        statuses.append((await hosted.ask(app)).status_code)
    return statuses


async def test_a_new_generation_begins_in_the_tier_it_asks_for(hosted: Hosted) -> None:
    limits = pb.Limits(block_budget=ms(BUDGET), stop_timeout=ms(200))
    await start_hog(hosted, limits=limits)
    for _ in range(3):
        await hosted.ask("hog", "/?do=spin")
    await becomes(hosted, lambda i: i.isolation == pb.InstanceSpec.THREAD and i.state == pb.Instance.RUNNING)
    name = "apps/hog/instances/y"
    await hosted.start(name=name, app_uid="hog", entrypoint="blockers:asked", generation=2, limits=limits)
    running = await hosted.reaches(pb.Instance.RUNNING, name)
    assert running.isolation == pb.InstanceSpec.SHARED
    assert condition(running, "Demoted") == pb.Condition()


async def test_policy_stop_ends_a_repeat_offender(hosted: Hosted) -> None:
    await start_hog(
        hosted, limits=pb.Limits(block_budget=ms(BUDGET), block_action=pb.Limits.STOP, stop_timeout=ms(200))
    )
    for _ in range(3):
        await hosted.ask("hog", "/?do=spin")
    failed = await hosted.reaches(pb.Instance.FAILED, HOG)
    assert failed.last_error.reason == "APP_BLOCKED_LOOP"
    assert "stopped" in failed.last_error.message
    assert "_spin" in failed.last_error.detail
    answer = await hosted.ask("hog")
    assert (answer.status_code, answer.json()["reason"]) == (503, "APP_BLOCKED_LOOP")
    await hosted.restart(HOG)
    await hosted.reaches(pb.Instance.RUNNING, HOG)
    assert (await hosted.ask("hog")).status_code == 200


async def test_policy_stop_means_the_same_in_a_process_of_its_own(hosted_with_processes: Hosted) -> None:
    hosted = hosted_with_processes
    limits = pb.Limits(block_budget=ms(BUDGET), block_action=pb.Limits.STOP, stop_timeout=ms(200))
    policy = pb.RestartPolicy(min_backoff=ms(10))
    await start_hog(hosted, isolation=pb.InstanceSpec.PROCESS, limits=limits, restart_policy=policy)
    for _ in range(2):
        assert (await hosted.ask("hog", "/?do=spin")).status_code == 504
        assert (await hosted.get(HOG)).state == pb.Instance.RUNNING
    await hosted.ask("hog", "/?do=spin")
    failed = await hosted.reaches(pb.Instance.FAILED, HOG)
    assert "3 times" in failed.last_error.message
    await hosted.restart(HOG)
    await hosted.reaches(pb.Instance.RUNNING, HOG)
    # What cannot be interrupted is killed; it is left so as well.
    answer = await hosted.ask("hog", "/?do=hold&seconds=30")
    assert (answer.status_code, answer.json()["reason"]) == (504, "APP_BLOCKED_LOOP")
    failed = await hosted.reaches(pb.Instance.FAILED, HOG)
    assert (failed.last_error.reason, failed.restart_count) == ("APP_BLOCKED_LOOP", 1)
    assert (await hosted.ask("hog")).json()["reason"] == "APP_BLOCKED_LOOP"


async def test_policy_report_only_records(hosted: Hosted) -> None:
    await start_hog(hosted)
    for _ in range(5):
        assert (await hosted.ask("hog", "/?do=spin")).status_code == 504
    hog = await becomes(hosted, lambda i: i.figures.rescue_count == 5)
    assert (hog.isolation, hog.state) == (pb.InstanceSpec.SHARED, pb.Instance.RUNNING)
    assert condition(hog, "Demoted") == pb.Condition()


async def test_a_burst_of_blocking_requests_is_paid_for_with_one_budget(
    hosted: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start_hog(
        hosted, limits=pb.Limits(block_budget=ms(1000), block_action=pb.Limits.REPORT, stop_timeout=ms(200))
    )
    await hosted.start()
    await hosted.reaches(pb.Instance.RUNNING)
    with monkeypatch.context() as counted:
        spent: list[float] = []
        looks: list[float] = []
        look, interrupt = Watchdog._blocked, Watchdog._send

        def blocked(watchdog: Watchdog, watched: WatchedLoop, step: Step, now: float) -> float:
            looks.append(look(watchdog, watched, step, now))
            return looks[-1]

        def send(watchdog: Watchdog, watched: WatchedLoop, step: Step, now: float) -> bool:
            if step.tries == 0:
                spent.append(looks[-1])  # what it was judged by: another look has what the machine took since
            return interrupt(watchdog, watched, step, now)

        counted.setattr(Watchdog, "_blocked", blocked)
        counted.setattr(Watchdog, "_send", send)
        burst = [asyncio.create_task(hosted.ask("hog", "/?do=spin")) for _ in range(8)]
        await eventually(lambda: spent)
        assert (await hosted.ask("shop")).status_code == 200
        assert {task.status_code for task in await asyncio.gather(*burst)} == {504}
    assert spent[0] >= 1.0 > max(spent[1:])


@pytest.mark.parametrize("wanted", [25, pytest.param(150, marks=pytest.mark.slow)])
@pytest.mark.parametrize("tier", [pb.InstanceSpec.SHARED, pb.InstanceSpec.THREAD])
async def test_many_rescues_cost_no_neighbour_a_request(hosted: Hosted, tier: int, wanted: int) -> None:
    draw = random.Random(11)
    limits = pb.Limits(block_budget=ms(50), block_action=pb.Limits.REPORT, stop_timeout=ms(500))
    await start_hog(hosted, isolation=tier, limits=limits)
    for app in ("one", "two"):
        await hosted.start(name=f"apps/{app}/instances/x", app_uid=app)
        await hosted.reaches(pb.Instance.RUNNING, f"apps/{app}/instances/x")
    ended = asyncio.Event()
    neighbours = [asyncio.create_task(ask_until(hosted, app, ended)) for app in ("one", "two")]
    kinds = ["spin", "sleep", "swallow", "swallow-all&times=1", "wait"]
    answers = []
    while len(answers) < wanted:
        burst = [hosted.ask("hog", f"/?do={draw.choice(kinds)}") for _ in range(draw.choice([1, 1, 2, 4]))]
        answers += await asyncio.gather(*burst)
        # Steps that end by themselves at about the moment at which they would be interrupted.
        seconds = draw.uniform(0.03, 0.12)
        edge = await hosted.ask("hog", f"/?do={draw.choice(['spin', 'sleep'])}&seconds={seconds}")
        assert edge.status_code in {200, 504}
    ended.set()
    assert {answer.status_code for answer in answers} == {504}
    for statuses in await asyncio.gather(*neighbours):
        assert statuses
        assert set(statuses) == {200}
    figures = hosted.node.instances.find(HOG).gate.figures()
    assert (figures.in_flight, figures.queued) == (0, 0)
    assert hosted.node.front._thread.is_alive()
    hog = await becomes(hosted, lambda i: i.figures.rescue_count >= wanted)
    assert hog.state == pb.Instance.RUNNING
    assert (await hosted.ask("hog")).status_code == 200

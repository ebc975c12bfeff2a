"""ON_REQUEST apps: dormant until a request, woken once for a burst, dormant again when idle."""

import asyncio
import gc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import websockets
from google.protobuf.duration_pb2 import Duration

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from tests.eventually import eventually

from .conftest import Hosted, hosting

A1 = "apps/shop/instances/a1"
DORMANT: dict[str, Any] = {"activation": pb.InstanceSpec.ON_REQUEST, "idle_timeout": Duration(seconds=600)}


def let_an_hour_pass(hosted: Hosted) -> None:
    """Look at the node's apps as it would be done in an hour."""
    housekeeping = hosted.node.housekeeping
    usual = housekeeping._clock
    housekeeping._clock = lambda: usual() + 3600
    housekeeping.sweep()
    housekeeping._clock = usual


async def goes_dormant(hosted: Hosted) -> pb.Instance:
    """Let hours pass until the app is dormant: it isn't while it has something to do."""

    async def later() -> pb.Instance:
        let_an_hour_pass(hosted)
        return await hosted.get()

    return await eventually(later, lambda instance: instance.state == pb.Instance.IDLE)


@pytest.mark.parametrize("tier", [pb.InstanceSpec.SHARED, pb.InstanceSpec.THREAD])
async def test_the_first_request_wakes_a_dormant_app(hosted: Hosted, tier: int) -> None:
    await hosted.start(isolation=tier, **DORMANT)
    assert (await hosted.ask("shop")).text == "shop a1 1"
    assert (await hosted.get()).state == pb.Instance.RUNNING


async def test_a_burst_of_first_requests_is_served_by_one_start(hosted: Hosted, tmp_path: Path) -> None:
    spec = hosted.spec(
        entrypoint="behaviours:counts_starts", limits=pb.Limits(max_queued_requests=500), **DORMANT
    )
    await hosted.start(spec)
    answers = await asyncio.gather(*(hosted.ask("shop") for _ in range(200)))
    assert {answer.status_code for answer in answers} == {200}
    assert (tmp_path / "data/apps/shop.uid-1/starts").read_text() == "x"


async def test_an_idle_app_goes_dormant_and_wakes_again(hosted: Hosted, tmp_path: Path) -> None:
    await hosted.start(entrypoint="behaviours:counts_starts", **DORMANT)
    await hosted.ask("shop")
    idle = await goes_dormant(hosted)
    assert idle.health == pb.Instance.Health.UNKNOWN
    assert (await hosted.ask("shop")).status_code == 200
    assert (tmp_path / "data/apps/shop.uid-1/starts").read_text() == "xx"
    assert (await hosted.get()).restart_count == 0


async def test_no_request_is_lost_while_an_app_goes_dormant_and_wakes(hosted: Hosted) -> None:
    await hosted.start(**DORMANT)
    await hosted.ask("shop")
    instance = hosted.node.instances.find(A1)
    statuses: list[int] = []
    ended = asyncio.Event()

    async def load() -> None:
        while not ended.is_set():
            statuses.append((await hosted.ask("shop")).status_code)

    def begins_to_sleep() -> bool:
        hosted.node.lifecycle.sleep(instance)
        return instance.state != pb.Instance.RUNNING or instance.task is not None

    clients = [asyncio.create_task(load()) for _ in range(5)]
    for _ in range(30):
        await eventually(lambda: instance.state == pb.Instance.RUNNING and instance.task is None)
        await eventually(begins_to_sleep)
        answered = len(statuses)
        await eventually(lambda answered=answered: len(statuses) > answered)
    ended.set()
    await asyncio.gather(*clients)
    assert set(statuses) == {200}


async def test_an_open_websocket_keeps_an_app_awake(hosted: Hosted) -> None:
    await hosted.start(entrypoint="behaviours:echoes", **DORMANT)
    uri = f"ws://{hosted.node.http}/"
    async with websockets.connect(uri, additional_headers={"X-App": "shop"}) as socket:
        for _ in range(3):
            let_an_hour_pass(hosted)
            await socket.send("hello")
            assert await socket.recv() == "hello"
        assert (await hosted.get()).state == pb.Instance.RUNNING
    await goes_dormant(hosted)


async def test_work_after_a_response_keeps_an_app_awake(hosted: Hosted, tmp_path: Path) -> None:
    limits = pb.Limits(stop_timeout=Duration())
    await hosted.start(entrypoint="behaviours:works_on", limits=limits, **DORMANT)
    assert (await hosted.ask("shop")).text == "accepted"
    for _ in range(3):
        let_an_hour_pass(hosted)
        assert (await hosted.get()).state == pb.Instance.RUNNING
    (tmp_path / "data/apps/shop.uid-1/go").touch()
    await goes_dormant(hosted)
    assert (tmp_path / "data/apps/shop.uid-1/work").read_text() == "done"


async def test_requests_that_wake_a_broken_app_are_told_why(hosted: Hosted) -> None:
    policy = pb.RestartPolicy(mode=pb.RestartPolicy.TEMPORARY)
    await hosted.start(entrypoint="behaviours:raises_in_startup", restart_policy=policy, **DORMANT)
    answer = await hosted.ask("shop")
    assert (answer.status_code, answer.json()["reason"]) == (503, "APP_STARTUP_FAILED")


async def test_a_dormant_app_can_be_stopped(hosted: Hosted) -> None:
    await hosted.start(**DORMANT)
    assert (await hosted.stop()).state == pb.Instance.STOPPING
    await hosted.is_gone()
    assert (await hosted.ask("shop")).status_code == 404


async def test_a_new_dormant_generation_takes_over_the_route(hosted: Hosted) -> None:
    await hosted.start(**DORMANT)
    await hosted.ask("shop")
    await hosted.start(name="apps/shop/instances/b1", generation=2, **DORMANT)
    await hosted.stop()
    assert (await hosted.ask("shop")).text == "shop b1 2"


async def test_under_memory_pressure_the_least_recently_used_app_goes_dormant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime_node.instances.dormancy.MIN_AGE", 0.0)
    monkeypatch.setattr("runtime_node.instances.dormancy.START_MULTIPLE", 0.0)
    async with hosting(tmp_path, memory_budget_bytes=str(2**50)) as hosted:
        for app in ("old", "new"):
            name = f"apps/{app}/instances/x"
            await hosted.start(name=name, app_uid=app, activation=pb.InstanceSpec.ON_REQUEST)
            await hosted.ask(app)
        hosted.node.housekeeping._budget = 1
        await hosted.reaches(pb.Instance.IDLE, "apps/old/instances/x")
        assert (await hosted.get("apps/old/instances/x")).state == pb.Instance.IDLE
        assert (await hosted.ask("old")).status_code == 200


async def test_a_dormant_app_is_three_objects(hosted: Hosted) -> None:
    """What it takes of memory, without a measurement: its record, its gate, its entry among the changes."""

    def count() -> Counter[str]:
        gc.collect()
        return Counter(type(one).__name__ for one in gc.get_objects())

    def start(number: int) -> None:
        name, uid = f"apps/crowd-{number}/instances/a1", f"uid-{number}"
        hosted.node.host.start(hosted.spec(name=name, app_uid=uid, **DORMANT))

    start(0)  # makes what all share
    before = count()
    for number in range(1, 301):
        start(number)
    more = count() - before
    assert {kind for kind, times in more.items() if times >= 100} == {"Instance", "Gate", "Entry"}
    first, last = (hosted.node.instances.find(f"apps/crowd-{number}/instances/a1") for number in (0, 300))
    assert first is not None
    assert last is not None
    assert first.rest is last.rest
    assert last.accepted_spec().app_uid == "uid-300"
    assert (await hosted.ask("crowd-300")).text == "crowd-300 a1 1"

"""Which instance serves: routes, swaps, fallbacks, data of its own."""

import asyncio
import time
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from tests.eventually import WITHIN, eventually

from .conftest import Hosted

A1, B1 = "apps/shop/instances/a1", "apps/shop/instances/b1"
TEMPORARY = pb.RestartPolicy(mode=pb.RestartPolicy.TEMPORARY)


async def test_an_app_answers_by_name_domain_header_and_path(hosted: Hosted) -> None:
    await hosted.start(domains=["shop.example.com"])
    await hosted.reaches(pb.Instance.RUNNING)
    port = hosted.node.http.port
    for path, headers in [
        ("/", {"Host": f"shop.localhost:{port}"}),
        ("/", {"Host": "shop.example.com"}),
        ("/", {"X-App": "shop"}),
        ("/apps/shop/", {}),
    ]:
        answer = await hosted.http.get(path, headers=headers)
        assert (answer.status_code, answer.text) == (200, "shop a1 1")


async def test_a_request_to_a_starting_app_waits_for_it(hosted: Hosted) -> None:
    spec = hosted.spec(entrypoint="behaviours:blocks_in_factory")
    spec.config["seconds"] = 0.2
    await hosted.start(spec)
    assert (await hosted.ask("shop")).text == "shop a1 1"


async def test_the_newest_ready_instance_serves_and_an_older_one_takes_over_when_it_goes(
    hosted: Hosted,
) -> None:
    await hosted.start()
    await hosted.reaches(pb.Instance.RUNNING)
    await hosted.start(name=B1, generation=2)
    await hosted.reaches(pb.Instance.RUNNING, B1)
    assert (await hosted.ask("shop")).text == "shop b1 2"
    await hosted.stop(B1)
    assert (await hosted.ask("shop")).text == "shop a1 1"
    await hosted.is_gone(B1)
    assert (await hosted.ask("shop")).text == "shop a1 1"


@pytest.mark.parametrize("entrypoint", ["cannot_import:app", "behaviours:raises_in_startup"])
async def test_a_broken_new_generation_leaves_the_old_one_serving(hosted: Hosted, entrypoint: str) -> None:
    await hosted.start()
    await hosted.reaches(pb.Instance.RUNNING)
    await hosted.start(name=B1, generation=2, entrypoint=entrypoint, restart_policy=TEMPORARY)
    await hosted.reaches(pb.Instance.FAILED, B1)
    assert (await hosted.ask("shop")).text == "shop a1 1"


async def test_two_instances_that_failed_do_not_hand_requests_to_each_other(hosted: Hosted) -> None:
    await hosted.start(entrypoint="behaviours:crashes_when_asked", restart_policy=TEMPORARY)
    await hosted.reaches(pb.Instance.RUNNING)
    await hosted.start(
        name=B1, generation=2, entrypoint="behaviours:raises_in_startup", restart_policy=TEMPORARY
    )
    await hosted.reaches(pb.Instance.FAILED, B1)
    assert (await hosted.ask("shop")).text == "as you wish"
    await hosted.reaches(pb.Instance.FAILED)
    answer = await hosted.ask("shop")
    assert answer.status_code == 503
    assert answer.json()["reason"] in {"APP_CRASHED", "APP_STARTUP_FAILED"}


async def test_a_swap_under_load_loses_no_request(hosted: Hosted) -> None:
    spec = hosted.spec(name="apps/shop/instances/g1", entrypoint="behaviours:slow_requests")
    spec.config["seconds"] = 0.005
    await hosted.start(spec)
    await hosted.reaches(pb.Instance.RUNNING, spec.name)
    ended = asyncio.Event()
    statuses: list[int] = []

    async def load() -> None:
        while not ended.is_set():
            statuses.append((await hosted.ask("shop")).status_code)

    clients = [asyncio.create_task(load()) for _ in range(10)]
    for generation in range(2, 12):
        answered = len(statuses)
        await eventually(lambda answered=answered: len(statuses) > answered + 5)
        newer = pb.InstanceSpec()
        newer.CopyFrom(spec)
        newer.name, newer.generation = f"apps/shop/instances/g{generation}", generation
        await hosted.start(newer)
        await hosted.reaches(pb.Instance.RUNNING, newer.name)
        await hosted.stop(f"apps/shop/instances/g{generation - 1}")
    ended.set()
    await asyncio.gather(*clients)
    assert set(statuses) == {200}


async def test_a_stopped_app_is_not_found(hosted: Hosted) -> None:
    await hosted.start()
    await hosted.reaches(pb.Instance.RUNNING)
    await hosted.stop()
    await hosted.is_gone()
    assert (await hosted.ask("shop")).status_code == 404


async def test_a_failed_app_says_why(hosted: Hosted) -> None:
    await hosted.start(entrypoint="no_such_module:app")
    await hosted.reaches(pb.Instance.FAILED)
    answer = await hosted.ask("shop")
    assert answer.status_code == 503
    assert answer.json()["reason"] == "ENTRYPOINT_MODULE_NOT_FOUND"


async def test_a_stop_lets_requests_finish_within_its_limit(hosted: Hosted) -> None:
    spec = hosted.spec(entrypoint="behaviours:slow_requests")
    spec.config["seconds"] = 0.3
    await hosted.start(spec)
    await hosted.reaches(pb.Instance.RUNNING)
    asked = asyncio.create_task(hosted.ask("shop"))
    await in_flight(hosted, 1)
    await hosted.stop()
    assert (await asked).status_code == 200
    await hosted.is_gone()


async def test_a_stop_cuts_off_requests_that_outlast_its_limit(hosted: Hosted) -> None:
    spec = hosted.spec(
        entrypoint="behaviours:slow_requests", limits=pb.Limits(stop_timeout=Duration(nanos=100_000_000))
    )
    spec.config["seconds"] = 600
    await hosted.start(spec)
    await hosted.reaches(pb.Instance.RUNNING)
    asked = asyncio.create_task(hosted.ask("shop"))
    await in_flight(hosted, 1)
    await hosted.stop()
    assert (await asked).status_code == 503
    await hosted.is_gone()


async def in_flight(hosted: Hosted, count: int) -> None:
    gate = hosted.node.instances.find(A1).gate
    await eventually(lambda: gate.figures().in_flight == count)


async def test_each_app_has_a_directory_that_outlives_its_instances_until_it_is_purged(
    hosted: Hosted, tmp_path: Path
) -> None:
    await hosted.start()
    await hosted.reaches(pb.Instance.RUNNING)
    directory = tmp_path / "data" / "apps" / "shop.uid-1"
    (directory / "kept").write_text("x")
    await hosted.stop()
    await hosted.is_gone()
    assert (directory / "kept").exists()
    await hosted.stop(app_uid="uid-1", purge_data=True)
    assert not directory.exists()
    assert list((tmp_path / "data" / "apps").iterdir()) == []


async def test_data_is_purged_only_after_the_last_instance_is_gone(hosted: Hosted, tmp_path: Path) -> None:
    await hosted.start()
    await hosted.start(name=B1, generation=2)
    await hosted.reaches(pb.Instance.RUNNING)
    await hosted.reaches(pb.Instance.RUNNING, B1)
    directory = tmp_path / "data" / "apps" / "shop.uid-1"
    await hosted.stop(app_uid="uid-1", purge_data=True)
    await hosted.is_gone()
    assert directory.exists()
    await hosted.stop(B1)
    await hosted.is_gone(B1)
    assert not directory.exists()


async def test_figures_come_with_heartbeats(hosted: Hosted) -> None:
    await hosted.start()
    await hosted.reaches(pb.Instance.RUNNING)
    for _ in range(5):
        await hosted.ask("shop")
    async with asyncio.timeout(WITHIN):
        async for message in hosted.watch():
            if message.figures[A1].request_count == 5:
                assert message.figures[A1].latency_p50.ToNanoseconds() > 0
                break
    assert (await hosted.get()).figures.request_count == 5


async def test_health_follows_the_probe(hosted: Hosted, tmp_path: Path) -> None:
    check = pb.HealthCheck(
        path="/health", interval=Duration(nanos=500_000_000), timeout=Duration(nanos=500_000_000)
    )
    await hosted.start(entrypoint="behaviours:probed", health_check=check)
    stream = hosted.watch()
    status = tmp_path / "data" / "apps" / "shop.uid-1" / "status"
    await healths(stream, pb.Instance.Health.HEALTHY)
    status.write_text("500")
    assert await healths(stream, pb.Instance.Health.UNHEALTHY) == [pb.Instance.Health.DEGRADED]
    (failing,) = (it for it in (await hosted.get()).conditions if it.type == "ProbeFailing")
    assert (failing.status, failing.reason) == (pb.Condition.MET, "HealthCheckFailed")
    assert failing.message == "Its health check fails. GET /health: it answered 500."
    assert (await hosted.ask("shop")).status_code == 500  # it serves on: health is apart from state
    status.write_text("302")
    assert await healths(stream, pb.Instance.Health.HEALTHY) == []
    (passing,) = (it for it in (await hosted.get()).conditions if it.type == "ProbeFailing")
    assert (passing.status, passing.reason) == (pb.Condition.UNMET, "HealthCheckPassed")


async def healths(stream, wanted) -> list[int]:
    seen = []
    async with asyncio.timeout(WITHIN):
        async for message in stream:
            if message.instance.health == wanted:
                return seen
            if (
                message.instance.state == pb.Instance.RUNNING
                and message.instance.health != pb.Instance.Health.UNKNOWN
            ):
                seen.append(message.instance.health)
    raise AssertionError


async def test_a_node_is_quiet_only_some_time_after_the_last_request_whoever_stops(hosted: Hosted) -> None:
    # Its clock stands still: how long a request and a stop take is no part of this.
    housekeeping, now = hosted.node.housekeeping, time.monotonic()
    housekeeping._clock = lambda: now
    for app in ("one", "two"):
        await hosted.start(name=f"apps/{app}/instances/x", app_uid=app)
        await hosted.reaches(pb.Instance.RUNNING, f"apps/{app}/instances/x")
        assert (await hosted.ask(app)).status_code == 200
    housekeeping.sweep()
    assert not housekeeping.traffic.quiet
    assert (await hosted.ask("one")).status_code == 200
    await hosted.stop(name="apps/two/instances/x")
    await hosted.is_gone("apps/two/instances/x")
    housekeeping.sweep()
    assert not housekeeping.traffic.quiet
    now = time.monotonic() + 60
    housekeeping.sweep()
    assert housekeeping.traffic.quiet

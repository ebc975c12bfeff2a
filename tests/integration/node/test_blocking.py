"""What the node does about an app that keeps blocking its loop. That it does is told here by hand."""

from typing import Any

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb

from .conftest import Hosted

A1 = "apps/shop/instances/a1"


def condition(instance: pb.Instance, kind: str) -> pb.Condition:
    return next((c for c in instance.conditions if c.type == kind), pb.Condition())


def report_block(hosted: Hosted) -> None:
    instance: Any = hosted.node.instances.find(A1)
    hosted.node.lifecycle._blocked(instance, instance.run.number, 'File "shop.py", line 7', 1.5)


async def test_a_block_is_told_with_its_stack_and_degrades_the_app(hosted: Hosted) -> None:
    await hosted.start()
    await hosted.reaches(pb.Instance.RUNNING)
    report_block(hosted)
    blocked = await hosted.get()
    assert blocked.last_error.reason == "APP_BLOCKED_LOOP"
    assert "shop.py" in blocked.last_error.detail
    assert condition(blocked, "BlockedLoop").status == pb.Condition.MET
    assert blocked.health == pb.Instance.Health.DEGRADED
    assert blocked.isolation == pb.InstanceSpec.SHARED


async def test_a_repeat_offender_moves_to_a_stricter_tier_and_stays_there(hosted: Hosted) -> None:
    await hosted.start()
    await hosted.reaches(pb.Instance.RUNNING)
    for _ in range(3):
        report_block(hosted)
    moved = await hosted.reaches(pb.Instance.RUNNING)
    assert moved.isolation == pb.InstanceSpec.THREAD
    assert condition(moved, "Demoted").status == pb.Condition.MET
    assert condition(moved, "BlockedLoop").status == pb.Condition.UNMET
    assert (await hosted.ask("shop")).status_code == 200
    await hosted.restart()
    assert (await hosted.reaches(pb.Instance.RUNNING)).isolation == pb.InstanceSpec.THREAD


async def test_a_repeat_offender_is_stopped_if_its_policy_says_so(hosted: Hosted) -> None:
    await hosted.start(limits=pb.Limits(block_action=pb.Limits.STOP))
    await hosted.reaches(pb.Instance.RUNNING)
    for _ in range(3):
        report_block(hosted)
    failed = await hosted.reaches(pb.Instance.FAILED)
    assert failed.last_error.reason == "APP_BLOCKED_LOOP"
    assert (await hosted.ask("shop")).json()["reason"] == "APP_BLOCKED_LOOP"


async def test_a_repeat_offender_is_only_reported_if_its_policy_says_so(hosted: Hosted) -> None:
    await hosted.start(limits=pb.Limits(block_action=pb.Limits.REPORT))
    await hosted.reaches(pb.Instance.RUNNING)
    for _ in range(5):
        report_block(hosted)
    reported = await hosted.get()
    assert (reported.state, reported.isolation, reported.restart_count) == (
        pb.Instance.RUNNING,
        pb.InstanceSpec.SHARED,
        0,
    )

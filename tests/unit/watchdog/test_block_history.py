"""When an instance that blocks others is demoted or stopped."""

import pytest

from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec, Limits
from runtime_node.instances.block_history import PERIOD, REPEATS, BlockHistory, Verdict
from runtime_node.watchdog.block import Block, Stage

SHARED, THREAD, PROCESS = InstanceSpec.SHARED, InstanceSpec.THREAD, InstanceSpec.PROCESS


def judge(block_history: BlockHistory, stage: Stage, now: float = 0.0, **more: object) -> Verdict | None:
    seconds = more.pop("seconds", 0.5)
    terms = {"tier": SHARED, "budget": 1.0, "action": Limits.DEMOTE, **more}
    return block_history.judge(Block(stage, seconds, "stack"), now, **terms)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stage", "tier", "to"),
    [
        (Stage.BEGUN, SHARED, THREAD),
        (Stage.BEGUN, THREAD, None),
        (Stage.BEGUN, PROCESS, None),
        (Stage.HELD, SHARED, PROCESS),
        (Stage.HELD, THREAD, PROCESS),
        (Stage.HELD, PROCESS, None),
    ],
)
def test_repeated_blocks_lead_to_the_tier_that_contains_them(stage: Stage, tier: int, to: int | None) -> None:
    block_history = BlockHistory()
    verdicts = [judge(block_history, stage, float(now), tier=tier) for now in range(REPEATS)]
    assert verdicts[:-1] == [None] * (REPEATS - 1)
    assert (verdicts[-1].tier if verdicts[-1] else None) == to


@pytest.mark.parametrize(("tier", "to"), [(SHARED, THREAD), (THREAD, PROCESS)])
def test_one_block_that_cannot_be_interrupted_is_enough(tier: int, to: int) -> None:
    verdict = judge(BlockHistory(), Stage.STUCK, tier=tier)
    assert verdict is not None
    assert verdict.tier == to


def test_one_hold_of_the_whole_budget_is_enough() -> None:
    assert judge(BlockHistory(), Stage.HELD, seconds=0.99) is None
    verdict = judge(BlockHistory(), Stage.HELD, seconds=1.0)
    assert verdict is not None
    assert verdict.tier == PROCESS


def test_one_block_of_a_start_is_enough() -> None:
    verdict = judge(BlockHistory(), Stage.BEGUN, starting=True)
    assert verdict is not None
    assert verdict.tier == THREAD


def test_blocks_that_are_far_apart_do_not_add_up() -> None:
    block_history = BlockHistory()
    assert [judge(block_history, Stage.BEGUN, n * (PERIOD / (REPEATS - 1) + 1)) for n in range(20)] == [
        None
    ] * 20


def test_blocks_and_holds_are_counted_apart() -> None:
    block_history = BlockHistory()
    stages = [Stage.BEGUN, Stage.HELD] * (REPEATS - 1)
    assert [judge(block_history, stage) for stage in stages] == [None] * len(stages)


def test_policy_report_never_does_anything() -> None:
    block_history = BlockHistory()
    for stage in (Stage.BEGUN, Stage.STUCK, Stage.HELD) * 5:
        assert judge(block_history, stage, action=Limits.REPORT, seconds=10.0) is None


@pytest.mark.parametrize("tier", [SHARED, THREAD, PROCESS])
def test_policy_stop_stops_in_every_tier(tier: int) -> None:
    block_history = BlockHistory()
    verdicts = [judge(block_history, Stage.BEGUN, tier=tier, action=Limits.STOP) for _ in range(REPEATS)]
    assert verdicts[-1] is not None
    assert verdicts[-1].tier is None
    assert verdicts[-1].sentence.endswith("and was stopped.")


def test_a_verdict_says_what_happened_and_where_it_leads() -> None:
    verdict = judge(BlockHistory(), Stage.HELD, seconds=2.0)
    assert verdict is not None
    assert verdict.sentence == (
        "It held the interpreter's lock for 2.0 s and runs in a process of its own now (PROCESS)."
    )


def test_a_new_tier_begins_with_a_clean_record() -> None:
    block_history = BlockHistory()
    for _ in range(REPEATS - 1):
        judge(block_history, Stage.BEGUN)
    block_history.forget()
    assert judge(block_history, Stage.BEGUN) is None

"""When an instance that ended is started again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appsupervisor.runtime.v1.runtime_environment_pb2 import RestartPolicy
from runtime_node.instances.supervision import (
    FINAL_REASONS,
    Again,
    Leave,
    RestartHistory,
    backoff_range,
)
from services.spec.effective import EffectiveRestartPolicy, effective_restart_policy

PERMANENT, TRANSIENT, TEMPORARY = RestartPolicy.PERMANENT, RestartPolicy.TRANSIENT, RestartPolicy.TEMPORARY


def terms(**changes: float) -> EffectiveRestartPolicy:
    fields = {"mode": PERMANENT, "max_restarts": 5, "period": 300.0, "min_backoff": 1.0, "max_backoff": 60.0}
    return EffectiveRestartPolicy(**{**fields, **changes})  # type: ignore[arg-type]


def lowest(low: float, high: float) -> float:
    return low


@pytest.mark.parametrize(
    ("mode", "reason", "again"),
    [
        (PERMANENT, None, True),
        (PERMANENT, "APP_CRASHED", True),
        (TRANSIENT, None, False),
        (TRANSIENT, "APP_CRASHED", True),
        (TEMPORARY, None, False),
        (TEMPORARY, "APP_CRASHED", False),
    ],
)
def test_the_mode_says_which_ends_are_followed_by_a_restart(mode: int, reason: str, again: bool) -> None:
    decision = RestartHistory().decide(terms(mode=mode), 0.0, reason, lowest)
    assert decision == (Again(delay=1.0, number=1) if again else Leave())


@pytest.mark.parametrize("reason", sorted(FINAL_REASONS))
def test_what_no_repeat_can_cure_is_left(reason: str) -> None:
    assert RestartHistory().decide(terms(), 0.0, reason, lowest) == Leave()


@given(
    st.integers(0, 8),
    st.floats(1, 1000),
    st.lists(st.floats(0.001, 500), min_size=1, max_size=60),
)
def test_no_period_holds_more_restarts_than_are_allowed(
    allowed: int, period: float, gaps: list[float]
) -> None:
    history, now, restarts = RestartHistory(), 0.0, []
    for gap in gaps:
        now += gap
        decision = history.decide(terms(max_restarts=allowed, period=period), now, "APP_CRASHED", lowest)
        if isinstance(decision, Again):
            restarts.append(now)
        else:
            assert decision.crash_loop
            recent = [when for when in restarts if when > now - period]
            assert len(recent) == allowed
    for when in restarts:
        assert sum(when - period < other <= when for other in restarts) <= allowed


def test_a_restart_by_hand_begins_the_count_anew() -> None:
    history = RestartHistory()
    assert isinstance(history.decide(terms(max_restarts=1), 0.0, "APP_CRASHED", lowest), Again)
    assert history.decide(terms(max_restarts=1), 1.0, "APP_CRASHED", lowest) == Leave(crash_loop=True)
    history.forget()
    assert history.decide(terms(max_restarts=1), 2.0, "APP_CRASHED", lowest) == Again(1.0, 1)


@given(st.floats(0.01, 600), st.floats(0, 3600), st.integers(1, 1000))
def test_delays_stay_within_the_policys_bounds_and_never_shrink(low: float, more: float, number: int) -> None:
    policy = terms(min_backoff=low, max_backoff=low + more)
    least, most = backoff_range(policy, number)
    assert low <= least <= most <= low + more
    following = backoff_range(policy, number + 1)
    assert following[0] >= least
    assert following[1] >= most


def test_delays_double() -> None:
    assert [backoff_range(terms(), n) for n in (1, 2, 3)] == [(1.0, 1.25), (1.5, 2.5), (3.0, 5.0)]
    assert backoff_range(terms(), 50) == (45.0, 60.0)


def test_unset_fields_take_the_documented_defaults() -> None:
    assert effective_restart_policy(RestartPolicy()) == terms()
    assert effective_restart_policy(RestartPolicy(max_restarts=0)).max_restarts == 0

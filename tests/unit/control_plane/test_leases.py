"""When the leader calls a node lost, and when it holds back: what the model has no time for."""

from __future__ import annotations

from itertools import pairwise

import pytest

from appsupervisor.fleet.v1.fleet_pb2 import Node
from services.control_plane.leases import Counted, Fence, LeasePace, Leases, changed_states
from services.control_plane.tenure import Pace, Tenure

GRANTED, EXPIRED, ON_HOLD = Node.GRANTED, Node.EXPIRED, Node.ON_HOLD
NONE = Node.LEASE_STATE_UNSPECIFIED


def nodes(*known: tuple[int, bool, bool]) -> list[Counted]:
    """Return nodes by state, whether they are heard, and whether their leases have run out."""
    return [Counted(f"n{number}", state, heard, over) for number, (state, heard, over) in enumerate(known)]


WELL = (GRANTED, True, False)
DEAD = (GRANTED, False, True)
DYING = (GRANTED, False, False)


@pytest.mark.parametrize(
    ("environment", "changes"),
    [
        ([WELL, WELL], {}),
        ([WELL, DYING], {}),
        ([WELL, DEAD], {"n1": EXPIRED}),
        ([DEAD], {"n0": EXPIRED}),
        ([DEAD, DEAD], {"n0": EXPIRED, "n1": EXPIRED}),  # of two each loss is most of them
        ([(GRANTED, True, True)], {}),  # who is heard is not lost
        ([(NONE, False, True)], {}),  # nor who knows no leases
        ([(EXPIRED, False, True)], {}),
        # Most of them at once.
        ([DEAD, DEAD, DEAD, WELL], {"n0": ON_HOLD, "n1": ON_HOLD, "n2": ON_HOLD}),
        ([DEAD, DYING, DYING, WELL, WELL, WELL], {"n0": ON_HOLD}),
        ([DEAD, DYING, DYING, WELL, WELL, WELL, WELL], {"n0": EXPIRED}),
        ([(ON_HOLD, False, True)] * 3 + [WELL] * 3, {}),
        # Enough of them are back.
        ([(ON_HOLD, False, True)] * 2 + [WELL] * 4, {"n0": EXPIRED, "n1": EXPIRED}),
        # Those that were lost one after the other don't count.
        ([(EXPIRED, False, True)] * 5 + [DEAD, WELL], {"n5": EXPIRED}),
    ],
)
def test_a_node_is_lost_alone_and_on_hold_with_most(
    environment: list[tuple[int, bool, bool]], changes: dict[str, int]
) -> None:
    assert changed_states(nodes(*environment)) == changes


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def leases(clock: Clock) -> Leases:
    return Leases(Tenure(7, clock.now, Pace(lasts=1e9), clock), clock, LeasePace())


def test_a_grant_answers_a_heartbeat_about_every_two_seconds(leases: Leases, clock: Clock) -> None:
    leases.open("n", "life", [])
    sent = []
    for _ in range(20):
        grant = leases.grant("n", "life", clock.now - 900)
        if grant is not None:
            assert (grant.term, grant.incarnation, grant.lasts) == (7, "life", 6.0)
            assert grant.monotonic_time == clock.now - 900
            sent.append(clock.now)
        clock.now += 1.0
    assert [late - early for early, late in pairwise(sent)] == [2.0] * 9


def test_only_the_life_of_a_node_that_is_open_is_granted_leases(leases: Leases) -> None:
    assert leases.grant("n", "life", 1.0) is None
    leases.open("n", "life", [])
    assert leases.grant("n", "another", 1.0) is None
    leases.close("n")
    assert leases.grant("n", "life", 1.0) is None


def test_what_a_node_has_lost_comes_with_each_grant_until_it_has_taken_one(
    leases: Leases, clock: Clock
) -> None:
    fences = (Fence("uid", 3),)
    leases.open("n", "life", fences)
    first = leases.grant("n", "life", 1.0)
    clock.now += 0.1  # it is not known to have arrived: at once with the next heartbeat
    second = leases.grant("n", "life", 1.1)
    assert first is not None
    assert second is not None
    assert first.fences == second.fences == fences
    leases.accepted("n", second)
    clock.now += 2.0
    third = leases.grant("n", "life", 3.0)
    assert third is not None
    assert third.fences == ()


def test_a_leader_waits_a_whole_lease_before_it_calls_anyone_lost(leases: Leases, clock: Clock) -> None:
    clock.now += 6.0
    assert not leases.has_run_out("unknown")
    clock.now += 0.1
    assert leases.has_run_out("unknown")


def test_a_leader_that_stood_still_counts_anew(leases: Leases, clock: Clock) -> None:
    for _ in range(30):
        clock.now += 0.25
        leases.look()
    assert leases.has_run_out("n")
    clock.now += 1.5
    leases.look()
    assert not leases.has_run_out("n")


def test_nothing_is_granted_after_the_leaders_time(clock: Clock) -> None:
    tenure = Tenure(1, clock.now, Pace(lasts=5.0, margin=0.5), clock)
    leases = Leases(tenure, clock)
    leases.open("n", "life", [])
    clock.now += 4.5
    assert leases.grant("n", "life", 1.0) is None
    tenure.extend(clock.now)
    assert leases.grant("n", "life", 1.0) is not None
    tenure.end()
    clock.now += 2.0
    assert leases.grant("n", "life", 3.0) is None

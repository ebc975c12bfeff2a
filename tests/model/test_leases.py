"""Leases and failover as a model: whatever is late, lost, repeated or stands still, nobody writes twice.

A schedule is a seed. Each safety rule has a test that breaks it and sees the model find out.
"""

from __future__ import annotations

import math
import os
from typing import Any

import pytest

from runtime_node.instances.fences import Fences
from runtime_node.lease import Lease
from services.control_plane.leases import LeasePace, Leases
from services.control_plane.placement.snapshot import Snapshot
from services.control_plane.tenure import Tenure
from tests.model import catalog, control_plane
from tests.model.fleet import Fleet
from tests.model.node import ModelNode
from tests.model.schedules import CHAOS, CHUNKS, Rules, chunk_of_many, come_to_rest, played
from tests.model.simulation import RATE, Simulation
from tests.seeds import NEW, SEED

SCHEDULES = 1_000
PARTS = 4


def play(seed: int) -> Fleet:
    """Play one schedule. Raises Violation."""
    simulation = Simulation(seed)
    chance = simulation.chance
    fleet = Fleet(simulation, nodes=chance.choice((2, 2, 3)), apps=chance.choice((1, 2)))
    simulation.run(4.0)
    fleet.ask()
    moment = 4.0
    if chance.random() < 0.25:
        fleet.plot()
        moment = CHAOS / 2
        simulation.run(moment)
    while moment < CHAOS:
        moment += chance.expovariate(1 / 3.0)
        simulation.run(moment)
        fleet.strike()
    come_to_rest(simulation, fleet, moment)
    return fleet


def play_all(seeds: range) -> tuple[int, int]:
    """Play schedules; return how many responses left, and how often an app went to another node."""
    responses = moved = 0
    for fleet in played(play, seeds):
        responses += fleet.responses
        moved += fleet.moved
    return responses, moved


@pytest.mark.parametrize("part", range(PARTS))
def test_no_schedule_lets_two_answer_and_each_comes_right(part: int) -> None:
    size = SCHEDULES // PARTS
    responses, moved = play_all(range(part * size, (part + 1) * size))
    # It would be easy to keep every rule by doing nothing.
    assert responses > 5 * size
    assert moved > size / 10


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_schedule_of_a_hundred_thousand_does(chunk: int) -> None:
    play_all(chunk_of_many(chunk))


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not NEW, reason="new seeds belong to make chaos, which sets CHAOS_ROUNDS")
def test_no_new_schedule_does() -> None:
    count = 1_000 * int(os.environ.get("CHAOS_ROUNDS", "1"))
    first = SEED << 32
    print(f"schedules {first} to {first + count - 1}")
    play_all(range(first, first + count))


def test_the_leader_outwaits_every_node_whatever_their_clocks_do() -> None:
    pace = LeasePace()
    node_longest = pace.lasts / (1 - RATE)
    leader_shortest = (pace.lasts + pace.slack) / (1 + RATE)
    assert node_longest < leader_shortest


breaks = Rules(
    play,
    most_to_find=10_000,
    tried_first={
        "the_leader_grants_when_its_time_is_up": 2221,
        "the_node_takes_what_was_meant_for_its_life_before": 244,
        "the_node_accepts_an_older_epoch": 221,
        "the_node_gives_nothing_up_with_a_grant": 77,
    },
)
RARE = {
    "a_loss_is_stored_of_a_node_that_was_heard_since",
    "apps_are_given_up_by_what_was_seen_and_not_by_what_is_stored",
    "a_node_is_not_told_what_was_given_up_unseen",
}
"""Found out in a thousand schedules or more: several things have to come together."""
# Not among the rules: that the store takes no writes of an older term. A loss names what it was judged by,
# so that no schedule of 40,000 needs both; tests/contract/store tries it by itself.


@breaks
def the_lease_runs_from_when_the_grant_arrives(patch: pytest.MonkeyPatch) -> None:
    renew = Lease.renew

    def broken(
        self: Lease, term: int, incarnation: str, time: float, lasts: float, give_up: Any, *, alone: bool
    ) -> None:
        renew(self, term, incarnation, self._clock(), lasts, give_up)

    patch.setattr(Lease, "renew", broken)


@breaks
def the_node_heeds_any_leader(patch: pytest.MonkeyPatch) -> None:
    heed = Lease.heed
    patch.setattr(Lease, "heed", lambda self, term, incarnation="": heed(self, 0, incarnation))


@breaks
def the_node_takes_what_was_meant_for_its_life_before(patch: pytest.MonkeyPatch) -> None:
    heed = Lease.heed
    patch.setattr(Lease, "heed", lambda self, term, incarnation="": heed(self, term))


@breaks
def the_node_does_not_look_at_its_lease_before_a_response_leaves(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lease, "covers", lambda self, stretch: self.until > -math.inf)


@breaks
def the_node_finishes_in_one_stretch_what_it_began_in_another(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lease, "covers", lambda self, stretch: self.held)


@breaks
def the_node_gives_nothing_up_with_a_grant(patch: pytest.MonkeyPatch) -> None:
    renew = Lease.renew

    def broken(
        self: Lease, term: int, incarnation: str, time: float, lasts: float, give_up: Any, *, alone: bool
    ) -> None:
        renew(self, term, incarnation, time, lasts, lambda: None)

    patch.setattr(Lease, "renew", broken)


@breaks
def the_node_accepts_an_older_epoch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Fences, "check", lambda self, name, uid, version: None)


@breaks
def the_leader_waits_less_than_the_lease_lasts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(control_plane, "LEASE", LeasePace(slack=-0.5))


@breaks
def the_leader_grants_when_its_time_is_up(patch: pytest.MonkeyPatch) -> None:
    grant = Leases.grant

    def broken(self: Leases, *what: Any) -> Any:
        kept, self._tenure = self._tenure, Tenure.endless(self._tenure.term)
        try:
            return grant(self, *what)
        finally:
            self._tenure = kept

    patch.setattr(Leases, "grant", broken)


@breaks
def a_new_leader_does_not_wait(patch: pytest.MonkeyPatch) -> None:
    begin = Leases.__init__

    def broken(self: Leases, *what: Any) -> None:
        begin(self, *what)
        self._counted_from = -math.inf

    patch.setattr(Leases, "__init__", broken)


@breaks
def the_leader_goes_on_granting_while_it_calls_a_node_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Leases, "close", lambda self, node: None)


@breaks
def apps_are_given_up_by_what_was_seen_and_not_by_what_is_stored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Snapshot, "believing", lambda self, lost: self)


@breaks
def a_loss_is_stored_of_a_node_that_was_heard_since(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(catalog, "is_as_judged", lambda node, judged: node.incarnation == judged.incarnation)


@breaks
def a_node_is_not_told_what_was_given_up_unseen(patch: pytest.MonkeyPatch) -> None:
    whole = control_plane.fence_epoch
    patch.setattr(control_plane, "fence_epoch", lambda uid, node, placements, here: whole(
        uid, node, [it for it in placements if it.role != control_plane.Role.LOST], here
    ))  # fmt: skip


@breaks
def a_node_is_told_its_leader_only_with_the_grant(patch: pytest.MonkeyPatch) -> None:
    watch = ModelNode.on_watch
    patch.setattr(ModelNode, "on_watch", lambda self, one, session, term: watch(self, one, session, 0))


@breaks
def a_leaders_time_runs_from_the_databases_answer(patch: pytest.MonkeyPatch) -> None:
    extend = Tenure.extend
    patch.setattr(Tenure, "extend", lambda self, sent: extend(self, self._clock()))


@pytest.mark.parametrize(
    "rule", [pytest.param(it, marks=[pytest.mark.slow] * (it in RARE)) for it in breaks.breaks]
)
def test_the_model_finds_out_when(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks.find_out(rule, monkeypatch)

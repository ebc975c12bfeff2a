"""A node that is the only one needs no lease, as a model: until it has heard of another one, nobody else has
its apps. Judged by what is stored: what leaves it without a lease does so while the catalog says that it may.

Each safety rule has a test that breaks it and sees the model find out.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from runtime_node.lease import Lease
from services.control_plane.leases import Leases
from tests.model import catalog, control_plane
from tests.model.fleet import Fleet
from tests.model.schedules import CHAOS, CHUNKS, Rules, chunk_of_many, come_to_rest, played
from tests.model.simulation import Simulation

SCHEDULES = 120


def play(seed: int) -> Fleet:
    """Play one schedule: of one node, which is joined by another. Raises Violation."""
    simulation = Simulation(seed)
    chance = simulation.chance
    fleet = Fleet(simulation, nodes=1, apps=1, lone=True)
    simulation.run(4.0)
    fleet.ask()
    only = next(iter(fleet.nodes))
    moment, joins = 4.0, chance.uniform(4.0, CHAOS - 20.0)
    # What matters most: it is cut off around the moment in which the other one comes, or once it has heard.
    cut = chance.choice((chance.uniform(-4.0, 4.0), chance.uniform(4.0, 8.0)))
    simulation.after(max(0.0, joins + cut - 4.0), None, fleet.isolate, only, CHAOS, "both")
    if chance.random() < 0.4:
        simulation.after(max(0.0, joins - 4.0 - chance.uniform(0.0, 3.0)), None, fleet.slow_down, 0.5, 5.0)
    while moment < CHAOS:
        following = moment + chance.expovariate(1 / 4.0)
        if moment < joins <= following:
            simulation.run(joins)
            fleet.join()
        moment = following
        simulation.run(moment)
        fleet.strike()
    come_to_rest(simulation, fleet, moment)
    return fleet


def play_all(seeds: range) -> tuple[int, int]:
    """Play schedules; return how many responses left without a lease, and how often an app went elsewhere."""
    spared = moved = 0
    for fleet in played(play, seeds):
        spared += fleet.spared
        moved += fleet.moved
    return spared, moved


def test_no_schedule_lets_two_answer_though_one_needed_no_lease() -> None:
    spared, moved = play_all(range(SCHEDULES))
    # It would be easy to keep every rule by never serving alone, or by giving nothing to the other one.
    assert spared > SCHEDULES
    assert moved > SCHEDULES / 20


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("chunk", range(CHUNKS // 4))
def test_no_schedule_of_many_does(chunk: int) -> None:
    play_all(chunk_of_many(chunk))


breaks = Rules(
    play,
    most_to_find=4_000,
    tried_first={
        "a_parting_counts_with_an_older_heartbeat_than_the_word_before": 3210,  # found in the product, too
        "a_node_is_told_that_it_is_alone_beside_another": 304,
    },
)


@breaks
def a_node_is_told_that_it_is_alone_beside_another(patch: pytest.MonkeyPatch) -> None:
    set_alone = Leases.set_alone
    patch.setattr(Leases, "set_alone", lambda self, node, *, stored, wanted: set_alone(
        self, node, stored=True, wanted=True
    ))  # fmt: skip


@breaks
def a_parting_counts_with_an_older_heartbeat_than_the_word_before(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Leases, "_is_newest", lambda self, *what: True)


@breaks
def a_parting_is_done_once_it_is_decided(patch: pytest.MonkeyPatch) -> None:
    set_alone = Leases.set_alone

    def broken(self: Leases, node: str, *, stored: bool, wanted: bool) -> None:
        set_alone(self, node, stored=stored, wanted=wanted)
        known = self._open.get(node)
        if known is not None and known.parting:
            known.parting = 0
            self._parted.add(node)

    patch.setattr(Leases, "set_alone", broken)


@breaks
def a_node_takes_an_older_word_for_the_newest(patch: pytest.MonkeyPatch) -> None:
    renew = Lease.renew

    def broken(self: Lease, *what: Any, alone: bool = False) -> None:
        self._told_alone = 0, -math.inf
        renew(self, *what, alone=alone)

    patch.setattr(Lease, "renew", broken)


@breaks
def what_a_node_serves_alone_is_given_up_when_its_lease_has_run_out(patch: pytest.MonkeyPatch) -> None:
    for where in (catalog, control_plane):
        patch.setattr(where, "serving_alone", lambda app, placements, node: frozenset())


@pytest.mark.parametrize("rule", breaks.breaks)
def test_the_model_finds_out_when(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks.find_out(rule, monkeypatch)

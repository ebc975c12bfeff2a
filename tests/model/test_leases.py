"""Leases and failover as a model: whatever is late, lost, repeated or stands still, nobody writes twice.

A schedule is a seed. Each safety rule has a test that breaks it and sees the model find out.
"""

from __future__ import annotations

import os

import pytest

from tests.model.fleet import Fleet
from tests.model.simulation import Simulation, Violation, Weather
from tests.seeds import NEW, SEED

CHAOS, REST = 40.0, 40.0
"""Seconds in which things go wrong, and in which everything has to come right again."""


def play(seed: int) -> Fleet:
    """Play one schedule. Raises Violation."""
    simulation = Simulation(seed)
    chance = simulation.chance
    fleet = Fleet(simulation, nodes=chance.choice((2, 2, 3)), apps=chance.choice((1, 2)))
    simulation.run(4.0)
    fleet.ask()
    moment = 4.0
    while moment < CHAOS:
        moment += chance.expovariate(1 / 4.0)
        simulation.run(moment)
        fleet.strike()
    simulation.weather, fleet.rough = Weather(), False
    for one in (*fleet.nodes.values(), *fleet.control_planes):
        one.process.paused_until = min(one.process.paused_until, moment)
    simulation.run(moment + REST)
    fleet.check_rest()
    return fleet


def play_all(seeds: range) -> tuple[int, int]:
    responses = moved = 0
    for seed in seeds:
        try:
            fleet = play(seed)
        except Violation as violation:
            raise AssertionError(f"schedule {seed}: {violation}") from None
        responses += fleet.responses
        moved += fleet.moved
    return responses, moved


def test_no_schedule_lets_two_answer(record_property) -> None:
    responses, moved = play_all(range(2_000))
    assert responses > 2_000
    assert moved > 200

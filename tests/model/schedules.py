"""Schedules of the model, each played by its seed: many go well, and some find a broken rule out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import pytest

from tests.model.fleet import Fleet
from tests.model.simulation import Simulation, Violation, Weather

CHAOS, REST = 34.0, 30.0
"""Seconds in which things go wrong, and in which everything has to come right again."""

MANY = 100_000
CHUNKS = 20

Play = Callable[[int], Fleet]
"""Plays the schedule of a seed. Raises Violation."""
Break = Callable[[pytest.MonkeyPatch], None]


def come_to_rest(simulation: Simulation, fleet: Fleet, moment: float) -> None:
    """End what goes wrong at `moment`, and see all come right. Raises Violation."""
    simulation.weather, fleet.rough = Weather(), False
    for one in (*fleet.nodes.values(), *fleet.control_planes):
        one.process.paused_until = min(one.process.paused_until, moment)
    simulation.run(moment + REST)
    fleet.check_rest()


def played(play: Play, seeds: Iterable[int]) -> Iterator[Fleet]:
    """Yield the fleet of each schedule at its end; fails with the seed of the first that breaks a rule."""
    for seed in seeds:
        try:
            yield play(seed)
        except Violation as violation:
            raise AssertionError(f"schedule {seed}: {violation}") from None


def chunk_of_many(chunk: int) -> range:
    """Return one of CHUNKS parts of the seeds of MANY schedules."""
    size = MANY // CHUNKS
    return range(chunk * size, (chunk + 1) * size)


@dataclass
class Rules:
    """Safety rules by name, each with what breaks it, and the search for a schedule that finds that out."""

    play: Play
    most_to_find: int
    """Schedules within which a broken rule is found out."""
    tried_first: Mapping[str, int]
    """The schedule that found it out before; if it does so no more, all others are tried as ever."""
    breaks: dict[str, Break] = field(default_factory=dict)

    def __call__(self, broken: Break) -> Break:
        """Register what breaks a rule."""
        self.breaks[broken.__name__] = broken
        return broken

    def find_out(self, rule: str, patch: pytest.MonkeyPatch) -> None:
        """Break a rule, and fail unless some schedule finds it out."""
        self.breaks[rule](patch)
        for seed in (
            *([self.tried_first[rule]] if rule in self.tried_first else []),
            *range(self.most_to_find),
        ):
            try:
                self.play(seed)
            except Violation:
                return
        raise AssertionError(f"{self.most_to_find} schedules went well although {rule.replace('_', ' ')}")

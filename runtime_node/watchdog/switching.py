"""How long a thread may compute before it gives way, by how many threads compete for the interpreter.

The front needs the interpreter two or three times for each request, and waits each time until every thread
that computes has had its turn: with four of them and a fixed turn it could not serve a few hundred a second.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable

CALM = 0.0005
"""Seconds of a turn while few compete. Shorter turns cost throughput, about 10 % at 0.2 ms."""
SHORTEST = 0.00005
CROWDED, QUIET = 0.001, 0.0003
"""Seconds that the interpreter is waited for from which on turns get shorter, and below which longer."""
LOOKS = 5
"""Looks that one decision rests on: a single one may be late for the machine's reasons."""


class Switching:
    """Sets the turns of this process's threads. `note` belongs to one thread."""

    def __init__(self, apply: Callable[[float], None] = sys.setswitchinterval) -> None:
        self._apply = apply
        self._late: list[float] = []
        self.turn = CALM
        """Seconds of a turn now."""
        apply(CALM)

    def note(self, late: float) -> None:
        """Note by how many seconds a thread that had nothing to do but wait was late."""
        self._late.append(late)
        if len(self._late) < LOOKS:
            return
        usual = statistics.median(self._late)
        self._late.clear()
        turn = self.turn
        if usual > CROWDED:
            turn = max(turn / 2, SHORTEST)
        elif usual < QUIET:
            turn = min(turn * 2, CALM)
        if turn != self.turn:
            self.turn = turn
            self._apply(turn)

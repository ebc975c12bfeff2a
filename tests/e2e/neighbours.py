"""Neighbours under a steady light load, and the table of what each hog beside them cost their requests."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.bench.load import Client, Phase
from tests.bench.results import quantile
from tests.e2e.stack import eventually

RATE = 100.0
"""Requests a second to all neighbours together, sent when due whether or not earlier ones were answered."""


@dataclass
class Seen:
    """What the neighbours saw in one phase. Delays are in seconds, from when a request was due."""

    delays: list[float]
    errors: Counter[str]
    of_app: dict[str, Counter[str]] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        """How many requests failed; refused connections are tried again and so no requests."""
        return self.errors.total() - self.refused

    @property
    def refused(self) -> int:
        return self.errors["refused"]


class Neighbours:
    """Asks every neighbour at its share of the rate, from a thread of its own, until `end`."""

    def __init__(self, port: int, apps: Sequence[str]) -> None:
        self._clients = {
            app: Client(port, f"{app}.localhost", "/", RATE / len(apps), connections=4) for app in apps
        }
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._work, name="neighbours", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        async def all_of_them() -> None:
            await asyncio.gather(*(client.run(self._ended) for client in self._clients.values()))

        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(all_of_them())

    def enter(self, name: str) -> None:
        """Count what is due from now on as that phase's."""

        def begin() -> None:
            for client in self._clients.values():
                client.enter(name)

        self._loop.call_soon_threadsafe(begin)

    def phases(self, name: str) -> dict[str, Phase]:
        return {app: client.phases.get(name, Phase()) for app, client in self._clients.items()}

    def answered(self, name: str, least: int) -> bool:
        """Tell whether so many requests of a phase have been answered to each neighbour."""
        return all(len(phase.latencies) >= least for phase in self.phases(name).values())

    def failing(self, name: str) -> set[str]:
        """Return the neighbours that have seen errors in a phase so far."""
        return {app for app, phase in self.phases(name).items() if phase.errors}

    def leave(self, name: str) -> Seen:
        """End a phase, wait until each of its requests has ended in some way, and return what was seen."""
        self.enter("between")
        phases = self.phases(name)

        def over() -> bool:
            return all(len(phase.latencies) == phase.due > 0 for phase in phases.values())

        eventually(over, f"every request of the phase {name!r} is answered or has failed")
        return Seen(
            [delay for phase in phases.values() for delay in phase.latencies],
            sum((phase.errors for phase in phases.values()), Counter()),
            {app: phase.errors for app, phase in phases.items()},
        )

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(30)
        assert not self._thread.is_alive()


@dataclass
class Row:
    """One hog beside the neighbours, and what became of it."""

    hog: str
    tier: str
    seen: Seen
    answer: str = ""
    became: str = ""
    reason: str = ""
    wall: str = ""

    def cells(self) -> tuple[str, ...]:
        delays = self.seen.delays or [0.0]
        p50, p99, most = (f"{quantile(delays, q) * 1000:.1f}" for q in (0.5, 0.99, 1.0))
        failed = f"{self.seen.failed}/{len(self.seen.delays)}"
        if self.seen.refused:
            failed += f" +{self.seen.refused} refused"
        return self.hog, self.tier, failed, p50, p99, most, self.answer, self.became, self.reason, self.wall


ROWS: list[Row] = []
"""The rows of this run, which the summary prints at its end."""

_TITLES = (
    "hog", "tier", "failed", "p50 ms", "p99 ms", "max ms", "answer", "the hog is", "because", "wall",
)  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """Return the rows as aligned text."""
    lines = [_TITLES, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_TITLES))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )

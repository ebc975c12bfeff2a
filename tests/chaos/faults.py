"""What can befall a fleet: each fault a context that begins it and ends it, chosen by name.

A fault strikes who matters at the moment: the leader, or the node that an app is on.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from tests.chaos.fleet import DATABASE, NODES, PLANES, Fleet
from tests.e2e.stack import Process, eventually

Fault = Callable[[Fleet, str], AbstractContextManager[None]]
"""Of a fleet and the node that it is about."""


@contextlib.contextmanager
def killed(process: Process) -> Iterator[None]:
    """End a process as kill -9 does, and start it again at the end."""
    process.kill()
    try:
        yield
    finally:
        process.start()


@contextlib.contextmanager
def stopped(process: Process) -> Iterator[None]:
    """Let a process stand still."""
    process.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.signal(signal.SIGCONT)


@contextlib.contextmanager
def database_killed(fleet: Fleet) -> Iterator[None]:
    """Kill the database server, and start it again at the end."""
    fleet.postgres.kill()
    try:
        yield
    finally:

        def runs() -> bool:
            # Not while a session of the one before still ends.
            said = fleet.postgres.text().count(READY)
            fleet.postgres.start()
            eventually(
                lambda: not fleet.postgres.running() or fleet.postgres.text().count(READY) > said, "it starts"
            )
            return fleet.postgres.running()

        eventually(runs, "PostgreSQL is back")


READY = "ready to accept connections"


def _others(node: str) -> tuple[str, ...]:
    return tuple(other for other in NODES if other != node)


@contextlib.contextmanager
def _lost(fleet: Fleet, *ways: tuple[str, str]) -> Iterator[None]:
    with contextlib.ExitStack() as lost:
        for source, target in ways:
            lost.enter_context(fleet.network.lost(source, target))
        yield


BAD = {"late": 0.01, "jitter": 0.2, "lost": 0.02, "twice": 0.02}
"""A wire that takes 10 to 210 ms, a packet as any other, loses some and hands some over twice."""

FAULTS: dict[str, Fault] = {
    "leader killed": lambda fleet, node: killed(fleet.planes[fleet.leader()]),
    "leader stands still": lambda fleet, node: stopped(fleet.planes[fleet.leader()]),
    "leader cut from PostgreSQL": lambda fleet, node: fleet.network.cut(fleet.leader(), DATABASE),
    "leader not heard by PostgreSQL": lambda fleet, node: fleet.network.lost(fleet.leader(), DATABASE),
    "leader does not hear PostgreSQL": lambda fleet, node: fleet.network.lost(DATABASE, fleet.leader()),
    "leader cut from nodes": lambda fleet, node: fleet.network.cut(fleet.leader(), *NODES),
    "PostgreSQL killed": lambda fleet, node: database_killed(fleet),
    "PostgreSQL stands still": lambda fleet, node: fleet.network.frozen(DATABASE),
    "node killed": lambda fleet, node: killed(fleet.nodes[node]),
    "node stands still": lambda fleet, node: stopped(fleet.nodes[node]),
    "node cut from control planes": lambda fleet, node: fleet.network.cut(node, *PLANES),
    "node does not hear control planes": lambda fleet, node: _lost(fleet, *((it, node) for it in PLANES)),
    "node not heard by control planes": lambda fleet, node: _lost(fleet, *((node, it) for it in PLANES)),
    "node cut from PostgreSQL": lambda fleet, node: fleet.network.cut(node, DATABASE),
    "node cut from nodes": lambda fleet, node: fleet.network.cut(node, *_others(node)),
    "node cut from all but clients": lambda fleet, node: fleet.network.cut(
        node, *PLANES, DATABASE, *_others(node)
    ),
    "leader behind a bad wire": lambda fleet, node: fleet.network.delayed(fleet.leader(), **BAD),
    "PostgreSQL behind a bad wire": lambda fleet, node: fleet.network.delayed(DATABASE, **BAD),
    "node behind a bad wire": lambda fleet, node: fleet.network.delayed(node, **BAD),
    "leader has its clock an hour ahead": lambda fleet, node: fleet.clocks[fleet.leader()].ahead(1),
    "leader has its clock a day behind": lambda fleet, node: fleet.clocks[fleet.leader()].ahead(-24),
    "PostgreSQL has its clock an hour ahead": lambda fleet, node: fleet.clocks[DATABASE].ahead(1),
    "PostgreSQL has its clock a day behind": lambda fleet, node: fleet.clocks[DATABASE].ahead(-24),
    "node has its clock a year ahead": lambda fleet, node: fleet.clocks[node].ahead(365 * 24),
    "node has its clock a day behind": lambda fleet, node: fleet.clocks[node].ahead(-24),
}

LEASELESS = frozenset(
    {
        "node cut from control planes",
        "node does not hear control planes",
        "node not heard by control planes",
        "node cut from all but clients",
    }
)
"""While one of these lasts no lease is granted to the node."""

STRIKES = (*((fault, "fenced") for fault in FAULTS), *((fault, "strict") for fault in sorted(LEASELESS)))
"""Each fault, and the app whose node it is about: one that could write twice; one that may not answer."""

BRIEF = (
    ("leader stands still", "fenced"),
    ("node stands still", "fenced"),
    ("node cut from control planes", "fenced"),
    ("node does not hear control planes", "strict"),
    ("PostgreSQL killed", "fenced"),
)
"""Of each kind one, for runs that should be short."""


def last(seconds: float) -> None:
    """Let a fault last: how long is part of it."""
    threading.Event().wait(seconds)

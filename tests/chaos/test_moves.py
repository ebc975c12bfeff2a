"""An app with its data on its node moves while something breaks: one node owns the data, with every row."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from appsupervisor.catalog.v1.app_catalog_pb2 import DataMove
from tests.chaos.faults import database_killed, killed, last, stopped
from tests.chaos.fleet import DATABASE, NODES, Fleet
from tests.chaos.rows import Rows
from tests.e2e.stack import DEADLINE, eventually
from tests.seeds import SEED

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "1"))
LASTS = 8.0

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(300)]

FAULTS: dict[str, Callable[[Fleet, str, str], AbstractContextManager[None]]] = {
    "the copy is cut": lambda fleet, source, target: fleet.network.cut(source, target),
    "nothing reaches the target": lambda fleet, source, target: fleet.network.lost(source, target),
    "nothing reaches the source": lambda fleet, source, target: fleet.network.lost(target, source),
    "source killed": lambda fleet, source, target: killed(fleet.nodes[source]),
    "target killed": lambda fleet, source, target: killed(fleet.nodes[target]),
    "source stands still": lambda fleet, source, target: stopped(fleet.nodes[source]),
    "target stands still": lambda fleet, source, target: stopped(fleet.nodes[target]),
    "leader killed": lambda fleet, source, target: killed(fleet.planes[fleet.leader()]),
    "leader stands still": lambda fleet, source, target: stopped(fleet.planes[fleet.leader()]),
    "leader cut from the source": lambda fleet, source, target: fleet.network.cut(fleet.leader(), source),
    "leader cut from the target": lambda fleet, source, target: fleet.network.cut(fleet.leader(), target),
    "leader cut from PostgreSQL": lambda fleet, source, target: fleet.network.cut(fleet.leader(), DATABASE),
    "PostgreSQL killed": lambda fleet, source, target: database_killed(fleet),
}

MOMENTS = {"copying": "", "frozen": "travel.frozen", "arrived": "travel.arrived"}
"""What a node's log says when a move has come so far; of a copy, which may be gone on with, the catalog."""

ALL = [(fault, moment) for fault in FAULTS for moment in MOMENTS]
BRIEF = [("leader killed", "frozen")]


def drawn() -> list[tuple[str, str]]:
    """Return which faults are tried, and when."""
    return BRIEF if ROUNDS == 1 else random.Random(SEED).sample(ALL, min(len(ALL), 6 * ROUNDS))


@pytest.mark.parametrize(("fault", "moment"), drawn())
def test_one_node_owns_the_data_with_every_row(fleet: Fleet, luggage: str, fault: str, moment: str) -> None:
    source = fleet.settles(luggage)
    target = random.Random(f"{SEED} {fault} {moment}").choice([it for it in NODES if it != source])
    told = MOMENTS[moment]
    said = {name: node.text().count(told) for name, node in fleet.nodes.items()}

    def has_come_so_far() -> bool:
        if not told:
            return fleet.app(luggage).data_move.state == DataMove.COPYING
        return any(node.text().count(told) > said[name] for name, node in fleet.nodes.items())

    with Rows(fleet, luggage) as rows, fleet.network.slow(source, 40):  # the copy takes some seconds
        rows.go_on()
        operation = fleet.move(luggage, target)
        eventually(has_come_so_far, f"the move is {moment}")
        with FAULTS[fault](fleet, source, target):
            last(LASTS)
        ended = fleet.wait(operation, 3 * DEADLINE)
        rows.go_on(within=3 * DEADLINE)
        fleet.is_whole()
    home = fleet.settles(luggage)
    print(f"{fault}, {moment}: from {source} to {target}, is at {home}: {ended.error.message or 'moved'}")
    print(rows.summary())
    rows.judge(home, one_writer=True)
    eventually(lambda: fleet.copies(luggage) == [fleet.home(luggage)], "one node has its data", 2 * DEADLINE)

"""Moves, drains and restarts that are under way when something breaks: each ends, and the app serves at one
node with every row. What is forwarded to a node that is cut off is told so.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

import pytest
from google.longrunning import operations_pb2

from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance
from tests.chaos.faults import killed, last, stopped
from tests.chaos.fleet import NODES, PLANES, Fleet
from tests.chaos.rows import Rows, Visitor
from tests.e2e.stack import DEADLINE, eventually
from tests.seeds import SEED

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "1"))
LASTS = 8.0

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(400)]


def _all_lost(fleet: Fleet, *ways: tuple[str, str]) -> AbstractContextManager[object]:
    lost = ExitStack()
    for one, other in ways:
        lost.enter_context(fleet.network.lost(one, other))
    return lost


FAULTS: dict[str, Callable[[Fleet, str, str], AbstractContextManager[object]]] = {
    "source cut off": lambda fleet, source, target: fleet.network.cut(source, *PLANES),
    "source not heard": lambda fleet, source, target: _all_lost(fleet, *((source, it) for it in PLANES)),
    "source hears nothing": lambda fleet, source, target: _all_lost(fleet, *((it, source) for it in PLANES)),
    "target cut off": lambda fleet, source, target: fleet.network.cut(target, *PLANES),
    "target not heard": lambda fleet, source, target: _all_lost(fleet, *((target, it) for it in PLANES)),
    "target hears nothing": lambda fleet, source, target: _all_lost(fleet, *((it, target) for it in PLANES)),
    "both cut off": lambda fleet, source, target: _all_lost(
        fleet, *((one, it) for one in (source, target) for it in PLANES)
    ),
    "target stands still": lambda fleet, source, target: stopped(fleet.nodes[target]),
    "target killed": lambda fleet, source, target: killed(fleet.nodes[target]),
    "source stands still": lambda fleet, source, target: stopped(fleet.nodes[source]),
    "leader killed": lambda fleet, source, target: killed(fleet.planes[fleet.leader()]),
    "leader stands still": lambda fleet, source, target: stopped(fleet.planes[fleet.leader()]),
}

COMMANDS: dict[str, Callable[[Fleet, str, str, str], operations_pb2.Operation]] = {
    "move": lambda fleet, app, source, target: fleet.move(app, target),
    "drain": lambda fleet, app, source, target: fleet.drain(source),
    "restart": lambda fleet, app, source, target: fleet.restart(app),
}

ALL = [
    (command, fault)
    for command in COMMANDS
    for fault in FAULTS
    # What is restarted stays where it is, and where a drained node's apps go nobody knows.
    if command == "move" or not fault.startswith(("target", "both"))
]
BRIEF = [("move", "target hears nothing"), ("drain", "leader killed")]


def drawn() -> list[tuple[str, str]]:
    """Return which commands are tried, and with which faults."""
    return BRIEF if ROUNDS == 1 else random.Random(SEED).sample(ALL, min(len(ALL), 6 * ROUNDS))


@pytest.mark.parametrize(("command", "fault"), drawn())
def test_a_command_ends_and_the_app_serves_at_one_node_with_every_row(
    fleet: Fleet, slow: str, command: str, fault: str
) -> None:
    source = fleet.settles(slow)
    target = random.Random(f"{SEED} {command} {fault}").choice([it for it in NODES if it != source])
    before = {it.name for it in fleet.app(slow).instances}

    def comes_in() -> bool:
        return any(
            it.name not in before and it.state == Instance.STARTING for it in fleet.app(slow).instances
        )

    with Rows(fleet, slow) as rows:
        rows.go_on()
        operation = COMMANDS[command](fleet, slow, source, target)
        eventually(comes_in, "what takes over is starting")
        with FAULTS[fault](fleet, source, target):
            last(LASTS)
        ended = fleet.wait(operation, 3 * DEADLINE)
        rows.go_on(within=3 * DEADLINE)
        fleet.is_whole()
    if command == "drain":
        fleet.uncordon(source)
    home = fleet.settles(slow)
    print(f"{command}, {fault}: from {source} to {target}, is at {home}: {ended.error.message or 'done'}")
    print(rows.summary())
    rows.judge(home)
    if ended.WhichOneof("result") == "response":
        assert command != "move" or home == target or fault.startswith(("target", "both")), home
    else:
        assert "A later command" not in ended.error.message, "nobody has commanded anything"
        assert ended.error.details, "a reason stands in its details"
    for rest in ("local", "fenced", "strict"):
        fleet.settles(rest)


FORWARD_FAULTS: dict[str, Callable[[Fleet, str, str], AbstractContextManager[object]]] = {
    "cut off": lambda fleet, left, home: fleet.network.cut(left, home),
    "does not hear": lambda fleet, left, home: fleet.network.lost(left, home),
    "is not heard": lambda fleet, left, home: fleet.network.lost(home, left),
}


@pytest.mark.parametrize("fault", FORWARD_FAULTS if ROUNDS > 1 else ["cut off"])
def test_what_is_forwarded_to_a_node_that_is_cut_off_is_answered_503_in_time(
    fleet: Fleet, slow: str, fault: str
) -> None:
    left = fleet.settles(slow)
    home = random.Random(f"{SEED} {fault}").choice([it for it in NODES if it != left])
    fleet.wait(fleet.move(slow, home), 3 * DEADLINE)
    with contextlib.closing(Visitor(fleet, slow, left)) as client:
        eventually(lambda: client.answer("GET").status == 200, "it is forwarded")
        client.answer("GET")  # its connection is kept
        with FORWARD_FAULTS[fault](fleet, left, home):
            # Kept connections first, which have to be found out.
            for method in ("GET", "POST", "GET"):
                answer = client.answer(method)
                assert (answer.status, answer.reason) == (503, "FORWARD_FAILED"), (method, answer)
                assert int(answer.retry_after) > 0
        eventually(lambda: client.answer("GET").status == 200, "it is forwarded again")
    fleet.is_whole()
    assert fleet.settles(slow) == home

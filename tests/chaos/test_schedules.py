"""Drawn schedules: several faults at a time, begun and ended at any moment, while apps are moved about."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from dataclasses import dataclass

import grpc
import pytest
from google.longrunning import operations_pb2

from tests.chaos.faults import FAULTS
from tests.chaos.fleet import NODES, Fleet
from tests.chaos.rows import Rows
from tests.e2e.stack import DEADLINE, eventually
from tests.seeds import SEED

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "1"))
SPAN = 12.0
"""Seconds in which faults of a round begin and end."""

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(400)]


@dataclass(frozen=True)
class Struck:
    """One fault of a schedule, in seconds from its begin."""

    fault: str
    node: str
    begins: float
    ends: float

    @property
    def whom(self) -> str:
        """What it befalls: of one program no two faults overlap."""
        return self.node if self.fault.startswith("node") else self.fault.split(maxsplit=1)[0]


def drawn(moments: random.Random) -> list[Struck]:
    """Draw the faults of a round."""
    struck: list[Struck] = []
    while len(struck) < 3:
        begins = moments.uniform(0, SPAN / 2)
        one = Struck(
            moments.choice(list(FAULTS)),
            moments.choice(NODES),
            begins,
            begins + moments.uniform(0.5, SPAN / 2),
        )
        if one.whom not in {it.whom for it in struck}:
            struck.append(one)
    return struck


@pytest.mark.skipif(ROUNDS == 1, reason="takes long: make chaos CHAOS_ROUNDS=2")
@pytest.mark.parametrize("number", range(ROUNDS))
def test_whatever_comes_together_nothing_is_lost_and_every_command_ends(
    fleet: Fleet, luggage: str, number: int
) -> None:
    moments = random.Random(f"{SEED} {number}")
    faults = drawn(moments)
    print(f"CHAOS_SEED={SEED}, round {number}: {faults}")
    commands = sorted(moments.uniform(0, SPAN) for _ in range(3))
    operations: list[operations_pb2.Operation] = []
    local, fenced, strict = Rows(fleet, "local"), Rows(fleet, "fenced"), Rows(fleet, "strict", keeps=False)
    moved = Rows(fleet, luggage)
    everybody = (local, fenced, strict, moved)
    with contextlib.ExitStack() as clients:
        for rows in everybody:
            clients.enter_context(rows)
        for rows in everybody:
            rows.go_on()
        began = time.monotonic()
        # In this thread alone: a process ends with the thread that has started it.
        with contextlib.ExitStack() as under_way:
            open_faults: list[tuple[float, contextlib.ExitStack]] = []
            due = sorted(faults, key=lambda it: it.begins)
            while due or open_faults or commands:
                now = time.monotonic() - began
                for ends, context in [it for it in open_faults if it[0] <= now]:
                    context.close()
                    open_faults.remove((ends, context))
                while due and due[0].begins <= now:
                    one = due.pop(0)
                    context = under_way.enter_context(contextlib.ExitStack())
                    context.enter_context(FAULTS[one.fault](fleet, one.node))
                    open_faults.append((one.ends, context))
                while commands and commands[0] <= now:
                    commands.pop(0)
                    with contextlib.suppress(grpc.RpcError, AssertionError):  # refused, or nobody answers now
                        operations.append(fleet.move(luggage, moments.choice(NODES), within=1.0))
                threading.Event().wait(0.02)
        for operation in operations:
            fleet.wait(operation, 3 * DEADLINE)
        for rows in everybody:
            rows.go_on(within=3 * DEADLINE)
        fleet.is_whole()
    for rows in everybody:
        print(rows.summary())
    for rows in everybody:
        rows.judge(fleet.settles(rows.app_id), one_writer=rows is not strict, leased=rows is strict)
    eventually(lambda: fleet.copies(luggage) == [fleet.home(luggage)], "one node has its data", 2 * DEADLINE)

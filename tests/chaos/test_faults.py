"""One fault after another on real processes, while clients write numbered rows and read them back."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

import pytest

from tests.chaos.faults import BRIEF, FAULTS, LEASELESS, STRIKES, last
from tests.chaos.fleet import Fleet
from tests.chaos.rows import Rows

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "1"))
LASTS = 8.0
"""Seconds: longer than a lease, and than the time of a leader."""
LEASE = 6.0
"""Seconds from the last heartbeat that is answered."""

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(300)]


@contextlib.contextmanager
def clients(fleet: Fleet) -> Iterator[tuple[Rows, Rows, Rows]]:
    """Let clients write and read all three apps; then judge what they saw."""
    local, fenced, strict = Rows(fleet, "local"), Rows(fleet, "fenced"), Rows(fleet, "strict", keeps=False)
    with local, fenced, strict:
        for rows in (local, fenced, strict):
            rows.go_on()
        yield local, fenced, strict
        for rows in (local, fenced, strict):
            rows.go_on()
        fleet.is_whole()
    for rows in (local, fenced, strict):
        print(rows.summary())
    local.judge(fleet.settles("local"), one_writer=True)
    fenced.judge(fleet.settles("fenced"), one_writer=True)
    strict.judge(fleet.settles("strict"), leased=True)


@pytest.mark.parametrize(("fault", "app"), STRIKES if ROUNDS > 1 else BRIEF)
def test_no_row_is_lost_and_nobody_writes_or_answers_twice(fleet: Fleet, fault: str, app: str) -> None:
    with clients(fleet) as (local, _, strict):
        node = fleet.settles(app)
        with FAULTS[fault](fleet, node):
            began, rows = now(), len(local.acknowledged)
            last(LASTS)
            ended = now()
            if fault in LEASELESS and fleet.home("local") == node:
                assert len(local.acknowledged) > rows, "what is AVAILABLE does not serve on"
    if app == "strict":
        late = {
            epoch: [at for at in times if began + LEASE < at < ended]
            for epoch, times in strict.answers.items()
        }
        assert len([epoch for epoch, times in late.items() if times]) <= 1, late
        assert not late[min(late)], "an answer was computed without a lease"


def now() -> float:
    """Return the time by the clock that all hosts of this machine share."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)

"""One fault after another on real processes, a host each, while clients write numbered rows and read them back."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from tests.chaos.faults import BRIEF, FAULTS, last
from tests.chaos.fleet import Fleet
from tests.chaos.rows import Rows

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "1"))
LASTS = 8.0
"""Seconds: longer than a lease, and than the time of a leader."""

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


@pytest.mark.parametrize("fault", FAULTS if ROUNDS > 1 else BRIEF)
@pytest.mark.parametrize("app", ["fenced"])
def test_no_row_is_lost_and_nobody_writes_or_answers_twice(fleet: Fleet, fault: str, app: str) -> None:
    with clients(fleet):
        with FAULTS[fault](fleet, fleet.settles(app)):
            last(LASTS)

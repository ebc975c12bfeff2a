"""A long look over the catalog leaves the loop to others, however many look."""

import asyncio
from collections.abc import Iterator

import pytest

from services.control_plane.catalog import scans
from services.control_plane.catalog.scans import LOOK_EVERY, Scans
from services.rpc.errors import SupervisorError

FOR_EVER = float("inf")


class Clock:
    """A clock that goes on by a millisecond with each record that is looked at."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def records(self, count: int) -> Iterator[int]:
        for number in range(count):
            self.now += 0.001
            yield number


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(scans, "time", clock)
    return clock


async def test_others_are_served_between_slices_and_one_slice_is_run_in_a_turn(clock: Clock) -> None:
    looked_at = 0

    def look(_: int) -> bool:
        nonlocal looked_at
        looked_at += 1
        return False

    turns = Scans()
    under_way = [asyncio.create_task(turns.find(clock.records(1000), look, None, FOR_EVER)) for _ in range(5)]
    most = before = 0
    while not all(scan.done() for scan in under_way):
        await asyncio.sleep(0)
        most, before = max(most, looked_at - before), looked_at
    assert looked_at == 5000
    assert most <= LOOK_EVERY + 1


async def test_a_scan_returns_the_first_that_match_in_order(clock: Clock) -> None:
    found = await Scans().find(clock.records(1000), lambda number: number % 300 == 299, 2, FOR_EVER)
    assert found == [299, 599]
    assert await Scans().find(clock.records(3), lambda _: True, None, FOR_EVER) == [0, 1, 2]


async def test_a_scan_ends_with_its_calls_time(clock: Clock) -> None:
    with pytest.raises(SupervisorError) as late:
        await Scans().find(clock.records(10_000), lambda _: False, None, 0.5)
    assert late.value.reason == "OPERATION_DEADLINE_EXCEEDED"
    assert clock.now < 0.5 + 0.001 * 2 * LOOK_EVERY

"""Who leads stops by its own clock before another may begin, whatever the database and the machine do."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable

import pytest

from services.control_plane.leadership import Leadership
from services.control_plane.store.errors import unavailable
from services.control_plane.store.interface import Standing
from services.control_plane.tenure import Pace, Tenure
from tests.eventually import WITHIN, eventually

WAIT = WITHIN
PACE = Pace(lasts=5.0, renew=0.01, margin=0.5)


class Seat:
    """A seat on a clock that tests move; breaks as told."""

    exclusive = False

    def __init__(self) -> None:
        self.now = 0.0
        self.holder = ""
        self.term = 0
        self.expires = 0.0
        self.fails = False
        self.renewals = 0
        self.calls = 0
        """Whatever came of them."""
        self.open = threading.Event()
        self.open.set()

    def take(self, holder: str, address: str, seconds: float) -> Standing:
        self._call()
        if self.holder and self.expires > self.now:
            return Standing(self.term, False, self.expires - self.now, self.holder)
        self.holder, self.term, self.expires = holder, self.term + 1, self.now + seconds
        return Standing(self.term, True, seconds)

    def renew(self, holder: str, term: int, seconds: float) -> bool:
        self._call()
        if (holder, term) != (self.holder, self.term):
            return False
        self.expires = self.now + seconds
        self.renewals += 1
        return True

    def leave(self, holder: str, term: int) -> None:
        self._call()
        if (holder, term) == (self.holder, self.term):
            self.holder = ""

    def _call(self) -> None:
        assert self.open.wait(WAIT)
        self.calls += 1
        if self.fails:
            raise unavailable()

    async def is_asked_again(self) -> None:
        """Wait for calls that began after now."""
        before = self.calls
        await eventually(lambda: self.calls > before + 2)


class Replica:
    """One replica's leadership, and what it was told to do."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.told: list[str] = []
        self.fails = False
        self.leadership = Leadership(
            seat, "h:1", on_elected=self.begin, on_lost=self.end, pace=PACE, clock=lambda: seat.now
        )

    async def begin(self, tenure: Tenure) -> None:
        if self.fails:
            raise RuntimeError("it could not begin")
        self.told.append(f"begin {tenure.term}")

    async def end(self) -> None:
        self.told.append("end")


@pytest.fixture
def seat() -> Seat:
    return Seat()


@pytest.fixture
async def replicas(seat: Seat) -> AsyncIterator[Callable[[], Replica]]:
    made: list[Replica] = []

    def new() -> Replica:
        made.append(Replica(seat))
        return made[-1]

    yield new
    seat.fails = False
    seat.open.set()
    for replica in made:
        await replica.leadership.close()


async def test_one_leads_and_the_other_follows_when_it_leaves(
    seat: Seat, replicas: Callable[[], Replica]
) -> None:
    one, other = replicas(), replicas()
    await one.leadership.start()
    await eventually(lambda: one.told)
    await other.leadership.start()
    before = seat.renewals
    await eventually(lambda: seat.renewals > before + 5)
    assert (one.told, one.leadership.term) == (["begin 1"], 1)
    assert (other.told, other.leadership.term) == ([], None)
    await one.leadership.close()
    assert (one.told, one.leadership.term) == (["begin 1", "end"], None)
    await eventually(lambda: other.told == ["begin 2"])


async def test_a_leader_that_slept_past_its_time_ends_its_work_before_it_asks_anyone(
    seat: Seat, replicas: Callable[[], Replica]
) -> None:
    one = replicas()
    await one.leadership.start()
    await eventually(lambda: one.told)
    seat.open.clear()
    seat.now += 4.6  # not yet its time by the database's clock
    assert one.leadership.term is None
    await eventually(lambda: one.told == ["begin 1", "end"])
    seat.open.set()


async def test_a_leader_that_cannot_ask_the_database_goes_on_until_its_time_is_up(
    seat: Seat, replicas: Callable[[], Replica]
) -> None:
    one = replicas()
    await one.leadership.start()
    await eventually(lambda: seat.renewals)
    seat.fails = True
    seat.now += 3.0
    assert one.leadership.term == 1
    await seat.is_asked_again()
    assert (one.told, one.leadership.term) == (["begin 1"], 1)
    seat.fails = False
    before = seat.renewals
    await eventually(lambda: seat.renewals > before + 1)  # the answer to the first was heard
    seat.fails = True
    seat.now += 4.0
    assert one.leadership.term == 1
    seat.now += 0.5
    await eventually(lambda: one.told == ["begin 1", "end"])
    seat.now += 1.0
    seat.fails = False
    await eventually(lambda: one.told == ["begin 1", "end", "begin 2"])


async def test_a_leader_that_is_told_of_another_ends_its_work_at_once(
    seat: Seat, replicas: Callable[[], Replica]
) -> None:
    one = replicas()
    await one.leadership.start()
    await eventually(lambda: one.told)
    seat.holder, seat.term, seat.expires = "other", 2, seat.now + 5
    await eventually(lambda: one.told == ["begin 1", "end"])
    assert one.leadership.term is None


async def test_a_candidate_waits_until_the_leaders_time_is_up(
    seat: Seat, replicas: Callable[[], Replica]
) -> None:
    seat.holder, seat.term, seat.expires = "dead", 7, 5.0
    one = replicas()
    await one.leadership.start()
    seat.now = 4.9
    await seat.is_asked_again()
    assert one.told == []
    seat.now = 5.0
    await eventually(lambda: one.told == ["begin 8"])


async def test_a_leader_whose_work_does_not_begin_gives_the_lead_up_and_tries_again(
    seat: Seat, replicas: Callable[[], Replica], caplog: pytest.LogCaptureFixture
) -> None:
    one = replicas()
    one.fails = True
    await one.leadership.start()
    await eventually(lambda: "end" in one.told)
    assert "leadership.begin_failed" in [it.__dict__["action"] for it in caplog.records]
    one.fails = False
    await eventually(lambda: one.told[-1].startswith("begin"))


async def test_of_a_catalog_that_nobody_else_can_open_the_work_has_begun_on_return(seat: Seat) -> None:
    seat.exclusive = True
    one = Replica(seat)
    await one.leadership.start()
    assert (one.told, one.leadership.term) == (["begin 1"], 1)
    seat.now += 1_000_000
    assert one.leadership.term == 1
    await one.leadership.close()
    assert one.told == ["begin 1", "end"]


async def test_a_file_that_cannot_be_written_at_start_is_led_once_it_can(
    seat: Seat, replicas: Callable[[], Replica]
) -> None:
    seat.exclusive, seat.fails = True, True
    one = replicas()
    await one.leadership.start()
    assert (one.told, one.leadership.term) == ([], None)
    seat.fails = False
    await eventually(lambda: one.told == ["begin 1"])
    seat.now += 1_000_000
    assert one.leadership.term == 1
    assert seat.renewals == 0

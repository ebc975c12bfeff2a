"""The catalog's time never goes back, never stands still, and never runs ahead of what has passed."""

from services.control_plane.store.clock import SteadyClock

HOUR = 3_600_000_000


class Hands:
    """A wall clock and the time that has passed, µs."""

    def __init__(self) -> None:
        self.wall = 1_000 * HOUR
        self.elapsed = 0

    def passes(self, microseconds: int) -> None:
        self.wall += microseconds
        self.elapsed += microseconds


def steady(hands: Hands) -> SteadyClock:
    return SteadyClock(lambda: hands.wall, lambda: hands.elapsed, hands.wall)


def test_it_follows_the_wall_clock_and_goes_on_where_that_is_set_back() -> None:
    hands = Hands()
    clock = steady(hands)
    hands.passes(HOUR)
    assert clock() == hands.wall
    before = clock()
    hands.wall -= 5 * HOUR
    hands.elapsed += 10
    assert clock() == before + 10


def test_what_another_replica_writes_while_nobody_asks_here_does_not_count_twice() -> None:
    hands = Hands()
    clock = steady(hands)
    # A standby follows what the leader writes, and asks for the time when it leads itself, a day later.
    for _ in range(24):
        hands.passes(HOUR)
        clock.reach(hands.wall)
    assert clock() == hands.wall


def test_a_time_that_has_been_somewhere_else_is_gone_on_from() -> None:
    hands = Hands()
    clock = steady(hands)
    clock.reach(hands.wall + 7)
    hands.elapsed += 1
    assert clock() == hands.wall + 8

"""The queue of apps and the pace of their starts: order, width, pauses that grow, in virtual time."""

from __future__ import annotations

import asyncio
import collections
import itertools
import logging

import pytest

from services.control_plane.controller.turns import BETWEEN, TURN_SECONDS
from services.control_plane.controller.work_queue import TURN, WorkQueue
from services.control_plane.reconciler.pace import FREE, KEPT_SECONDS, LONGEST_PAUSE, Pace
from services.control_plane.reconciler.result import Result
from services.control_plane.store.records import Version
from services.rpc.errors import SupervisorError
from tests.virtual_time import run_in_virtual_time

FAILED = Result(failure=SupervisorError("NODE_UNREACHABLE", "It is silent."))


class Work:
    """Work that ends when it is told to, with a result."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._ends: dict[str, asyncio.Future[Result]] = {}

    async def __call__(self, key: str) -> Result:
        self.begun.append(key)
        self._ends[key] = asyncio.get_running_loop().create_future()
        return await self._ends[key]

    async def end(self, key: str, result: Result | None = None) -> None:
        self._ends[key].set_result(result or Result())
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_one_turn_of_the_loop_begins_so_many_and_leaves_nobody_out() -> None:
    async def main() -> None:
        turn, begun = 0, collections.Counter[int]()
        groups: list[str] = []

        async def work(key: str) -> Result:
            begun[turn] += 1
            groups.append(key[0])
            await asyncio.sleep(0)
            return Result()

        queue = WorkQueue(work, lambda key: key[0], width=2 * TURN)
        for group in "abc":
            for number in range(5 * TURN):
                queue.add(f"{group}{number}")
        while queue.count() != (0, 0):
            turn += 1
            await asyncio.sleep(0)
        assert max(begun.values()) == TURN
        assert begun.total() == 3 * 5 * TURN
        assert groups.index("c") <= 4 * TURN, "the others wait for the width of a group at most"
        await queue.close()

    run_in_virtual_time(main())


@pytest.mark.parametrize("cost", [0.001, 0.1])
def test_passes_have_so_much_of_a_turn_and_what_else_runs_is_next_however_many_wait(cost: float) -> None:
    async def main() -> None:
        now, begun = 0.0, 0
        took: list[float] = []

        async def work(key: str) -> Result:
            nonlocal now, begun
            begun += 1
            now += cost
            return Result()

        queue = WorkQueue(work, lambda key: key[-1], clock=lambda: now)
        for number in range(600):
            queue.add(f"{number:03}")
        while queue.count() != (0, 0):  # as who answers a call, a step in each turn
            before = now
            await asyncio.sleep(0)
            took.append(now - before)
        assert begun == 600
        assert max(took) <= TURN_SECONDS + cost
        most = 600 * cost / TURN_SECONDS if cost < TURN_SECONDS else 600
        assert len(took) <= (BETWEEN + 1) * most + 5, "and they go on"
        await queue.close()

    run_in_virtual_time(main())


def test_workers_that_wait_for_their_turn_end_with_the_queue() -> None:
    async def main() -> None:
        now, begun = 0.0, 0

        async def work(key: str) -> Result:
            nonlocal now, begun
            begun += 1
            now += 1.0
            return Result()

        queue = WorkQueue(work, lambda key: "", clock=lambda: now)
        for number in range(TURN):
            queue.add(f"{number}")
        await asyncio.sleep(0)
        assert begun == 1
        await queue.close()
        assert (begun, queue.count()) == (1, (0, 0))

    run_in_virtual_time(main())


def test_what_work_has_settled_itself_is_no_news_whenever_it_comes_by() -> None:
    async def main() -> None:
        work = Work()
        queue = WorkQueue(work, lambda key: key)
        queue.add("a")
        await settle()
        queue.add("a", 6)
        queue.add("a", 7)
        await work.end("a", Result(settled=7))
        assert work.begun == ["a"], "while it was worked on"
        queue.add("b")
        await settle()
        await work.end("b", Result(settled=7))
        queue.add("b", 7)
        await settle()
        assert work.begun == ["a", "b"], "afterwards"
        queue.add("b", 7)
        await settle()
        assert work.begun == ["a", "b", "b"], "once"
        await work.end("b")
        await queue.close()

    run_in_virtual_time(main())


@pytest.mark.parametrize("number", [{"number": 8}, {}], ids=["newer", "without a number"])
@pytest.mark.parametrize("result", [Result(settled=7), Result(settled=7, again=True)])
def test_other_news_than_what_work_has_settled_has_it_done_again(
    result: Result, number: dict[str, int]
) -> None:
    async def main() -> None:
        work = Work()
        queue = WorkQueue(work, lambda key: key)
        queue.add("a")
        await settle()
        queue.add("a", 7)
        queue.add("a", **number)
        await work.end("a", result)
        await settle()
        assert work.begun == ["a", "a"]
        await work.end("a", Result(settled=7))
        queue.add("a", **number)
        await settle()
        assert work.begun == ["a", "a", "a"]
        await work.end("a")
        await queue.close()

    run_in_virtual_time(main())


def test_work_is_one_at_a_time_per_key_and_bounded_per_group() -> None:
    async def main() -> None:
        work = Work()
        queue = WorkQueue(work, lambda key: "other" if key in "xy" else "slow", width=2)
        for key in ("a", "b", "c", "a", "c", "x"):
            queue.add(key)
        await settle()
        assert work.begun == ["a", "b", "x"]
        assert queue.count() == (1, 3)
        queue.add("a")
        await work.end("b")
        assert work.begun == ["a", "b", "x", "c"]
        await work.end("a")  # it was asked for again meanwhile
        assert work.begun == ["a", "b", "x", "c", "a"]
        await queue.close()
        queue.add("y")
        await settle()
        assert work.begun == ["a", "b", "x", "c", "a"]
        assert queue.count() == (0, 0)

    run_in_virtual_time(main())


def test_a_key_that_fails_is_tried_again_after_pauses_that_grow_until_it_succeeds() -> None:
    async def main() -> None:
        times: list[float] = []
        clock = asyncio.get_running_loop().time

        async def work(key: str) -> Result:
            times.append(clock())
            return FAILED if len(times) <= 8 else Result()

        queue = WorkQueue(work, lambda key: "", uniform=lambda low, high: high)
        queue.add("a")
        await asyncio.sleep(100)
        pauses = [round(later - earlier, 2) for earlier, later in itertools.pairwise(times)]
        assert pauses == [0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0]
        times.clear()
        queue.add("a")  # nothing is left of the failures
        await asyncio.sleep(1)
        assert len(times) == 2
        await queue.close()

    run_in_virtual_time(main())


def test_an_event_is_looked_at_in_the_middle_of_a_pause_and_what_is_due_later_comes_then() -> None:
    async def main() -> None:
        results = [FAILED, Result(after=30.0), Result(again=True), Result()]
        times: list[float] = []

        async def work(key: str) -> Result:
            times.append(asyncio.get_running_loop().time())
            return results[len(times) - 1]

        queue = WorkQueue(work, lambda key: "", uniform=lambda low, high: high)
        queue.add("a")
        await asyncio.sleep(0.1)
        assert queue.is_known("a")
        queue.add("a")
        await asyncio.sleep(100)
        assert [round(time, 1) for time in times] == [0.0, 0.1, 30.1, 30.1]
        assert not queue.is_known("a")
        await queue.close()

    run_in_virtual_time(main())


def test_a_pass_that_breaks_is_told_and_tried_again_and_each_line_has_its_pass(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        tries = 0

        async def work(key: str) -> Result:
            nonlocal tries
            tries += 1
            if tries == 1:
                raise ZeroDivisionError
            return FAILED if tries == 2 else Result()

        queue = WorkQueue(work, lambda key: "")
        queue.add("a")
        await asyncio.sleep(10)
        assert tries == 3
        await queue.close()

    caplog.set_level(logging.INFO)
    run_in_virtual_time(main())
    told = [(it.__dict__["action"], it.__dict__["pass"]) for it in caplog.records]
    assert told == [("reconcile.failed", "1"), ("reconcile.put_off", "2")]


def pace() -> tuple[Pace, list[float]]:
    now = [0.0]
    return Pace(lambda: now[0], lambda low, high: high), now


V, W = Version(1, 1), Version(1, 2)


def test_starts_that_come_to_nothing_are_put_off_for_longer_and_longer() -> None:
    paced, now = pace()
    pauses = []
    for _ in range(14):
        pauses.append(round(paced.wait("apps/a", V, "i"), 3))
        now[0] += pauses[-1]
        paced.started("apps/a", V, "i")
    assert pauses[:FREE] == [0.0] * FREE
    assert pauses[FREE + 1 :] == sorted(pauses[FREE + 1 :])
    assert pauses[-1] == LONGEST_PAUSE
    assert paced.wait("apps/b", V, "i") == 0.0


def test_a_change_and_a_new_life_of_the_node_are_started_at_once_but_no_epoch_of_our_own() -> None:
    paced, now = pace()
    for _ in range(10):
        paced.started("apps/a", V, "i")
    assert paced.wait("apps/a", V, "i") > 0
    assert paced.wait("apps/a", W, "i") == 0.0
    assert paced.wait("apps/a", V, "another") == 0.0
    paced.renewed("apps/a", W)
    assert paced.wait("apps/a", W, "i") > 0
    now[0] += LONGEST_PAUSE
    assert paced.wait("apps/a", W, "i") == 0.0
    now[0] += KEPT_SECONDS
    paced.started("apps/a", W, "i")
    assert paced.wait("apps/a", W, "i") == 0.0


def test_only_apps_started_of_late_are_remembered() -> None:
    paced, now = pace()
    for number in range(1000):
        paced.started(f"apps/a{number}", V, "i")
        now[0] += 1.0
    assert len(paced._rows) <= KEPT_SECONDS + 2

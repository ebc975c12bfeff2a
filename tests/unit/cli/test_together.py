"""Many things at the same time: their order, and what one that fails does to the others."""

import threading

import pytest

from services.cli.session import Session
from services.cli.together import WIDTH, each
from tests.eventually import WITHIN


def test_results_come_in_the_order_of_the_items_though_the_first_is_the_last() -> None:
    last = threading.Event()

    def work(item: int, _: threading.Event) -> int:
        if item == 0:
            assert last.wait(WITHIN)
        if item == 40:
            last.set()
        return item * 2

    assert each(Session(), "done", work, range(41)) == [2 * item for item in range(41)]


def test_of_those_that_fail_the_first_is_told_no_others_are_begun_and_the_rest_are_told_to_end() -> None:
    begun: list[int] = []
    told: list[int] = []
    all_at_work = threading.Barrier(WIDTH)

    def work(item: int, ended: threading.Event) -> None:
        begun.append(item)
        if item < WIDTH:
            all_at_work.wait(WITHIN)
        if item == 1:
            raise ValueError(item)
        assert ended.wait(WITHIN)
        told.append(item)

    with pytest.raises(ValueError, match="1"):
        each(Session(), "done", work, range(200))
    for thread in threading.enumerate():
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join(WITHIN)
    assert sorted(told) == [item for item in sorted(begun) if item != 1]
    assert len(begun) <= WIDTH + 1


def test_there_may_be_nothing_to_do() -> None:
    assert each(Session(), "done", lambda item, _: item, []) == []

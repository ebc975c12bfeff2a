"""The watchable map: snapshots, positions, coalescing, tombstones."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.rpc.errors import SupervisorError
from services.rpc.feed import PAGE, ChangeFeed, Entry, Mark, Signal
from tests.eventually import WITHIN


async def take(stream: AsyncIterator[Any], count: int) -> list[Any]:
    return [await asyncio.wait_for(anext(stream), WITHIN) for _ in range(count)]


async def test_a_watch_tells_snapshot_synced_changes_and_idle() -> None:
    feed: ChangeFeed[str] = ChangeFeed()
    feed.publish(1, [("a", "1")])
    feed.publish(2, [("b", "2")])
    stream = feed.watch(None, 0.01)
    assert await take(stream, 3) == [
        Entry("a", 1, "1"),
        Entry("b", 2, "2"),
        Mark(Signal.SYNCED, 2),
    ]
    feed.publish(3, [("a", None)])
    assert await take(stream, 2) == [Entry("a", 3, None), Mark(Signal.IDLE, 3)]


async def test_a_slow_reader_gets_the_newest_value_once() -> None:
    feed: ChangeFeed[int] = ChangeFeed()
    stream = feed.watch(None, 10)
    assert await take(stream, 1) == [Mark(Signal.SYNCED, 0)]
    for revision in range(1, 1001):
        feed.publish(revision, [("a", revision)])
    assert await take(stream, 1) == [Entry("a", 1000, 1000)]


async def test_resume_continues_exactly_after_a_position() -> None:
    feed: ChangeFeed[int] = ChangeFeed()
    feed.publish(1, [("a", 1), ("b", 1)])
    feed.publish(2, [("a", None)])
    stream = feed.watch(1, 10)
    assert await take(stream, 2) == [Entry("a", 2, None), Mark(Signal.SYNCED, 2)]


async def test_a_position_behind_the_tombstones_or_ahead_of_the_log_is_refused() -> None:
    feed: ChangeFeed[int] = ChangeFeed(tombstones=1)
    feed.publish(1, [("a", 1), ("b", 1)])
    feed.publish(2, [("a", None)])
    feed.publish(3, [("b", None)])
    for position in (1, 99):
        with pytest.raises(SupervisorError) as caught:
            await take(feed.watch(position, 10), 1)
        assert caught.value.reason == "RESUME_TOKEN_EXPIRED"
    assert await take(feed.watch(2, 10), 1) == [Entry("b", 3, None)]


async def test_a_recreated_key_leaves_no_tombstone_behind() -> None:
    feed: ChangeFeed[int] = ChangeFeed(tombstones=1)
    for revision in range(1, 20):
        feed.publish(revision, [("a", None if revision % 2 else revision)])
    assert [entry.revision for entry in feed.since(17)] == [19]
    assert len(feed._order) == 1


async def test_a_deletion_that_is_forgotten_while_a_reader_looks_is_not_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    feed: ChangeFeed[int] = ChangeFeed(tombstones=1)
    feed.publish(1, [("a", 1), ("b", 1)])
    stream = feed.watch(None, 0.01)
    await take(stream, 3)
    since = feed.since

    def late(revision: int) -> list[Entry[int]]:
        feed.publish(2, [("a", None)])  # by the writer's thread, just before the page is taken
        feed.publish(3, [("b", None)])
        return since(revision)

    monkeypatch.setattr(feed, "since", late)
    with pytest.raises(SupervisorError) as caught:
        await take(stream, 1)
    assert caught.value.reason == "RESUME_TOKEN_EXPIRED"


@pytest.mark.parametrize("position", [None, 0])
async def test_a_reader_that_passes_over_everything_leaves_the_loop_to_others(position: int | None) -> None:
    feed: ChangeFeed[int] = ChangeFeed()
    for number in range(10 * PAGE):
        feed.publish(number + 1, [(f"{number:05}", number)])
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    async for item in feed.watch(position, 10):
        if isinstance(item, Mark):
            break
    task.cancel()
    assert turns >= 9


async def test_a_revision_without_a_change_wakes_nobody_and_moves_who_reads_on() -> None:
    feed: ChangeFeed[int] = ChangeFeed()
    waiter = asyncio.create_task(feed.wait(0, WITHIN))
    await asyncio.sleep(0)
    feed.advance(7)
    await asyncio.sleep(0)
    assert (feed.revision, waiter.done()) == (7, False)
    assert await take(feed.watch(0, 0.01), 2) == [Mark(Signal.SYNCED, 0), Mark(Signal.IDLE, 7)]
    feed.publish(8, [("a", 1)])
    assert await waiter


async def test_who_waits_no_longer_leaves_nothing_behind_and_keeps_no_other_from_hearing() -> None:
    feed: ChangeFeed[int] = ChangeFeed()
    gave_up, stays = (asyncio.create_task(feed.wait(0, WITHIN)) for _ in range(2))
    assert not await feed.wait(0, 0.0)
    gave_up.cancel()
    await asyncio.wait({gave_up})
    feed.publish(1, [])
    assert await stays
    assert not feed._waiters

"""A task that was to run as long as the program is missed as soon as it has failed."""

import asyncio
import logging

import pytest

from services.rpc.background import FIRST_PAUSE, LONGEST_PAUSE, background, kept_running


async def test_a_task_that_fails_is_told_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise RuntimeError("no more")

    with caplog.at_level(logging.ERROR):
        task = background(fail(), "follow apps")
        await asyncio.wait({task})
        await asyncio.sleep(0)
    (record,) = caplog.records
    assert "follow apps" in record.getMessage()
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "no more"


async def test_a_task_that_is_ended_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def wait() -> None:
        await asyncio.Event().wait()

    task = background(wait(), "follow apps")
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    await asyncio.sleep(0)
    assert caplog.records == []


async def test_what_has_failed_begins_again_after_pauses_that_grow_to_a_bound(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries, pauses = 0, list[float]()

    async def fail() -> None:
        nonlocal tries
        tries += 1
        if tries < 12:
            raise RuntimeError("not yet")

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    with caplog.at_level(logging.ERROR):
        await kept_running(fail, "follow apps", sleep)
    assert (tries, len(caplog.records)) == (12, 11)
    assert (pauses[0], pauses[1], pauses[-1]) == (FIRST_PAUSE, 2 * FIRST_PAUSE, LONGEST_PAUSE)


async def test_what_is_kept_running_is_ended_like_any_task() -> None:
    async def wait() -> None:
        await asyncio.Event().wait()

    task = kept_running(wait, "follow apps")
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()

"""A task that was to run as long as the program is missed as soon as it has failed."""

import asyncio
import logging

import pytest

from services.rpc.background import background


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

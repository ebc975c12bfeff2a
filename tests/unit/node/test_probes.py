"""What one probe makes of an app's answer."""

import asyncio
from typing import Any

import pytest

from runtime_node.instances.probes import ask
from runtime_node.watchdog.interruption import RequestInterrupted


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (ValueError(), "it raised ValueError"),
        (asyncio.CancelledError(), "it raised CancelledError"),
        (BaseExceptionGroup("", [GeneratorExit()]), "it raised BaseExceptionGroup"),
        (RequestInterrupted(), "it blocked its event loop"),
        (BaseExceptionGroup("", [RequestInterrupted()]), "it blocked its event loop"),
    ],
)
async def test_whatever_an_app_raises_is_its_answer(fault: BaseException, told: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise fault

    assert await ask(app, "/", "a.localhost", 5) == told


async def test_an_app_that_does_not_answer_in_time_is_told_so() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    assert await ask(app, "/", "a.localhost", 0.01) == "no answer within 0.01 s"


async def test_a_probe_that_is_given_up_ends() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    probe = asyncio.ensure_future(ask(app, "/", "a.localhost", 5))
    await asyncio.sleep(0)
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe

"""An exception handler that an app sets on the loop it shares hears of that app's failures alone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvloop

from runtime_node.isolation import keep_handlers_apart, running_as
from runtime_node.isolation.undo_log import undo

ME = "apps/me/instances/1"
OTHER = "apps/other/instances/1"


async def fail(why: str) -> None:
    raise ValueError(why)


def raise_in_callback(why: str) -> None:
    raise ValueError(why)


async def provoke(instance: str, why: str) -> None:
    """Let a task fail that nobody asks for its outcome, and a callback."""
    loop = asyncio.get_running_loop()
    with running_as(instance):
        task = asyncio.create_task(fail(f"{why} in a task"))
        loop.call_soon(raise_in_callback, f"{why} in a callback")
    await asyncio.wait({task})
    # Freed here, in nobody's code.
    del task
    await asyncio.sleep(0)


def test_each_app_hears_of_its_own_failures() -> None:
    mine: list[str] = []
    others: list[str] = []

    async def test() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: others.append(str(context["exception"])))
        keep_handlers_apart(loop)
        with running_as(ME):
            loop.set_exception_handler(lambda _, context: mine.append(str(context["exception"])))
        await provoke(ME, "mine")
        await provoke(OTHER, "a neighbour's")
        undo(ME)
        await provoke(ME, "late")

    uvloop.run(test())
    assert sorted(mine) == ["mine in a callback", "mine in a task"]
    assert sorted(others) == [
        "a neighbour's in a callback", "a neighbour's in a task", "late in a callback", "late in a task",
    ]  # fmt: skip


async def test_an_app_may_look_at_its_handler_and_take_it_back() -> None:
    loop = asyncio.new_event_loop()
    keep_handlers_apart(loop)

    def handler(loop: Any, context: Any) -> None: ...

    with running_as(ME):
        loop.set_exception_handler(handler)
        assert loop.get_exception_handler() is handler
        with pytest.raises(TypeError):
            loop.set_exception_handler("no handler")  # type: ignore[arg-type]
    assert loop.get_exception_handler() is None
    with running_as(ME):
        loop.set_exception_handler(None)
        assert loop.get_exception_handler() is None
    undo(ME)
    loop.close()

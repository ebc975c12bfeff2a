"""What an app sets on the loop it shares holds for its own tasks and failures alone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvloop

from runtime_node.isolation import keep_settings_apart, running_as
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
        keep_settings_apart(loop)
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
    keep_settings_apart(loop)

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


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_task_factory_that_an_app_sets_makes_its_own_tasks(run: Any) -> None:
    class Mine(asyncio.Task[Any]):
        pass

    async def kind_of_task() -> type:
        return type(asyncio.create_task(asyncio.sleep(0)))

    async def test() -> None:
        loop = asyncio.get_running_loop()
        keep_settings_apart(loop)

        def make(loop: Any, coro: Any, **kwargs: Any) -> Any:
            return Mine(coro, loop=loop, **kwargs)

        with running_as(ME):
            loop.set_task_factory(make)
            assert loop.get_task_factory() is make
            assert await kind_of_task() is Mine
        with running_as(OTHER):
            assert loop.get_task_factory() is None
            assert await kind_of_task() is asyncio.Task
        assert await kind_of_task() is asyncio.Task
        undo(ME)
        await asyncio.sleep(0)
        with running_as(ME):
            assert await kind_of_task() is asyncio.Task
        assert loop.get_task_factory() is None

    run(test())


def test_an_app_that_debugs_does_not_slow_the_loop_of_all() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        original = loop.get_debug
        keep_settings_apart(loop)
        with running_as(ME):
            loop.set_debug(True)
            assert loop.get_debug()
        assert not original()
        with running_as(OTHER):
            assert not loop.get_debug()
        undo(ME)
        with running_as(ME):
            assert not loop.get_debug()

    uvloop.run(test())


def test_a_policy_that_an_app_sets_makes_the_loops_it_asks_for(me: str, other: str) -> None:
    before = asyncio.get_event_loop_policy()
    policy = uvloop.EventLoopPolicy()
    with running_as(me):
        asyncio.set_event_loop_policy(policy)
        assert asyncio.get_event_loop_policy() is policy
        loop = asyncio.new_event_loop()
        assert isinstance(loop, uvloop.Loop)
        loop.close()
    with running_as(other):
        assert asyncio.get_event_loop_policy() is before
        loop = asyncio.new_event_loop()
        assert not isinstance(loop, uvloop.Loop)
        loop.close()
    undo(me)
    with running_as(me):
        assert asyncio.get_event_loop_policy() is before

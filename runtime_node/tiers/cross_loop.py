"""Runs a coroutine on another thread's event loop and waits for its true end, also when cancelled."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from runtime_node.loader.failures import failure, one_line
from runtime_node.watchdog.interruption import is_interruption

T = TypeVar("T")

CANCEL_PATIENCE = 5.0
"""Seconds for which a cancelled caller waits for the other side's cleanup; a blocked loop never ends it."""


async def run_on(
    loop: asyncio.AbstractEventLoop,
    work: Coroutine[Any, Any, T],
    context: contextvars.Context | None = None,
) -> T:
    """Return what `work` returns or raise what it raises, run as a task of `loop`.

    Cancelling the caller cancels the work and waits for its end, at most CANCEL_PATIENCE seconds.
    Raises RuntimeError when `loop` is closed, SupervisorError APP_BLOCKED_LOOP when it was interrupted.
    """
    home = asyncio.get_running_loop()
    if loop is home:
        return await work
    done: asyncio.Future[asyncio.Task[T]] = home.create_future()
    started: list[asyncio.Task[T]] = []

    def begin() -> None:
        task = loop.create_task(work, context=context)
        started.append(task)
        task.add_done_callback(report)

    def report(task: asyncio.Task[T]) -> None:
        try:
            home.call_soon_threadsafe(settle, task)
        except RuntimeError:
            return  # the caller's loop has closed; nobody waits

    def settle(task: asyncio.Task[T]) -> None:
        if not done.done():
            done.set_result(task)

    def cancel() -> None:
        for task in started:
            task.cancel()

    try:
        loop.call_soon_threadsafe(begin)
    except RuntimeError:
        work.close()
        raise
    try:
        await asyncio.wait({done})
    except asyncio.CancelledError:
        with suppress(RuntimeError):  # the loop has closed meanwhile, and all that ran on it has ended
            loop.call_soon_threadsafe(cancel)
        await asyncio.wait({done}, timeout=CANCEL_PATIENCE)
        if done.done() and not done.result().cancelled():
            done.result().exception()  # seen: the caller asked for none of it
        raise
    fault = None if done.result().cancelled() else done.result().exception()
    if is_interruption(fault):
        raise failure("APP_BLOCKED_LOOP", "The app blocked its event loop and was interrupted.", fault)
    if isinstance(fault, SystemExit | KeyboardInterrupt):
        # Of an app's; raised in a task here it would end the caller's loop, and with it the node.
        raise failure("APP_CRASHED", f"The app's code ended its task: {one_line(fault)}.", fault)
    return done.result().result()

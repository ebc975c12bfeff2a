"""Starts tasks that are to run as long as the program; one that fails is told at once, not at the end.

What fails once must not be missing from then on: what can begin again is kept running.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

log = logging.getLogger("appsupervisor.rpc")

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30.0
"""Seconds before what has failed begins again, doubled with each failure."""
SETTLED_SECONDS = 60.0
"""What ran for so long is well: its next failure is the first again."""


def background(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """Run `work` as a task, which the caller keeps and ends. What it raises is logged as an error."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_tell)
    return task


def kept_running(
    work: Callable[[], Coroutine[Any, Any, None]],
    name: str,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> asyncio.Task[None]:
    """Run `work` as a task until it returns, and begin it again each time that it has raised something.

    What it raises is logged as an error. It may begin in the middle of what it did before.
    """
    return background(_keep_running(work, name, sleep), name)


async def _keep_running(
    work: Callable[[], Coroutine[Any, Any, None]], name: str, sleep: Callable[[float], Awaitable[None]]
) -> None:
    clock = asyncio.get_running_loop().time
    pause = FIRST_PAUSE
    while True:
        began = clock()
        try:
            return await work()
        except Exception:
            pause = FIRST_PAUSE if clock() - began > SETTLED_SECONDS else pause
            log.exception(
                "what was to run on has failed, and begins again in %g s: %s", pause, name,
                extra={"action": "background.failed", "task": name},
            )  # fmt: skip
        await sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _tell(task: asyncio.Task[None]) -> None:
    if task.cancelled() or (fault := task.exception()) is None:
        return
    log.error(
        "what was to run on has failed: %s", task.get_name(), exc_info=fault,
        extra={"action": "background.failed", "task": task.get_name()},
    )  # fmt: skip

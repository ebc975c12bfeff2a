"""Starts tasks that are to run as long as the program; one that fails is told at once, not at the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger("appsupervisor.rpc")


def background(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """Run `work` as a task, which the caller keeps and ends. What it raises is logged as an error."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_tell)
    return task


def _tell(task: asyncio.Task[None]) -> None:
    if task.cancelled() or (fault := task.exception()) is None:
        return
    log.error(
        "what was to run on has failed: %s", task.get_name(), exc_info=fault,
        extra={"action": "background.failed", "task": task.get_name()},
    )  # fmt: skip

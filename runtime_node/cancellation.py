"""Tells a cancellation of a task from a CancelledError that its code raised by itself."""

from __future__ import annotations

import asyncio


def was_cancelled() -> bool:
    """Tell whether somebody has cancelled the running task.

    An app that awaits another, cancelled task raises CancelledError, too; that is a fault like any other.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0

"""Ends threads and finds tasks that a stopped app left, and names those that will not go."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import contextvars
import gc
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any

from runtime_node.isolation.current import CURRENT_INSTANCE
from runtime_node.isolation.frames import current_frames
from runtime_node.isolation.lasting import LastingInterruption
from runtime_node.isolation.lost_interruptions import AGAIN_SECONDS


class ThreadEndedError(SystemExit):
    """Raised in a thread whose app has stopped; ends it without a word."""


def end_threads(threads: Sequence[threading.Thread], grace: float) -> list[str]:
    """End an app's threads in at most about `grace` seconds; return a sentence for each that stays.

    Timers are cancelled, executors shut down, and the others get half of the time to notice that their app
    has stopped. Then ThreadEndedError is raised in them; it reaches Python code but no call blocked in C.
    Where it is swallowed it is raised again.
    """
    others = [thread for thread in threads if thread is not threading.current_thread()]
    for thread in others:
        _ask(thread)
    start = time.monotonic()
    _join(others, start + grace / 2)
    end_by_force([thread for thread in others if thread.is_alive()], start + grace)
    return [
        f"the thread {thread.name!r} still runs in {place_of(thread)}"
        for thread in others
        if thread.is_alive()
    ]


def end_by_force(threads: Sequence[threading.Thread], deadline: float) -> None:
    """Raise ThreadEndedError in threads that run, and again in each that swallowed it; await their ends."""
    known = [LastingInterruption(thread, ThreadEndedError) for thread in threads if thread.ident is not None]
    try:
        while True:
            for one in known:
                one.raise_if_due()
            _join(threads, min(deadline, time.monotonic() + AGAIN_SECONDS))
            if time.monotonic() >= deadline or not any(thread.is_alive() for thread in threads):
                return
    finally:
        for one in known:
            one.forget()


def tasks_of(loop: asyncio.AbstractEventLoop, instance: str) -> list[asyncio.Task[object]]:
    """Return the instance's unfinished tasks. Call it on the loop's thread.

    A task keeps the context it was made in, so nothing has to be noted when an app makes one.
    """
    return [task for task in asyncio.all_tasks(loop) if instance_of(task) == instance]


def instance_of(task: asyncio.Future[Any]) -> str:
    """Return the instance that made a task, or ""; of a future that is no task nobody can tell."""
    for part in gc.get_referents(task):
        if isinstance(part, contextvars.Context):
            return part.get(CURRENT_INSTANCE, "")
    return ""


def _ask(thread: threading.Thread) -> None:
    if isinstance(thread, threading.Timer):
        thread.cancel()
    if getattr(thread, "_target", None) is concurrent.futures.thread._worker:
        executor = getattr(thread, "_args", (lambda: None,))[0]()
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=True)


def _join(threads: Sequence[threading.Thread], deadline: float) -> None:
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def place_of(thread: threading.Thread) -> str:
    """Return where a thread is now, `function (file:line)`, or "" if it has ended."""
    frame = current_frames().get(thread.ident or 0)
    if frame is None:
        return ""
    innermost = traceback.extract_stack(frame, limit=None)[-1]
    return f"{innermost.name} ({innermost.filename}:{innermost.lineno})"

"""Whose code held the interpreter's lock: that of the step that did, never that of the one after it."""

import asyncio
import contextvars
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from runtime_node.isolation.current import CURRENT_INSTANCE
from runtime_node.isolation.frames import current_frames
from runtime_node.watchdog import gil_holds
from runtime_node.watchdog.gil_holds import HoldWatch
from runtime_node.watchdog.loops import WatchedLoop

HOG, NEIGHBOUR = "apps/hog/instances/a", "apps/shop/instances/a"


def hold(inside: threading.Event, over: threading.Event) -> None:
    inside.set()
    over.wait(60)


@contextmanager
def holding() -> Iterator[threading.Thread]:
    """Give a thread that stands in `hold`."""
    inside, over = threading.Event(), threading.Event()
    thread = threading.Thread(target=hold, args=(inside, over))
    thread.start()
    try:
        assert inside.wait(60)
        yield thread
    finally:
        over.set()
        thread.join()


def task_of(loop: asyncio.AbstractEventLoop, instance: str) -> asyncio.Task[Any]:
    context = contextvars.copy_context()
    context.run(CURRENT_INSTANCE.set, instance)
    return loop.create_task(asyncio.sleep(0), context=context)


@pytest.mark.parametrize(
    ("goes_on", "blamed"), [("never", HOG), ("while the stacks are read", HOG), ("at the look", "")]
)
def test_the_step_after_a_hold_is_not_blamed_for_it(
    goes_on: str, blamed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.new_event_loop()
    try:
        hog, neighbour = task_of(loop, HOG), task_of(loop, NEIGHBOUR)
        running = [hog]
        monkeypatch.setattr(gil_holds, "current_task", lambda of: running[0])

        def frames() -> Any:
            if goes_on == "at the look":
                running[0] = neighbour
            return current_frames()

        def reports() -> list[tuple[int, str]]:
            if goes_on == "while the stacks are read":
                running[0] = neighbour
            # Innermost is what the frame of the thread, or one above it, is in.
            return [(thread.native_id or 0, f'  File "{__file__}", line 1 in hold')]

        monkeypatch.setattr(gil_holds, "current_frames", frames)
        watch = HoldWatch()
        monkeypatch.setattr(watch, "_shared", bytearray(64))
        monkeypatch.setattr(watch, "_reports", reports)
        with holding() as thread:
            watched = WatchedLoop(loop, "", thread=thread.ident or 0, native=thread.native_id or 0)
            held = watch.look(1.5, {watched.native: watched})
        assert held is not None
        assert held.instance == blamed
        loop.run_until_complete(asyncio.gather(hog, neighbour))
    finally:
        loop.close()

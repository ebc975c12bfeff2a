"""Makes the common ways to wait interruptible where they block an event loop.

`time.sleep` and the waits of `threading` are single calls of C code, which an interruption cannot end. On
a thread that runs an event loop they wait in slices instead; everywhere else they are what they were.
"""

from __future__ import annotations

import contextlib
import threading
import time
from asyncio import _get_running_loop
from typing import Any

SLICE = 0.02
"""Seconds after which a wait looks for an interruption."""

_lock = threading.Lock()
_installed = False


def install() -> None:
    """Put the waits in place, once per process and before any app is loaded; repeats do nothing."""
    global _installed  # noqa: PLW0603 - the patch is the process's
    with _lock:
        if _installed:
            return
        _installed = True
    _slice_sleep()
    _slice_condition()
    _slice_join()


def _slice_sleep() -> None:
    original = time.sleep

    def sleep(seconds: Any, /) -> None:
        if _get_running_loop() is None or not seconds > SLICE:
            original(seconds)
            return
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            original(min(left, SLICE))

    sleep.__doc__ = original.__doc__
    time.sleep = sleep


def _slice_condition() -> None:
    # Events, queues, futures and starting threads wait by conditions too. One waiter serves all slices: a
    # wait that timed out takes a notification with it that comes before it has the condition's lock again.
    original = threading.Condition.wait

    def wait(self: Any, timeout: float | None = None) -> bool:
        if _get_running_loop() is None or (timeout is not None and timeout <= SLICE):
            return bool(original(self, timeout))
        if not self._is_owned():
            raise RuntimeError("cannot wait on un-acquired lock")
        deadline = None if timeout is None else time.monotonic() + timeout
        waiter = threading.Lock()
        waiter.acquire()
        self._waiters.append(waiter)
        saved = self._release_save()
        notified = False
        try:
            while not notified:
                left = SLICE if deadline is None else min(SLICE, deadline - time.monotonic())
                if left <= 0:
                    break
                notified = waiter.acquire(timeout=left)
        finally:
            self._acquire_restore(saved)
            if not notified:
                with contextlib.suppress(ValueError):
                    self._waiters.remove(waiter)
        return notified

    wait.__doc__ = original.__doc__
    threading.Condition.wait = wait  # type: ignore[method-assign]


def _slice_join() -> None:
    original = threading.Thread.join

    def join(self: threading.Thread, timeout: float | None = None) -> None:
        if _get_running_loop() is None or (timeout is not None and timeout <= SLICE):
            original(self, timeout)
            return
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = SLICE if deadline is None else min(SLICE, deadline - time.monotonic())
            original(self, max(left, 0.0))
            if not self.is_alive() or left <= 0:
                return

    join.__doc__ = original.__doc__
    threading.Thread.join = join  # type: ignore[method-assign]

"""Lets a thread that an app starts count as the app's: its instance runs in it, and ends it at its stop."""

from __future__ import annotations

import contextlib
import threading

from runtime_node.isolation.current import CURRENT_INSTANCE, acting_instance
from runtime_node.isolation.endings import ThreadEndedError
from runtime_node.isolation.pool import PoolThread
from runtime_node.isolation.undo_log import undo_log_of


def install() -> None:
    """Watch every start of a thread."""
    original = threading.Thread.start

    def start(self: threading.Thread) -> None:
        if (
            not CURRENT_INSTANCE.get()
            or isinstance(self, PoolThread)
            or type(self).__module__.startswith("anyio.")
        ):
            original(self)
            return
        instance = acting_instance()
        if instance:
            undo_log_of(instance).record_thread(self)
            _run_as(self, instance)
        original(self)

    threading.Thread.start = start  # type: ignore[method-assign]


def _run_as(thread: threading.Thread, instance: str) -> None:
    run = thread.run

    def run_as_instance() -> None:
        CURRENT_INSTANCE.set(instance)
        try:
            with contextlib.suppress(ThreadEndedError):
                run()
        finally:
            # The thread would hold itself through this closure.
            thread.__dict__.pop("run", None)

    thread.run = run_as_instance  # type: ignore[method-assign]

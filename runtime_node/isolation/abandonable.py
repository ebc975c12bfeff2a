"""Runs one blocking call of an app's code in a thread of its own, so that a stuck one holds up nobody."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from runtime_node.isolation.endings import interrupt
from runtime_node.isolation.pool import PoolThread

T = TypeVar("T")


class AbandonedError(BaseException):
    """Raised inside a call that nobody waits for any more; no `except Exception` swallows it."""


async def run_abandonable(call: Callable[[], T], *, name: str) -> T:
    """Return what `call` returns, run in a new daemon thread with a copy of the caller's context.

    When cancelled, the call is interrupted at its next bytecode (a call blocked in C goes on until it
    returns) and whatever it returns is dropped.
    """
    call_apart = _Call(call, asyncio.get_running_loop())
    thread = PoolThread(target=call_apart.work, name=name, daemon=True)
    thread.start()
    try:
        return await call_apart.done
    except asyncio.CancelledError:
        call_apart.abandon(thread)
        raise


class _Call(Generic[T]):
    def __init__(self, call: Callable[[], T], loop: asyncio.AbstractEventLoop) -> None:
        self.done: asyncio.Future[T] = loop.create_future()
        self._call: Callable[[], T] | None = call
        self._loop = loop
        self._context = contextvars.copy_context()
        # Guards the window between the call's end and its interruption, which must hit the call alone.
        self._lock = threading.Lock()
        self._running = True
        self._abandoned = False

    def work(self) -> None:
        with contextlib.suppress(AbandonedError):
            result: Any = None
            fault: BaseException | None = None
            try:
                assert self._call is not None
                result = self._context.run(self._call)
            except BaseException as raised:  # noqa: BLE001 - belongs to whoever waits
                fault = raised
            with self._lock:
                self._running = False
            self._call = None
            if not self._abandoned:
                # A closed loop has nobody left who waits.
                with contextlib.suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._settle, result, fault)

    def abandon(self, thread: threading.Thread) -> None:
        """Interrupt the call if it still runs."""
        self._abandoned = True
        with self._lock:
            if self._running and thread.ident is not None:
                interrupt(thread.ident, AbandonedError)

    def _settle(self, result: Any, fault: BaseException | None) -> None:
        if self.done.done():
            return
        if isinstance(fault, StopIteration):
            # A future cannot carry StopIteration.
            fault = RuntimeError(f"the call raised {fault!r}")
        if fault is None:
            self.done.set_result(result)
        else:
            self.done.set_exception(fault)

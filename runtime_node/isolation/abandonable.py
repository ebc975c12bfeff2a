"""Runs one blocking call of an app's code in a thread of its own, so that a stuck one holds up nobody."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from runtime_node.isolation.lasting import LastingInterruption
from runtime_node.isolation.lost_interruptions import AGAIN_SECONDS
from runtime_node.isolation.pool import PoolThread
from runtime_node.raised import message_of, type_name

T = TypeVar("T")

LOOKS = 100
"""At a call that was abandoned, whether it has ended; those that get lost are told beside."""
LONGEST_PAUSE = 30.0
"""Seconds between two looks; each pause is twice the one before."""


class AbandonedError(BaseException):
    """Raised inside a call that nobody waits for any more; no `except Exception` swallows it."""


async def run_abandonable(call: Callable[[], T], *, name: str) -> T:
    """Return what `call` returns, run in a new daemon thread with a copy of the caller's context.

    When cancelled, the call is interrupted at its next bytecode (a call blocked in C goes on until it
    returns) and whatever it returns is dropped. Where that is swallowed it is interrupted again.
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
        self._interruption: LastingInterruption | None = None

    def work(self) -> None:
        try:
            self._work()
        finally:
            self._running = False  # an interruption may have come right before that was said
            if self._interruption is not None:
                self._interruption.forget()

    def _work(self) -> None:
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
        """Interrupt the call if it still runs, until it has ended."""
        self._abandoned = True
        if thread.ident is not None:
            self._interruption = LastingInterruption(thread, AbandonedError, self._swallowed)
            self._watch(AGAIN_SECONDS, LOOKS)

    def _watch(self, pause: float, looks: int) -> None:
        if self._interrupt() and looks:
            self._loop.call_later(pause, self._watch, min(2 * pause, LONGEST_PAUSE), looks - 1)

    def _interrupt(self) -> bool:
        """Interrupt the call if that is due; tell whether it runs."""
        with self._lock:
            if self._running and self._interruption is not None:
                self._interruption.raise_if_due()
            return self._running

    def _swallowed(self) -> None:
        """Have the call interrupted again at once; called by its very thread."""
        # A closed loop has nobody left who minds that the call goes on.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._interrupt)

    def _settle(self, result: Any, fault: BaseException | None) -> None:
        if self.done.done():
            return
        if isinstance(fault, StopIteration | GeneratorExit | SystemExit | KeyboardInterrupt):
            # A future cannot carry the first; who awaits would take the others for an end of its own.
            fault = RuntimeError(f"the call raised {type_name(fault)}: {message_of(fault)}")
        if fault is None:
            self.done.set_result(result)
        else:
            self.done.set_exception(fault)

"""An event loop whose time passes only while there is nothing to do: minutes of timers take milliseconds.

Work on other threads (a store's writer) is waited for in real time, for it ends in no time of the loop's.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

REAL_SECONDS = 30.0
"""How long work on another thread may take before a test is given up."""


class _Selector(selectors.DefaultSelector):
    """Lets the loop's time pass instead of waiting, unless something is under way on another thread."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.elsewhere = 0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is not None and timeout <= 0:
            return super().select(0)
        if self.elsewhere or timeout is None:
            ready = super().select(REAL_SECONDS)
            if not ready:
                raise AssertionError("everything waits for something that never comes")
            return ready
        ready = super().select(0)
        if not ready:
            self.now += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Its `time` is virtual; `elsewhere` counts what is under way on other threads."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Return the virtual time, seconds."""
        return self._virtual.now

    def elsewhere(self, future: Future[Any]) -> Future[Any]:
        """Let no time pass until a concurrent future is done; return one that is done with it."""
        self._virtual.elsewhere += 1
        told: Future[Any] = Future()

        def done(_: Future[Any]) -> None:
            # Whoever waits is told before time may pass again.
            if told.set_running_or_notify_cancel():
                if (failure := future.exception()) is not None:
                    told.set_exception(failure)
                else:
                    told.set_result(future.result())
            self.call_soon_threadsafe(self._is_here)

        future.add_done_callback(done)
        return told

    def _is_here(self) -> None:
        self._virtual.elsewhere -= 1

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """As any loop does, and no time passes meanwhile."""
        self._virtual.elsewhere += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(lambda _: self._is_here())
        return future


class VirtualClock:
    """A store's clock, microseconds, that goes with one loop's virtual time after another's."""

    def __init__(self) -> None:
        self._before = 1_700_000_000_000_000
        self._loop: VirtualTimeLoop | None = None

    def __call__(self) -> int:
        """Return the time. From any thread."""
        return self._before + (int(self._loop.time() * 1e6) if self._loop is not None else 0)

    def follow(self, loop: VirtualTimeLoop) -> None:
        """Go with another loop from now on."""
        self._before, self._loop = self() - int(loop.time() * 1e6), loop


def run_in_virtual_time(main: Coroutine[Any, Any, T], clock: VirtualClock | None = None) -> T:
    """Run a coroutine to its end in virtual time, which `clock` goes with."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        if clock is not None:
            loop = runner.get_loop()
            assert isinstance(loop, VirtualTimeLoop)
            clock.follow(loop)
        return runner.run(main)

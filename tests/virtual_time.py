"""An event loop whose time passes only while there is nothing to do: minutes of timers take milliseconds.

Everything happens in one order: what would be handed to another thread is done at once instead.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

REAL_SECONDS = 30.0
"""How long work on another thread may take before a test is given up."""


class _Selector(selectors.DefaultSelector):
    """Lets the loop's time pass instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if timeout is None:
            raise AssertionError("everything waits for something that never comes")
        self.now += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Its `time` is virtual."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Return the virtual time, seconds."""
        return self._virtual.now

    def stand_still(self, seconds: float) -> None:
        """Let time pass in which nothing is done, as where other programs have the processor."""
        self._virtual.now += seconds

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Do it here and now."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
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

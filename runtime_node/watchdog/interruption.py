"""The exception that breaks off code that blocks an event loop, and how it gets into the loop's thread.

Knows threads and tasks; who is to be interrupted, and when, is the watchdog's to decide.
"""

from __future__ import annotations

import asyncio
import ctypes
import operator
import sys
import time
from collections.abc import Callable
from itertools import compress, starmap
from typing import Any

from runtime_node.isolation.current import CURRENT_INSTANCE


class RequestInterrupted(BaseException):
    """Raised inside code that blocks its event loop; a request is answered 504 `APP_BLOCKED_LOOP`.

    Not an Exception, so that an app's `except Exception` does not swallow it.
    """


def is_interruption(fault: BaseException | None) -> bool:
    """Tell whether an exception, or a group as task groups raise it, came of an interruption."""
    if isinstance(fault, BaseExceptionGroup):
        return fault.subgroup(RequestInterrupted) is not None
    return isinstance(fault, RequestInterrupted)


def interruption_point() -> None:
    """Let an interruption that is still on its way arrive here: entering a function looks for one."""


_library = ctypes.PyDLL(None)
# Two objects of one function: the setting of an exception and its taking back have different arguments.
_raise_in = _library["PyThreadState_SetAsyncExc"]
_raise_in.argtypes = (ctypes.c_ulong, ctypes.py_object)
_raise_in.restype = ctypes.c_int
_take_back = _library["PyThreadState_SetAsyncExc"]
_take_back.argtypes = (ctypes.c_ulong, ctypes.c_void_p)
_take_back.restype = ctypes.c_int

current_task: Callable[[asyncio.AbstractEventLoop], asyncio.Task[Any] | None] = (
    asyncio.current_task if sys.version_info >= (3, 14) else asyncio.tasks._current_tasks.get  # type: ignore[attr-defined]
)
"""The task whose step a loop runs now. Unlike `asyncio.current_task` of 3.11 it runs no bytecode."""


class Interruption:
    """One exception on its way into a thread."""

    __slots__ = ("instance", "kind", "landed", "sent", "thread")

    def __init__(self, thread: int, seconds: float) -> None:
        interruption = self
        self.thread = thread
        self.sent = time.monotonic()
        self.landed: float | None = None
        """Monotonic time at which it was raised in the code; None while it is under way."""
        self.instance = ""
        """The instance whose code it was raised in."""

        def begin(fault: RequestInterrupted) -> None:
            # The interpreter makes the exception in the interrupted thread and context.
            BaseException.__init__(fault, f"it blocked its event loop for {seconds:.2f} s")
            interruption.landed = time.monotonic()
            interruption.instance = CURRENT_INSTANCE.get()

        self.kind: type[RequestInterrupted] = type(
            "RequestInterrupted", (RequestInterrupted,), {"__init__": begin, "__module__": __name__}
        )

    def send_into(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> bool:
        """Raise it in a step of `task`; tell whether the loop was in one.

        The look at the current task and the raising are one call of C code: no other thread runs between.
        """
        running = map(operator.is_, map(current_task, (loop,)), (task,))
        return next(starmap(_raise_in, compress(((self.thread, self.kind),), running)), 0) == 1

    def send(self) -> bool:
        """Raise it in whatever the thread runs; tell whether there is such a thread."""
        return bool(_raise_in(self.thread, self.kind) == 1)

    def take_back(self) -> None:
        """Drop it if it has not landed. The code that it was meant for has ended by itself."""
        if self.landed is None:
            _take_back(self.thread, None)

"""An exception that is raised in a thread, and again where it was swallowed, until what runs there ends."""

from __future__ import annotations

import ctypes
import operator
import threading
import time
from collections.abc import Callable
from itertools import compress, starmap

from runtime_node.isolation import lost_interruptions

SWALLOWED_SECONDS = 1.0
"""What runs on for so long with the exception raised in it has swallowed it: to clean up takes less."""

# Of our own: an app may set another one's arguments.
_raise_in = ctypes.PyDLL(None)["PyThreadState_SetAsyncExc"]
_raise_in.argtypes = (ctypes.c_ulong, ctypes.py_object)
_raise_in.restype = ctypes.c_int


class LastingInterruption:
    """One exception on its way into one thread. Whoever waits for the end calls `raise_if_due` meanwhile.

    The interpreter lets nothing leave a callback of a weak reference, of the collector or of `__del__`, which
    it tells at once; and in such a callback, as anywhere, there may be code that takes every exception.
    """

    def __init__(
        self,
        thread: threading.Thread,
        fault: type[BaseException],
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        """`thread` has been started. `lost` is called by that very thread where the interpreter drops it."""
        lasting = self
        self._thread = thread
        self._lost = lost
        self._due = True
        self._landed: float | None = None

        def land(raised: BaseException) -> None:
            fault.__init__(raised)
            lasting._landed = time.monotonic()

        self._kind = type(fault.__name__, (fault,), {"__init__": land, "__module__": fault.__module__})

    def raise_if_due(self) -> None:
        """Raise it if that has not been done, or if it was swallowed; nothing in a thread that has ended."""
        ident = self._thread.ident or 0
        if self._landed is not None and time.monotonic() >= self._landed + SWALLOWED_SECONDS:
            self._due = True
        # Raised in the hook it would get lost again.
        if not self._due or lost_interruptions.is_telling(ident):
            return
        self._due, self._landed = False, None
        lost_interruptions.expect(ident, self._kind, self._got_lost)
        # The look whether the thread has ended and the raising are one call of C code: no other thread runs
        # between, nor begins under the same ident.
        there = map(operator.is_, map(threading._active.get, (ident,)), (self._thread,))  # type: ignore[attr-defined]
        next(starmap(_raise_in, compress(((ident, self._kind),), there)), 0)

    def forget(self) -> None:
        """Leave the thread alone."""
        lost_interruptions.forget(self._thread.ident or 0)

    def _got_lost(self) -> None:
        self._due = True
        self._lost()

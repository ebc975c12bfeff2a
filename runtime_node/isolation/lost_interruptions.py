"""Hears of interruptions of threads that got lost: raised in a callback of a weak reference, of the collector
or of `__del__`, which the interpreter lets nothing leave. Who interrupts says whom that concerns.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

from runtime_node.isolation.frames import current_frames

AGAIN_SECONDS = 0.01
"""Before one that got lost is repeated, or a thread looked at again that just tells of one."""

_CONCERNED: dict[int, tuple[type[BaseException], Callable[[], None]]] = {}
"""By thread id: what it is interrupted by, and who is told if that gets lost."""


def expect(thread: int, fault: type[BaseException], told: Callable[[], None]) -> None:
    """Have `told` called, by that very thread, each time that `fault` gets lost there; until `forget`."""
    _CONCERNED[thread] = fault, told


def forget(thread: int) -> None:
    """Tell nobody any more: the thread has ended, or is left alone."""
    _CONCERNED.pop(thread, None)


def is_telling(thread: int) -> bool:
    """Tell whether a thread is in the hook: one raised there would get lost, untold."""
    frame = current_frames().get(thread)
    while frame is not None and frame.f_code is not _tell.__code__:
        frame = frame.f_back
    return frame is not None


def _tell(lost: Any) -> None:
    fault, told = _CONCERNED.get(threading.get_ident(), (None, None))
    if told is None or lost.exc_type is not fault:
        _hook_before(lost)
    else:
        told()


def install() -> None:
    """Hear of what gets lost; repeats do nothing."""
    global _hook_before
    if sys.unraisablehook is not _tell:
        _hook_before, sys.unraisablehook = sys.unraisablehook, _tell


_hook_before = sys.unraisablehook

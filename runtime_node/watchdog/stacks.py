"""Whose code runs in a task or a thread, and where it stands. Reads frames; changes nothing."""

from __future__ import annotations

import asyncio
import gc
import threading
import traceback
from contextvars import Context
from types import CodeType, FrameType
from typing import Any

from runtime_node.isolation.contain import ContainedApp
from runtime_node.isolation.current import CURRENT_INSTANCE
from runtime_node.isolation.pool import PoolThread

MAX_FRAMES = 60
_OURS = frozenset({"runtime_node", "services", "asyncio", "uvicorn", "websockets", "logging", "threading"})
_EDGE = ContainedApp.__call__.__code__
_START = threading.Thread.start.__code__
_WAIT_DEPTH = 4
"""Frames from a lock's wait up to `Thread.start`."""


def instance_of_task(task: asyncio.Task[Any]) -> str:
    """Return the instance whose code a task runs, by the context it was made with; "" for the node's own."""
    for part in gc.get_referents(task):
        if isinstance(part, Context):
            return part.get(CURRENT_INSTANCE, "")
    return ""


def instance_of_thread(thread: Any, frame: FrameType | None) -> str:
    """Return the instance whose synchronous code a worker thread runs, or ""."""
    if isinstance(thread, PoolThread) and thread.name.endswith("-worker"):
        return thread.name.removesuffix("-worker")
    while frame is not None:
        # anyio's workers and the threads that build apps run each call in its caller's context.
        context: Any = None
        if "context" in frame.f_code.co_varnames:
            context = frame.f_locals.get("context")
        elif frame.f_code.co_name == "work":
            context = getattr(frame.f_locals.get("self"), "_context", None)
        if isinstance(context, Context):
            return context.get(CURRENT_INSTANCE, "")
        frame = frame.f_back
    return ""


def outermost(frame: FrameType | None, runner: CodeType | None) -> FrameType | None:
    """Return the frame that the loop itself called, or None when the loop is between two calls."""
    if frame is None or frame.f_code is runner:
        return None
    while frame.f_back is not None and frame.f_back.f_code is not runner:
        frame = frame.f_back
    return frame


def awaits_thread(frame: FrameType | None) -> bool:
    """Tell whether code, by its innermost frame, waits for a thread that it has just started to run."""
    for _ in range(_WAIT_DEPTH):
        if frame is None:
            return False
        if frame.f_code is _START:
            return True
        frame = frame.f_back
    return False


def is_foreign(frame: FrameType) -> bool:
    """Tell whether a frame is of code that is not the node's or its servers' own."""
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] not in _OURS


def summary(frame: FrameType | None) -> traceback.StackSummary:
    """Note where a thread stands, without reading source files: quick, format it later."""
    walk: list[tuple[FrameType, int]] = []
    while frame is not None and len(walk) < MAX_FRAMES and frame.f_code is not _EDGE:
        walk.append((frame, frame.f_lineno))
        frame = frame.f_back
    return traceback.StackSummary.extract(reversed(walk), lookup_lines=False)


def text(stack: traceback.StackSummary) -> str:
    """Return a noted stack as text, innermost call last."""
    return "".join(stack.format())

"""Finds out whether a stopped app is really gone, and if not, who holds it.

The walk from the app to its holder is bounded: each step looks at the whole heap.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import math
import threading
import time
import types
import weakref
from collections.abc import Iterable
from typing import Any

_MOST_STEPS = 12
_MOST_BRANCHES = 200
_MOST_HOLDERS = 3
_CACHE = type(functools.lru_cache(maxsize=1)(lambda: None))


class Canary:
    """A weak reference to something of an app that must die with it, and what it is called."""

    def __init__(self, what: str, target: Any) -> None:
        self.what = what
        try:
            self._reference: weakref.ref[Any] | None = weakref.ref(target)
        except TypeError:
            self._reference = None

    @property
    def is_alive(self) -> bool:
        """Whether it has not died."""
        return self._reference is not None and self._reference() is not None

    def target(self) -> Any:
        """Return the thing itself while it lives."""
        return self._reference() if self._reference is not None else None

    def describe(self, seconds: float = math.inf) -> list[str]:
        """Return a sentence for each holder that was found; empty if it is dead or only in cycles."""
        target = self.target()
        if target is None:
            return []
        holders = find_holders(target, seconds)
        return [f"{self.what} is still in memory: {holder} holds it" for holder in holders]


def find_holders(target: Any, seconds: float = math.inf) -> list[str]:
    """Walk from `target` to what holds it and return the names of at most three holders.

    Gives up after `seconds` on a CPU: each step looks at the whole heap, and stops all threads meanwhile.
    """
    # What is frozen is not searched.
    frozen = gc.get_freeze_count() > 0
    if frozen:
        gc.unfreeze()
    try:
        return _walk(target, seconds)
    finally:
        if frozen:
            gc.freeze()


def _walk(target: Any, seconds: float) -> list[str]:
    start = time.thread_time()
    holders: list[str] = []
    seen: set[int] = {id(target)}
    level: list[Any] = [target]
    for _ in range(_MOST_STEPS):
        referrers = gc.get_referrers(*level)
        own = {id(referrers), id(level), id(seen), id(holders)}
        following: list[Any] = []
        for referrer in referrers:
            if id(referrer) in own or id(referrer) in seen or _is_own_frame(referrer):
                continue
            seen.add(id(referrer))
            name = _name(referrer, level)
            if name is None:
                following.append(referrer)
            elif name not in holders:
                holders.append(name)
        referrers.clear()
        level = following[:_MOST_BRANCHES]
        if not level or len(holders) >= _MOST_HOLDERS or time.thread_time() - start > seconds:
            break
    return holders[:_MOST_HOLDERS]


def _name(referrer: Any, held: list[Any]) -> str | None:
    """Return the name of a holder that needs no further walk, or None for a thing in between."""
    if isinstance(referrer, types.ModuleType):
        return f"the module {referrer.__name__}"
    if isinstance(referrer, dict):
        return _name_of_globals(referrer, held)
    if isinstance(referrer, threading.Thread):
        return f"the thread {referrer.name!r}"
    if isinstance(referrer, asyncio.Task):
        return f"the task {referrer.get_name()!r}"
    if isinstance(referrer, logging.Handler | logging.Filter):
        return f"the logging {type(referrer).__name__}"
    if isinstance(referrer, _CACHE):
        return f"the cache of {referrer.__module__}.{getattr(referrer, '__qualname__', '?')}"
    if isinstance(referrer, types.FrameType):
        return (
            f"a running call of {referrer.f_code.co_name} ({referrer.f_code.co_filename}:{referrer.f_lineno})"
        )
    if isinstance(referrer, asyncio.Handle):
        return "a callback scheduled on the loop"
    if isinstance(referrer, weakref.finalize):
        return "a weakref.finalize"
    return None


def _name_of_globals(table: dict[Any, Any], held: list[Any]) -> str | None:
    module = table.get("__name__")
    if not isinstance(module, str) or "__builtins__" not in table:
        return None
    wanted = {id(value) for value in held}
    names: Iterable[Any] = (key for key, value in list(table.items()) if id(value) in wanted)
    return f"{module}.{next(iter(names), '?')}"


def _is_own_frame(referrer: Any) -> bool:
    return isinstance(referrer, types.FrameType) and referrer.f_globals.get("__name__", "").startswith(
        ("runtime_node.isolation", "runtime_node.loader")
    )

"""Caches of shared packages that keep a stopped app alive: finds them all, and empties those that hold it.

FastAPI alone has three caches that lead from a handler to its app and so to all of its memory.
"""

from __future__ import annotations

import functools
import gc
import sys
import threading
import typing
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any

_CACHE = type(functools.lru_cache(maxsize=1)(lambda: None))
# Entries looked at in one cache: a bound on the time that one stop may take.
_MOST_ENTRIES = 5_000
_DICTIONARIES = (("fastapi.routing", "_endpoint_context_cache"),)

_lock = threading.Lock()
_seen: set[int] = set()
_caches: list[Any] = []


_WRAPPERS = (classmethod, staticmethod)


def evict(tops: frozenset[str]) -> int:
    """Empty each cache with an entry of code whose module's first name is in `tops`; return how many.

    A cache cannot lose single entries, so neighbours fill theirs again; it costs them microseconds.
    """
    with _lock:
        _discover()
        caches = list(_caches)
    cleared = 0
    for cache in caches:
        if cache.cache_info().currsize and _holds(cache, tops):
            cache.cache_clear()
            cleared += 1
    for module, name in _DICTIONARIES:
        table = getattr(sys.modules.get(module), name, None)
        if isinstance(table, dict):
            table.clear()
    return cleared


def clear_typing() -> None:
    """Empty typing's caches, which hold the classes that were used in annotations."""
    cleanups: list[Callable[[], None]] = getattr(typing, "_cleanups", [])
    for cleanup in cleanups:
        cleanup()


def _discover() -> None:
    """Look through the modules that were loaded since the last time; shared ones do not lose their caches."""
    for name, module in list(sys.modules.items()):
        if id(module) in _seen or not isinstance(module, ModuleType) or "__" in name:
            continue
        _seen.add(id(module))
        _caches.extend(_caches_in(module))


def _caches_in(module: ModuleType) -> Iterator[Any]:
    # By their types: what is asked for its class, as by `isinstance`, may come to life, as lazy settings do.
    for value in list(vars(module).values()):
        if type(value) is _CACHE:
            yield value
        elif issubclass(type(value), type) and _module_of(value) == module.__name__:
            for member in list(vars(value).values()):
                inner = member.__func__ if type(member) in _WRAPPERS else member
                if type(inner) is _CACHE:
                    yield inner


def _holds(cache: Any, tops: frozenset[str]) -> bool:
    entries = next((part for part in gc.get_referents(cache) if isinstance(part, dict)), None)
    if not entries:
        return False
    # The newest first: an app's own are found at once.
    for count, (key, link) in enumerate(reversed(list(entries.items()))):
        if count > _MOST_ENTRIES:
            return True
        # A cache without a bound keeps its results in the dictionary, one with a bound in a link.
        values = gc.get_referents(link) if type(link).__name__ == "_lru_list_elem" else (link,)
        if any(_belongs(part, tops) for part in (*_parts(key), *values)):
            return True
    return False


def _parts(key: Any) -> Iterator[Any]:
    if isinstance(key, tuple | list):
        for part in key:
            yield from _parts(part)
    else:
        yield key


def _belongs(value: Any, tops: frozenset[str]) -> bool:
    while isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, MethodType):
        value = value.__func__
    if isinstance(value, FunctionType | type):
        return _is_of(value, tops)
    if not gc.is_tracked(value):
        return False
    # An object made for the key, as FastAPI does around a handler.
    return _is_of(type(value), tops) or any(
        _is_of(part, tops) for part in gc.get_referents(value) if isinstance(part, FunctionType | type)
    )


def _is_of(owner: Any, tops: frozenset[str]) -> bool:
    module = _module_of(owner)
    return isinstance(module, str) and module.partition(".")[0] in tops


def _module_of(owner: Any) -> object:
    """Return a class's or a function's `__module__`, not as its metaclass would have it."""
    return type.__getattribute__(owner, "__module__") if issubclass(type(owner), type) else owner.__module__

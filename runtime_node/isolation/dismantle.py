"""Frees a stopped app at once, without a collection of the whole heap.

An app is a web of cycles, so counting references alone never frees it, and a full collection stops every app
of the process for as long as all of them are large. This is the collector's own algorithm, trial deletion,
on the part of the heap that the app alone can reach, in Python and so without stopping the others.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import sys
import threading
from collections import OrderedDict, defaultdict, deque
from types import (
    AsyncGeneratorType,
    BuiltinFunctionType,
    CellType,
    CodeType,
    CoroutineType,
    FrameType,
    FunctionType,
    GeneratorType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodDescriptorType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any

# What is bigger than this is left to the next full collection.
MOST_OBJECTS = 200_000
# Never walked into: shared by its nature, or still running.
_BOUNDARY: tuple[type, ...] = (
    ModuleType,
    type,
    CodeType,
    BuiltinFunctionType,
    FrameType,
    GeneratorType,
    CoroutineType,
    AsyncGeneratorType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodDescriptorType,
    WrapperDescriptorType,
    logging.Logger,
    threading.Thread,
    asyncio.AbstractEventLoop,
    contextvars.Context,
)
_CONTAINERS = (dict, list, set, deque, OrderedDict, defaultdict)


def keep_whole(kind: type) -> None:
    """Have no object of this class walked into: apps are given such objects from elsewhere at any moment."""
    global _BOUNDARY  # noqa: PLW0603 - one set of rules per process
    _BOUNDARY = (*_BOUNDARY, kind)


def dismantle(roots: list[Any]) -> int:
    """Break the cycles of what only `roots` lead to; empties `roots`; returns how many objects were garbage.

    An object that anything else refers to stays whole, with all it leads to, and so does one with a
    finalizer. The caller must hold no other reference to the roots.
    """
    objects: dict[int, Any] = {}
    edges: dict[int, list[Any]] = {}
    if not _reach(roots, objects, edges):
        roots.clear()
        return 0
    inside = dict.fromkeys(objects, 0)
    for parts in edges.values():
        for key in map(id, parts):
            if key in inside:
                # Once by the object that leads there, once by the list of what it leads to, which keeps
                # ids from being used again meanwhile.
                inside[key] += 2
    for key in map(id, roots):
        inside[key] += 1
    # A finalizer must not find what it uses in pieces: its object counts as held from outside.
    live: deque[int] = deque()
    for key, count in inside.items():
        # Held by: the objects inside, `objects` itself, and getrefcount's own argument.
        if sys.getrefcount(objects[key]) - 2 > count or hasattr(type(objects[key]), "__del__"):
            live.append(key)
    alive = set(live)
    while live:
        for key in map(id, edges[live.popleft()]):
            if key in inside and key not in alive:
                alive.add(key)
                live.append(key)
    garbage = [value for key, value in objects.items() if key not in alive]
    parts = []
    edges.clear()
    objects.clear()
    roots.clear()
    for index in range(len(garbage)):
        _break(garbage[index])
    return len(garbage)


def _reach(roots: list[Any], objects: dict[int, Any], edges: dict[int, list[Any]]) -> bool:
    """Fill in all that the roots lead to, and what each leads to; tell whether it was not too much."""
    waiting = deque(roots)
    while waiting:
        value = waiting.popleft()
        key = id(value)
        if key in objects:
            continue
        if len(objects) >= MOST_OBJECTS:
            return False
        objects[key] = value
        parts = _referents(value)
        edges[key] = parts
        waiting.extend(
            part
            for part in parts
            if id(part) not in objects and gc.is_tracked(part) and not isinstance(part, _BOUNDARY)
        )
    return True


def _referents(value: Any) -> list[Any]:
    if isinstance(value, FunctionType):
        # Its globals and builtins are its module's, which all instances of the code share.
        shared = (value.__globals__, value.__globals__.get("__builtins__"))
        return [part for part in gc.get_referents(value) if part is not shared[0] and part is not shared[1]]
    return gc.get_referents(value)


def _break(value: Any) -> None:
    try:
        if isinstance(value, _CONTAINERS):
            value.clear()
        elif isinstance(value, CellType):
            del value.cell_contents
        else:
            # Python 3.11 keeps an instance's attributes outside of a dictionary until someone asks for it.
            attributes = object.__getattribute__(value, "__dict__")
            attributes.clear()
    except Exception:  # noqa: BLE001 - an immutable or odd object: its neighbours are cleared all the same
        return

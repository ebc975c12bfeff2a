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
_BOUNDARY = (
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


def dismantle(roots: list[Any]) -> int:
    """Break the cycles of what only `roots` lead to; empties `roots`; returns how many objects were garbage.

    An object that anything else refers to stays whole, with all it leads to, and so does one with a
    finalizer. The caller must hold no other reference to the roots.
    """
    objects = _reach(roots)
    if objects is None:
        roots.clear()
        return 0
    # A finalizer and its object's parts must not lose what they lead to: they count as held from outside.
    inside: dict[int, int] = dict.fromkeys(objects, 0)
    edges: dict[int, list[int]] = {}
    for key, value in objects.items():
        targets = [id(part) for part in _referents(value) if id(part) in inside]
        edges[key] = targets
        for target in targets:
            inside[target] += 1
    for root in roots:
        inside[id(root)] += 1
    root = None
    value = None
    live: deque[int] = deque()
    for key, count in inside.items():
        # Held by: the objects inside, `objects` itself, and getrefcount's own argument.
        if sys.getrefcount(objects[key]) - 2 > count or hasattr(type(objects[key]), "__del__"):
            live.append(key)
    alive = set(live)
    while live:
        for target in edges[live.popleft()]:
            if target not in alive:
                alive.add(target)
                live.append(target)
    garbage = [value for key, value in objects.items() if key not in alive]
    value = None
    objects.clear()
    roots.clear()
    for value in garbage:
        _break(value)
    found = len(garbage)
    value = None
    garbage.clear()
    return found


def _reach(roots: list[Any]) -> dict[int, Any] | None:
    objects: dict[int, Any] = {}
    waiting = deque(roots)
    while waiting:
        value = waiting.popleft()
        key = id(value)
        if key in objects:
            continue
        if len(objects) >= MOST_OBJECTS:
            return None
        objects[key] = value
        for part in _referents(value):
            if id(part) not in objects and gc.is_tracked(part) and not isinstance(part, _BOUNDARY):
                waiting.append(part)
        part = None
    return objects


def _referents(value: Any) -> list[Any]:
    if isinstance(value, FunctionType):
        # Its globals and builtins are its module's, which all instances of the code share.
        shared = (value.__globals__, value.__builtins__)
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

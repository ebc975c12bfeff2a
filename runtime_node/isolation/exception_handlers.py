"""The exception handler of a loop that apps share: one that an app sets hears of its own failures alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

from runtime_node.isolation.current import CURRENT_INSTANCE, acting_instance
from runtime_node.isolation.endings import instance_of
from runtime_node.isolation.undo_log import undo_log_of

Handler: TypeAlias = Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object]


def keep_handlers_apart(loop: asyncio.AbstractEventLoop) -> None:
    """Give each instance an exception handler of its own on this loop, until it stops."""
    set_by: dict[str, Handler] = {}
    set_on_loop = loop.set_exception_handler
    for_all = loop.get_exception_handler()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        handler = set_by.get(_owner(context)) or for_all
        if handler is None:
            loop.default_exception_handler(context)
        else:
            handler(loop, context)

    def set_exception_handler(handler: Handler | None) -> None:
        nonlocal for_all
        instance = acting_instance()
        if not instance:
            for_all = handler
        elif handler is None:
            set_by.pop(instance, None)
        elif not callable(handler):
            raise TypeError(f"A callable object or None is expected, got {handler!r}")
        else:
            set_by[instance] = handler

            def forget() -> None:
                set_by.pop(instance, None)

            undo_log_of(instance).record(("exception handler", id(loop)), forget)

    def get_exception_handler() -> Handler | None:
        return set_by.get(CURRENT_INSTANCE.get()) or for_all

    set_on_loop(handle)
    loop.set_exception_handler = set_exception_handler  # type: ignore[method-assign]
    loop.get_exception_handler = get_exception_handler  # type: ignore[method-assign]


def _owner(context: dict[str, Any]) -> str:
    """Return the instance whose failure is told, or ""."""
    failed = context.get("task") or context.get("future")
    # A task is often found to have failed when it is freed, which happens in anybody's code.
    return instance_of(failed) if isinstance(failed, asyncio.Future) else CURRENT_INSTANCE.get()

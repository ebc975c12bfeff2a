"""Settings of a loop that apps share: those that an app makes count for its own tasks and failures alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

from runtime_node.isolation.current import CURRENT_INSTANCE, acting_instance, running_as
from runtime_node.isolation.endings import instance_of
from runtime_node.isolation.per_instance import PerInstance

Handler: TypeAlias = Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object]


def keep_settings_apart(loop: asyncio.AbstractEventLoop) -> None:
    """Give each instance an exception handler, a task factory and a debug flag of its own on this loop."""
    _keep_exception_handlers_apart(loop)
    _keep_task_factories_apart(loop)
    _keep_debug_flags_apart(loop)


def _keep_exception_handlers_apart(loop: asyncio.AbstractEventLoop) -> None:
    own: PerInstance[Handler] = PerInstance("exception handler")
    set_on_loop = loop.set_exception_handler
    for_all = loop.get_exception_handler()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        with running_as(_owner(context)):
            handler = own.here() or for_all
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
            own.drop(instance)
        elif not callable(handler):
            raise TypeError(f"A callable object or None is expected, got {handler!r}")
        else:
            own.put(instance, handler)

    def get_exception_handler() -> Handler | None:
        return own.here() or for_all

    set_on_loop(handle)
    loop.set_exception_handler = set_exception_handler  # type: ignore[method-assign]
    loop.get_exception_handler = get_exception_handler  # type: ignore[method-assign]


def _owner(context: dict[str, Any]) -> str:
    """Return the instance whose failure is told, or ""."""
    failed = context.get("task") or context.get("future")
    # A task is often found to have failed when it is freed, which happens in anybody's code.
    return instance_of(failed) if isinstance(failed, asyncio.Future) else CURRENT_INSTANCE.get()


def _keep_task_factories_apart(loop: asyncio.AbstractEventLoop) -> None:
    set_on_loop: Callable[[Any], None] = loop.set_task_factory
    for_all: Any = loop.get_task_factory()

    def make_task(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> Any:
        factory = own.here() or for_all
        return asyncio.Task(coro, loop=loop, **kwargs) if factory is None else factory(loop, coro, **kwargs)

    def settle() -> None:
        # A loop without a factory makes its tasks faster.
        set_on_loop(make_task if own else for_all)

    def after_stop() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle)

    own: PerInstance[Any] = PerInstance("task factory", after_stop)

    def set_task_factory(factory: Any) -> None:
        nonlocal for_all
        instance = acting_instance()
        if factory is not None and not callable(factory):
            raise TypeError("task factory must be a callable or None")  # as asyncio's own
        if not instance:
            for_all = factory
        elif factory is None:
            own.drop(instance)
        else:
            own.put(instance, factory)
        settle()

    def get_task_factory() -> Any:
        return own.here() or for_all

    loop.set_task_factory = set_task_factory  # type: ignore[method-assign]
    loop.get_task_factory = get_task_factory  # type: ignore[method-assign]


def _keep_debug_flags_apart(loop: asyncio.AbstractEventLoop) -> None:
    """Debugging slows every task of a loop down; an app that asks for it is only told that it has it."""
    own: PerInstance[bool] = PerInstance("debug flag")
    set_on_loop, get_on_loop = loop.set_debug, loop.get_debug

    def set_debug(enabled: bool) -> None:
        instance = acting_instance()
        if instance:
            own.put(instance, bool(enabled))
        else:
            set_on_loop(enabled)

    def get_debug() -> bool:
        mine = own.here()
        return get_on_loop() if mine is None else mine

    loop.set_debug = set_debug  # type: ignore[method-assign]
    loop.get_debug = get_debug  # type: ignore[method-assign]

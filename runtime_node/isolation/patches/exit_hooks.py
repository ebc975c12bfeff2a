"""Exit hooks of apps: they run when their instance stops, not when the node ends."""

from __future__ import annotations

import atexit
import functools
import itertools
import weakref
from collections.abc import Callable
from typing import Any

from runtime_node.isolation.current import acting_instance
from runtime_node.isolation.undo_log import EXIT_HOOK, undo_log_of


def install() -> None:
    """Take the hooks that apps register."""
    register, unregister = atexit.register, atexit.unregister
    numbers = itertools.count()

    def register_hook(func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        instance = acting_instance()
        if not instance:
            return register(func, *args, **kwargs)
        # The app ends when its instance stops, not when the node does.
        # A hook may be registered more than once, each time with arguments of its own.
        undo_log_of(instance).record(
            (EXIT_HOOK, func, next(numbers)), functools.partial(_run_hook, func, args, kwargs)
        )
        return func

    def unregister_hook(func: Callable[..., Any], /) -> None:
        instance = acting_instance()
        if not (instance and undo_log_of(instance).forget_all((EXIT_HOOK, func))):
            unregister(func)

    # The first finalizer of a process registers the hook that runs those of everybody. Made by an app, it
    # would run at that app's stop and take the neighbours' temporary directories away.
    weakref.finalize(register_hook, int).detach()
    atexit.register = register_hook
    atexit.unregister = unregister_hook


def _run_hook(func: Callable[..., Any], args: Any, kwargs: Any) -> str | None:
    try:
        func(*args, **kwargs)
    except BaseException as fault:  # noqa: BLE001 - the app's own hook
        return f"its exit hook {getattr(func, '__qualname__', func)} raised {type(fault).__name__}"
    return None

"""The places where an app's side effects on the process are seen, noted and undone.

Each is a call that apps make when they start, not per request: starting threads, logging set-up, exit hooks,
warning filters. Without a current instance each does what it always did.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import logging
import logging.config
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

from runtime_node.isolation import environ, frames, refusals, syntax_trees
from runtime_node.isolation.current import CURRENT_INSTANCE, acting_instance
from runtime_node.isolation.endings import ThreadEndedError
from runtime_node.isolation.pool import PoolThread
from runtime_node.isolation.undo_log import EXIT_HOOK, undo_log_of

_installed = False
_lock = threading.Lock()
_filter_owners: dict[Any, set[str]] = {}
"""Which instances want a filter of warnings that is set; those of the node's own are not here."""


def install() -> None:
    """Put all patches in place. Once per process, before any app is loaded; repeats do nothing."""
    global _installed  # noqa: PLW0603 - the patches are the process's
    with _lock:
        if _installed:
            return
        _installed = True
    environ.install()
    refusals.install()
    syntax_trees.install()
    frames.install()
    _watch_threads()
    _watch_handlers()
    _watch_levels()
    _keep_record_factories_apart()
    _keep_logging_of_others()
    _watch_exit_hooks()
    _watch_warnings()


def _watch_threads() -> None:
    original = threading.Thread.start

    def start(self: threading.Thread) -> None:
        if (
            not CURRENT_INSTANCE.get()
            or isinstance(self, PoolThread)
            or type(self).__module__.startswith("anyio.")
        ):
            original(self)
            return
        instance = acting_instance()
        if instance:
            undo_log_of(instance).record_thread(self)
            _run_as(self, instance)
        original(self)

    threading.Thread.start = start  # type: ignore[method-assign]


def _run_as(thread: threading.Thread, instance: str) -> None:
    run = thread.run

    def run_as_instance() -> None:
        CURRENT_INSTANCE.set(instance)
        try:
            with contextlib.suppress(ThreadEndedError):
                run()
        finally:
            # The thread would hold itself through this closure.
            thread.__dict__.pop("run", None)

    thread.run = run_as_instance  # type: ignore[method-assign]


class _OwnRecords(logging.Filter):
    """Keeps from an app's handler what others log: they share the loggers, the root first of all."""

    def __init__(self, owner: str) -> None:
        super().__init__()
        self._owner = owner

    def filter(self, record: logging.LogRecord) -> bool:
        return environ.belongs_to(CURRENT_INSTANCE.get(), self._owner)


def _watch_handlers() -> None:
    add, remove = logging.Logger.addHandler, logging.Logger.removeHandler

    def add_handler(self: logging.Logger, hdlr: logging.Handler) -> None:
        instance = acting_instance()
        if instance and hdlr not in self.handlers:
            own = _OwnRecords(instance)
            hdlr.addFilter(own)

            def take_back() -> None:
                remove(self, hdlr)
                hdlr.removeFilter(own)
                hdlr.close()

            undo_log_of(instance).record(("handler", self, hdlr), take_back)
        add(self, hdlr)

    def remove_handler(self: logging.Logger, hdlr: logging.Handler) -> None:
        instance = acting_instance()
        # An app that sets up logging removes every handler it finds; those of others stay.
        if instance and not undo_log_of(instance).forget(("handler", self, hdlr)):
            return
        remove(self, hdlr)

    logging.Logger.addHandler = add_handler  # type: ignore[method-assign]
    logging.Logger.removeHandler = remove_handler  # type: ignore[method-assign]


def _watch_levels() -> None:
    """Let the level that an app sets on a logger hold for the app alone: they share the loggers."""
    original, effective = logging.Logger.setLevel, logging.Logger.getEffectiveLevel
    enabled = logging.Logger.isEnabledFor
    set_by: dict[str, dict[logging.Logger, int]] = {}

    def levels_here() -> list[dict[logging.Logger, int]]:
        if not set_by:
            return []
        scopes = environ.scopes_of(CURRENT_INSTANCE.get())
        return [levels for scope in scopes if (levels := set_by.get(scope)) is not None]

    def set_level(self: logging.Logger, level: int | str) -> None:
        instance = acting_instance()
        if not instance:
            original(self, level)
            return
        number: int = logging._checkLevel(level)  # type: ignore[attr-defined]
        set_by.setdefault(instance, {})[self] = number

        def forget() -> None:
            set_by.pop(instance, None)

        undo_log_of(instance).record("levels", forget)

    def get_effective_level(self: logging.Logger) -> int:
        own = levels_here()
        if not own:
            return effective(self)
        logger: logging.Logger | None = self
        while logger is not None:
            here = logger
            level = next((levels[here] for levels in own if here in levels), here.level)
            if level:
                return level
            logger = logger.parent
        return logging.NOTSET

    def is_enabled_for(self: logging.Logger, level: int) -> bool:
        # The logger's own cache knows of no instances.
        if not levels_here():
            return enabled(self, level)
        return not self.disabled and self.manager.disable < level and level >= get_effective_level(self)

    logging.Logger.setLevel = set_level  # type: ignore[method-assign]
    logging.Logger.getEffectiveLevel = get_effective_level  # type: ignore[method-assign]
    logging.Logger.isEnabledFor = is_enabled_for  # type: ignore[method-assign]


def _keep_record_factories_apart() -> None:
    """Let the factory of log records that an app sets make the app's records alone."""
    set_by: dict[str, Callable[..., logging.LogRecord]] = {}
    for_all = logging.getLogRecordFactory()

    def current() -> Callable[..., logging.LogRecord]:
        if set_by:
            for scope in environ.scopes_of(CURRENT_INSTANCE.get()):
                if scope in set_by:
                    return set_by[scope]
        return for_all

    def make_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        return current()(*args, **kwargs)

    def set_factory(factory: Callable[..., logging.LogRecord]) -> None:
        nonlocal for_all
        instance = acting_instance()
        if not instance:
            for_all = factory
            return
        set_by[instance] = factory

        def forget() -> None:
            set_by.pop(instance, None)

        undo_log_of(instance).record("record factory", forget)

    logging.setLogRecordFactory(make_record)
    logging.setLogRecordFactory = set_factory
    # Not the one in charge of all: a factory that calls it from within would call itself.
    logging.getLogRecordFactory = current


def _keep_logging_of_others() -> None:
    """`dictConfig` closes all handlers of the process and disables all loggers; in an app it must not."""
    config: Any = logging.config
    clear, disable = config._clearExistingHandlers, config._handle_existing_loggers

    def clear_existing_handlers() -> None:
        if not acting_instance():
            clear()

    def handle_existing_loggers(existing: Any, child_loggers: Any, disable_existing: bool) -> None:
        disable(existing, child_loggers, disable_existing and not acting_instance())

    config._clearExistingHandlers = clear_existing_handlers
    config._handle_existing_loggers = handle_existing_loggers


def _watch_exit_hooks() -> None:
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


def _watch_warnings() -> None:
    for name in ("filterwarnings", "simplefilter"):
        setattr(warnings, name, _noting_filter(getattr(warnings, name)))


def _noting_filter(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def add_filter(*args: Any, **kwargs: Any) -> None:
        instance = acting_instance()
        before = list(warnings.filters) if instance else []
        original(*args, **kwargs)
        if not instance:
            return
        added = [item for item in warnings.filters if item not in before]
        if not added and warnings.filters[0] in _filter_owners:
            # The same as another one's, moved to the front: an app's next instance sets what the last did.
            added = [warnings.filters[0]]
        for item in added:
            _filter_owners.setdefault(item, set()).add(instance)
            undo_log_of(instance).record(("warning", item), functools.partial(_drop_filter, item, instance))

    return add_filter


def _drop_filter(item: Any, instance: str) -> None:
    owners = _filter_owners.get(item, set())
    owners.discard(instance)
    if owners:
        return
    _filter_owners.pop(item, None)
    filters: Any = warnings.filters
    if item in filters:
        filters.remove(item)
        warnings._filters_mutated()  # type: ignore[attr-defined]

"""Loguru's and structlog's configuration per instance: what one app adds or configures is its own."""

from __future__ import annotations

import contextlib
from typing import Any

from runtime_node.isolation.library_state import Dispatch, LibraryState


class _Inherited:
    """A handler that was there before: an instance may remove it for itself, which must not close it."""

    def __init__(self, handler: Any) -> None:
        self.__dict__["_handler"] = handler

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_handler"], name)

    def stop(self) -> None:
        """Do nothing: it is closed by whoever has opened it."""


def keep_loguru_apart(module: Any) -> None:
    """Patch `loguru`: its one logger uses the core of the running instance."""
    logger = module.logger
    first = logger.__dict__.get("_core")
    kind: Any = type(logger)
    if first is None or not hasattr(first, "handlers") or not hasattr(first, "lock"):
        return

    def begin(inherited: Any) -> Any:
        core = type(first)()
        for name, value in vars(inherited).items():
            if name not in {"lock", "thread_locals"}:
                core.__dict__[name] = value.copy() if isinstance(value, dict | list) else value
        core.handlers = {number: _Inherited(handler) for number, handler in inherited.handlers.items()}
        return core

    def end(core: Any) -> None:
        for handler in core.handlers.values():
            # One sink that cannot be closed keeps no other open.
            with contextlib.suppress(Exception):
                handler.stop()

    states = LibraryState(first, begin, end)

    def core_here(self: Any) -> Any:
        own = self.__dict__.get("_core")
        return states.here() if own is None else own

    def set_core(self: Any, core: Any) -> None:
        # A copy of the logger with a core of its own keeps that.
        self.__dict__["_core"] = None if states.known(core) else core

    def state(self: Any) -> dict[str, Any]:
        return {**self.__dict__, "_core": self._core}  # what is copied is copied with its core

    kind._core, kind.__getstate__ = property(core_here, set_core), state
    logger.__dict__["_core"] = None


def keep_structlog_apart(module: Any) -> None:
    """Patch `structlog._config`: loggers are made by the configuration of the running instance."""
    for_all = getattr(module, "_CONFIG", None)
    if for_all is None or not hasattr(for_all, "default_processors"):
        return

    def begin(inherited: Any) -> Any:
        configuration = type(for_all)()
        configuration.__dict__.update(vars(inherited))
        return configuration

    # A module's logger serves all instances of its code: made once for good, it would be the first one's.
    module._CONFIG = Dispatch(LibraryState(for_all, begin), cache_logger_on_first_use=False)

"""Handlers of loggers per instance: those that an app adds hear that app, and those of others stay."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, SupportsIndex

from runtime_node.isolation.current import acting_instance
from runtime_node.isolation.patches.logging_settings import Settings, StandIn, by_instance, here, settings_of
from runtime_node.isolation.undo_log import undo_log_of


def install() -> None:
    """Keep the handlers that apps add apart, for this process."""
    logger: Any = logging.Logger
    logger.handlers = _Handlers()
    logger.addHandler, logger.removeHandler = _add_handler, _remove_handler
    logger.callHandlers, logger.hasHandlers = _call_handlers, _has_handlers


class _Handlers:
    """A logger's handlers: the node's own as one stand-in and the instance's own, where an app asks."""

    def __get__(self, logger: logging.Logger | None, owner: type | None = None) -> Any:
        if logger is None:
            return self
        instance = acting_instance()
        return _View(logger, instance) if instance else logger.__dict__["handlers"]

    def __set__(self, logger: logging.Logger, handlers: list[logging.Handler]) -> None:
        instance = acting_instance() if "handlers" in logger.__dict__ else ""
        if instance:
            _replace(logger, instance, handlers)
        else:
            logger.__dict__["handlers"] = handlers


class _View(list[logging.Handler]):
    """What an app sees as the list of a logger's handlers; what it does to the list it does to its own."""

    def __init__(self, logger: logging.Logger, instance: str) -> None:
        own = settings_of(instance)
        seen = [own.stand_in] if logger.__dict__["handlers"] else []
        super().__init__([*seen, *own.handlers.get(logger, ())])
        self._logger = logger
        self._instance = instance

    def _then_keep(self) -> None:
        _replace(self._logger, self._instance, list(self))

    def append(self, handler: logging.Handler) -> None:
        super().append(handler)
        self._then_keep()

    def extend(self, handlers: Iterable[logging.Handler]) -> None:
        super().extend(handlers)
        self._then_keep()

    def insert(self, index: SupportsIndex, handler: logging.Handler) -> None:
        super().insert(index, handler)
        self._then_keep()

    def remove(self, handler: logging.Handler) -> None:
        super().remove(handler)
        self._then_keep()

    def pop(self, index: SupportsIndex = -1) -> logging.Handler:
        handler = super().pop(index)
        self._then_keep()
        return handler

    def clear(self) -> None:
        super().clear()
        self._then_keep()

    def __iadd__(self, handlers: Iterable[logging.Handler]) -> Any:  # type: ignore[override,misc]
        self.extend(handlers)
        return self

    def __setitem__(self, index: Any, handler: Any) -> None:
        super().__setitem__(index, handler)
        self._then_keep()

    def __delitem__(self, index: Any) -> None:
        super().__delitem__(index)
        self._then_keep()


def _replace(logger: logging.Logger, instance: str, handlers: Iterable[logging.Handler]) -> None:
    wanted = [handler for handler in handlers if not isinstance(handler, StandIn)]
    for handler in settings_of(instance).handlers.pop(logger, []):
        if handler not in wanted:
            undo_log_of(instance).forget(("handler", logger, handler))
    for handler in wanted:
        _take(logger, instance, handler)


def _take(logger: logging.Logger, instance: str, handler: logging.Handler) -> None:
    own = settings_of(instance)
    handlers = own.handlers.setdefault(logger, [])
    if handler in handlers:
        return

    def take_back() -> None:
        if handler in handlers:
            handlers.remove(handler)
        handler.close()

    undo_log_of(instance).record(("handler", logger, handler), take_back)
    handlers.append(handler)


def _add_handler(self: logging.Logger, hdlr: logging.Handler) -> None:
    """Add a handler; one of an app hears what that app logs."""
    instance = acting_instance()
    if instance:
        _take(self, instance, hdlr)
    elif hdlr not in self.__dict__["handlers"]:
        self.__dict__["handlers"].append(hdlr)


def _remove_handler(self: logging.Logger, hdlr: logging.Handler) -> None:
    """Remove a handler. An app that sets up logging removes every handler it finds; those of others stay."""
    instance = acting_instance()
    if instance:
        own = by_instance.get(instance)
        if own is not None and hdlr in own.handlers.get(self, ()):
            own.handlers[self].remove(hdlr)
            undo_log_of(instance).forget(("handler", self, hdlr))
    elif hdlr in self.__dict__["handlers"]:
        self.__dict__["handlers"].remove(hdlr)


def _heard_by(logger: logging.Logger, own: list[Settings]) -> Iterable[logging.Handler]:
    handlers: list[logging.Handler] = logger.__dict__["handlers"]
    if not own:
        return handlers
    return [*handlers, *(handler for settings in own for handler in settings.handlers.get(logger, ()))]


def _call_handlers(self: logging.Logger, record: logging.LogRecord) -> None:
    """Pass a record to the handlers of all, and to those of the instance that logs it."""
    own = here()
    found = False
    logger: logging.Logger | None = self
    while logger is not None:
        for handler in _heard_by(logger, own):
            found = True
            if record.levelno >= handler.level:
                handler.handle(record)
        logger = logger.parent if logger.propagate else None
    last = logging.lastResort
    if not found and last is not None and record.levelno >= last.level:
        last.handle(record)


def _has_handlers(self: logging.Logger) -> bool:
    """Tell whether anybody hears what is logged here."""
    own = here()
    logger: logging.Logger | None = self
    while logger is not None:
        if any(True for _ in _heard_by(logger, own)):
            return True
        logger = logger.parent if logger.propagate else None
    return False

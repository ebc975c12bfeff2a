"""Logging set-up per instance: filters, levels, switches and factories that an app sets for all loggers.

Loggers are the process's. What an app sets on one is kept beside it, by instance, and counts for the records
of that instance alone; the node's own loggers are out of its reach.
"""

from __future__ import annotations

import logging
import logging.config
from collections.abc import Callable
from typing import Any

from runtime_node.isolation.current import acting_instance
from runtime_node.isolation.patches.logging_settings import (
    KEPT_APART,
    by_instance,
    here,
    is_nodes_own,
    settings_of,
)


def install() -> None:
    """Keep what apps set up in logging apart, for this process."""
    logger: Any = logging.Logger
    for name in KEPT_APART:
        setattr(logger, name, _Setting(name))
    logger.addFilter, logger.removeFilter = _add_filter, _remove_filter
    _keep_thresholds_apart()
    _keep_factories_apart()
    _keep_configuration_of_others()


class _Setting:
    """An attribute of a logger that an instance may set for itself alone."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, logger: logging.Logger | None, owner: type | None = None) -> Any:
        if logger is None:
            return self
        if by_instance:
            for own in here():
                values = own.values[self._name]
                if logger in values and not is_nodes_own(logger):
                    return values[logger]
        try:
            return logger.__dict__[self._name]
        except KeyError:
            raise AttributeError(self._name) from None

    def __set__(self, logger: logging.Logger, value: Any) -> None:
        # The first value is the one that the logger is made with, by whomever.
        instance = acting_instance() if self._name in logger.__dict__ else ""
        if instance:
            settings_of(instance).values[self._name][logger] = value
        else:
            logger.__dict__[self._name] = value


def _add_filter(self: logging.Logger, filter: Any) -> None:
    """Add a filter; one of an app looks at what that app logs."""
    if filter not in self.filters:
        self.filters = [*self.filters, filter]


def _remove_filter(self: logging.Logger, filter: Any) -> None:
    """Remove a filter; an app does it for what it logs itself."""
    if filter in self.filters:
        self.filters = [each for each in self.filters if each is not filter]


def _keep_thresholds_apart() -> None:
    """`logging.disable`, and which levels are enabled: a logger's own memory of it knows no instances."""
    enabled = logging.Logger.isEnabledFor
    manager: Any = logging.Manager
    for_all = manager.disable

    def disable(self: Any) -> int:
        for own in here():
            if own.disable is not None:
                return own.disable
        return int(for_all.fget(self))

    def set_disable(self: Any, value: Any) -> None:
        instance = acting_instance()
        if not instance:
            for_all.fset(self, value)
            return
        settings_of(instance).disable = logging._checkLevel(value)  # type: ignore[attr-defined]

    def is_enabled_for(self: logging.Logger, level: int) -> bool:
        if not by_instance or not any(own.silences for own in here()):
            return enabled(self, level)
        if is_nodes_own(self):
            return not self.disabled and level >= self.getEffectiveLevel()
        enabled_here = self.manager.disable < level and level >= self.getEffectiveLevel()
        return enabled_here and not self.disabled

    manager.disable = property(disable, set_disable)
    logging.Logger.isEnabledFor = is_enabled_for  # type: ignore[method-assign]


def _keep_factories_apart() -> None:
    """Let the factory of records, and the class of loggers, that an app sets make its own alone."""
    for_all = logging.getLogRecordFactory()
    get_class: Any = logging.getLoggerClass
    set_class = logging.setLoggerClass

    def current() -> Callable[..., logging.LogRecord]:
        return next((own.record_factory for own in here() if own.record_factory is not None), for_all)

    def make_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        return current()(*args, **kwargs)

    def set_factory(factory: Callable[..., logging.LogRecord]) -> None:
        nonlocal for_all
        instance = acting_instance()
        if instance:
            settings_of(instance).record_factory = factory
        else:
            for_all = factory

    def classhere() -> type[logging.Logger] | None:
        return next((own.logger_class for own in here() if own.logger_class is not None), None)

    def set_logger_class(klass: type[logging.Logger]) -> None:
        instance = acting_instance()
        if not instance:
            set_class(klass)
        elif not issubclass(klass, logging.Logger):
            raise TypeError(f"logger not derived from logging.Logger: {klass.__name__}")
        else:
            settings_of(instance).logger_class = klass

    class LoggerClass:
        """A manager's own class of loggers: the instance's, where it has set one."""

        def __get__(self, manager: Any, owner: type | None = None) -> Any:
            return self if manager is None else classhere() or manager.__dict__.get("loggerClass")

        def __set__(self, manager: Any, value: Any) -> None:
            manager.__dict__["loggerClass"] = value

    logging.setLogRecordFactory(make_record)
    logging.setLogRecordFactory = set_factory
    # Not the one in charge of all: a factory that calls it from within would call itself.
    logging.getLogRecordFactory = current
    logging.setLoggerClass = set_logger_class
    logging.getLoggerClass = lambda: classhere() or get_class()
    logging.Manager.loggerClass = LoggerClass()  # type: ignore[assignment]


def _keep_configuration_of_others() -> None:
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

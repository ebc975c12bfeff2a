"""Logging set-up per instance: handlers, filters, levels and switches that an app sets on loggers all share.

Loggers are the process's. What an app sets on one is kept beside it, by instance, and counts for the records
of that instance alone; the node's own loggers are out of its reach.
"""

from __future__ import annotations

import logging
import logging.config
from collections.abc import Callable, Iterable
from typing import Any, SupportsIndex

from runtime_node.isolation import environ
from runtime_node.isolation.current import CURRENT_INSTANCE, acting_instance
from runtime_node.isolation.undo_log import undo_log_of

_KEPT_APART = ("level", "propagate", "disabled", "filters")
# What the node itself logs while it works for an app is for whoever runs the node.
_NODES_OWN = ("runtime_node", "services", "appsupervisor")


class _Settings:
    """What one instance, or one code location, has set."""

    def __init__(self) -> None:
        self.values: dict[str, dict[logging.Logger, Any]] = {name: {} for name in _KEPT_APART}
        self.handlers: dict[logging.Logger, list[logging.Handler]] = {}
        self.disable: int | None = None
        self.record_factory: Callable[..., logging.LogRecord] | None = None
        self.logger_class: type[logging.Logger] | None = None
        self.stand_in = _StandIn()

    @property
    def silences(self) -> bool:
        """Whether a logger's own memory of which levels are enabled does not hold for this instance."""
        return self.disable is not None or any(self.values.values())


class _StandIn(logging.StreamHandler[Any]):
    """Stands for the node's handlers where an app looks at a logger's: it may change this one as it likes."""

    def emit(self, record: logging.LogRecord) -> None:
        """Do nothing: the node's own handlers have taken the record."""


_settings: dict[str, _Settings] = {}


def install() -> None:
    """Keep what apps set up in logging apart, for this process."""
    logger: Any = logging.Logger
    for name in _KEPT_APART:
        setattr(logger, name, _Setting(name))
    logger.handlers = _Handlers()
    logger.addHandler, logger.removeHandler = _add_handler, _remove_handler
    logger.callHandlers, logger.hasHandlers = _call_handlers, _has_handlers
    logger.addFilter, logger.removeFilter = _add_filter, _remove_filter
    _keep_thresholds_apart()
    _keep_factories_apart()
    _keep_configuration_of_others()


def _here() -> list[_Settings]:
    """Return what counts for the running code: its instance's settings first, then its code location's."""
    if not _settings:
        return []
    scopes = environ.scopes_of(CURRENT_INSTANCE.get())
    return [own for scope in scopes if (own := _settings.get(scope)) is not None]


def _settings_of(instance: str) -> _Settings:
    own = _settings.get(instance)
    if own is None:
        own = _settings[instance] = _Settings()

        def forget() -> None:
            _settings.pop(instance, None)

        undo_log_of(instance).record("logging", forget)
    return own


def _is_nodes_own(logger: logging.Logger) -> bool:
    return logger.name.startswith(_NODES_OWN)


class _Setting:
    """An attribute of a logger that an instance may set for itself alone."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, logger: logging.Logger | None, owner: type | None = None) -> Any:
        if logger is None:
            return self
        if _settings:
            for own in _here():
                values = own.values[self._name]
                if logger in values and not _is_nodes_own(logger):
                    return values[logger]
        try:
            return logger.__dict__[self._name]
        except KeyError:
            raise AttributeError(self._name) from None

    def __set__(self, logger: logging.Logger, value: Any) -> None:
        # The first value is the one that the logger is made with, by whomever.
        instance = acting_instance() if self._name in logger.__dict__ else ""
        if instance:
            _settings_of(instance).values[self._name][logger] = value
        else:
            logger.__dict__[self._name] = value


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
        own = _settings_of(instance)
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
    wanted = [handler for handler in handlers if not isinstance(handler, _StandIn)]
    for handler in _settings_of(instance).handlers.pop(logger, []):
        if handler not in wanted:
            undo_log_of(instance).forget(("handler", logger, handler))
    for handler in wanted:
        _take(logger, instance, handler)


def _take(logger: logging.Logger, instance: str, handler: logging.Handler) -> None:
    own = _settings_of(instance)
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
        own = _settings.get(instance)
        if own is not None and hdlr in own.handlers.get(self, ()):
            own.handlers[self].remove(hdlr)
            undo_log_of(instance).forget(("handler", self, hdlr))
    elif hdlr in self.__dict__["handlers"]:
        self.__dict__["handlers"].remove(hdlr)


def _heard_by(logger: logging.Logger, own: list[_Settings]) -> Iterable[logging.Handler]:
    handlers: list[logging.Handler] = logger.__dict__["handlers"]
    if not own:
        return handlers
    return [*handlers, *(handler for settings in own for handler in settings.handlers.get(logger, ()))]


def _call_handlers(self: logging.Logger, record: logging.LogRecord) -> None:
    """Pass a record to the handlers of all, and to those of the instance that logs it."""
    own = _here()
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
    own = _here()
    logger: logging.Logger | None = self
    while logger is not None:
        if any(True for _ in _heard_by(logger, own)):
            return True
        logger = logger.parent if logger.propagate else None
    return False


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
        for own in _here():
            if own.disable is not None:
                return own.disable
        return int(for_all.fget(self))

    def set_disable(self: Any, value: Any) -> None:
        instance = acting_instance()
        if not instance:
            for_all.fset(self, value)
            return
        _settings_of(instance).disable = logging._checkLevel(value)  # type: ignore[attr-defined]

    def is_enabled_for(self: logging.Logger, level: int) -> bool:
        if not _settings or not any(own.silences for own in _here()):
            return enabled(self, level)
        if _is_nodes_own(self):
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
        return next((own.record_factory for own in _here() if own.record_factory is not None), for_all)

    def make_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        return current()(*args, **kwargs)

    def set_factory(factory: Callable[..., logging.LogRecord]) -> None:
        nonlocal for_all
        instance = acting_instance()
        if instance:
            _settings_of(instance).record_factory = factory
        else:
            for_all = factory

    def class_here() -> type[logging.Logger] | None:
        return next((own.logger_class for own in _here() if own.logger_class is not None), None)

    def set_logger_class(klass: type[logging.Logger]) -> None:
        instance = acting_instance()
        if not instance:
            set_class(klass)
        elif not issubclass(klass, logging.Logger):
            raise TypeError(f"logger not derived from logging.Logger: {klass.__name__}")
        else:
            _settings_of(instance).logger_class = klass

    class LoggerClass:
        """A manager's own class of loggers: the instance's, where it has set one."""

        def __get__(self, manager: Any, owner: type | None = None) -> Any:
            return self if manager is None else class_here() or manager.__dict__.get("loggerClass")

        def __set__(self, manager: Any, value: Any) -> None:
            manager.__dict__["loggerClass"] = value

    logging.setLogRecordFactory(make_record)
    logging.setLogRecordFactory = set_factory
    # Not the one in charge of all: a factory that calls it from within would call itself.
    logging.getLogRecordFactory = current
    logging.setLoggerClass = set_logger_class
    logging.getLoggerClass = lambda: class_here() or get_class()
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

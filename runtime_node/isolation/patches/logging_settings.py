"""What instances have set in logging, each for itself; loggers are shared, so it is kept beside them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from runtime_node.isolation import environ
from runtime_node.isolation.current import CURRENT_INSTANCE
from runtime_node.isolation.undo_log import undo_log_of

KEPT_APART = ("level", "propagate", "disabled", "filters")
"""Attributes of loggers that each instance may set for itself."""
# What the node itself logs while it works for an app is for whoever runs the node.
_NODES_OWN = ("runtime_node", "services", "appsupervisor")


class Settings:
    """What one instance, or one code location, has set."""

    def __init__(self) -> None:
        self.values: dict[str, dict[logging.Logger, Any]] = {name: {} for name in KEPT_APART}
        self.handlers: dict[logging.Logger, list[logging.Handler]] = {}
        self.disable: int | None = None
        self.record_factory: Callable[..., logging.LogRecord] | None = None
        self.logger_class: type[logging.Logger] | None = None
        self.stand_in = StandIn()

    @property
    def silences(self) -> bool:
        """Whether a logger's own memory of which levels are enabled does not hold for this instance."""
        return self.disable is not None or any(self.values.values())


class StandIn(logging.StreamHandler[Any]):
    """Stands for the node's handlers where an app looks at a logger's: it may change this one as it likes."""

    def emit(self, record: logging.LogRecord) -> None:
        """Do nothing: the node's own handlers have taken the record."""


by_instance: dict[str, Settings] = {}


def here() -> list[Settings]:
    """Return what counts for the running code: its instance's settings first, then its code location's."""
    if not by_instance:
        return []
    scopes = environ.scopes_of(CURRENT_INSTANCE.get())
    return [own for scope in scopes if (own := by_instance.get(scope)) is not None]


def settings_of(instance: str) -> Settings:
    """Return an instance's settings, new ones if it has none."""
    own = by_instance.get(instance)
    if own is None:
        own = by_instance[instance] = Settings()

        def forget() -> None:
            by_instance.pop(instance, None)

        undo_log_of(instance).record("logging", forget)
    return own


def is_nodes_own(logger: logging.Logger) -> bool:
    """Tell whether a logger is out of the reach of apps."""
    return logger.name.startswith(_NODES_OWN)

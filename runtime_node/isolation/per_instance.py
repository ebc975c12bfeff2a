"""A value that each instance may have one of its own of, until it stops; the others see the process's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from runtime_node.isolation import environ
from runtime_node.isolation.current import CURRENT_INSTANCE
from runtime_node.isolation.undo_log import undo_log_of

T = TypeVar("T")


class PerInstance(Generic[T]):
    """What instances, and code locations while they were imported, have set. False while nobody has."""

    def __init__(self, name: str, after_stop: Callable[[], None] = lambda: None) -> None:
        """`name` tells it in undo logs; `after_stop` is called when a stop has taken a value away."""
        self._key = (name, id(self))
        self._after_stop = after_stop
        self._set_by: dict[str, T] = {}

    def __bool__(self) -> bool:
        return bool(self._set_by)

    def here(self) -> T | None:
        """Return what counts for the running code: its instance's, else its code location's, else None."""
        if self._set_by:
            for scope in environ.scopes_of(CURRENT_INSTANCE.get()):
                if scope in self._set_by:
                    return self._set_by[scope]
        return None

    def of(self, instance: str) -> T | None:
        """Return what an instance has set itself."""
        return self._set_by.get(instance)

    def put(self, instance: str, value: T) -> None:
        """Set an instance's own value."""
        self._set_by[instance] = value
        undo_log_of(instance).record(self._key, lambda: self._forget(instance))

    def drop(self, instance: str) -> None:
        """Take an instance's own value away, as the instance itself asks for."""
        self._set_by.pop(instance, None)
        undo_log_of(instance).forget(self._key)

    def _forget(self, instance: str) -> None:
        self._set_by.pop(instance, None)
        self._after_stop()

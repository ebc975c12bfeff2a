"""The object that a library keeps its one state per process in, made one per instance."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from runtime_node.isolation import environ
from runtime_node.isolation.current import CURRENT_INSTANCE
from runtime_node.isolation.undo_log import EXIT_HOOK, undo_log_of


class LibraryState:
    """The states of one library: the process's own, and one per instance and code location that uses it.

    `begin(state)` makes a new one out of the state of the instance's code location, else the process's; what
    is configured while code is imported holds for all instances of that code. `end` closes what an instance
    has opened, at its stop. Safe to use from any thread.
    """

    def __init__(
        self, for_all: Any, begin: Callable[[Any], Any], end: Callable[[Any], None] = lambda state: None
    ) -> None:
        self.for_all = for_all
        self._begin = begin
        self._end = end
        self._of: dict[str, Any] = {}
        self._lock = threading.RLock()

    def here(self) -> Any:
        """Return the state of whoever runs."""
        instance = CURRENT_INSTANCE.get()
        if not instance:
            return self.for_all
        state = self._of.get(instance)
        return self._first(instance) if state is None else state

    def known(self, state: Any) -> bool:
        """Tell whether `state` is one of these."""
        return state is self.for_all or any(state is each for each in list(self._of.values()))

    def _first(self, instance: str) -> Any:
        with self._lock:
            if instance not in self._of:
                scopes = environ.scopes_of(instance)
                inherited = next((self._of[each] for each in scopes if each in self._of), self.for_all)
                self._of[instance] = self._begin(inherited)
                # With the exit hooks, which find the threads alive that the library may need for its end.
                undo_log_of(instance).record((EXIT_HOOK, id(self)), lambda: self._forget(instance))
            return self._of[instance]

    def _forget(self, instance: str) -> None:
        state = self._of.pop(instance, None)
        if state is not None:
            self._end(state)


class Dispatch:
    """Has the attributes of whichever state is the running instance's; `fixed` ones are the same for all."""

    def __init__(self, states: LibraryState, **fixed: Any) -> None:
        self.__dict__.update(_states=states, _fixed=fixed)

    def __getattr__(self, name: str) -> Any:
        fixed: dict[str, Any] = self._fixed
        if name in fixed and CURRENT_INSTANCE.get():
            return fixed[name]
        return getattr(self._states.here(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._states.here(), name, value)

    def __copy__(self) -> Any:
        return self._states.here().__copy__()

"""Notes which instance changes a value that all apps of the process share, where it can be seen to do it.

A change that goes by unseen is found by `drift` all the same; here it gets its author.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

from runtime_node.isolation.current import LOADING_FOR, acting_instance
from runtime_node.isolation.undo_log import undo_log_of

_lock = threading.Lock()
_notes: dict[str, str] = {}
"""By the name of a value: the instance that was the last to change it."""
_watched: dict[str, frozenset[str]] = {}
"""By module: the attributes that are watched."""
_names: set[str] = set()
"""Those attributes of all modules: of most others no more has to be known."""
_called: dict[str, set[str]] = {}
"""By module: the functions whose calls are noted."""
_INSTANCES = "apps/"
_set = ModuleType.__setattr__


class NotingModule(ModuleType):
    """The class of a module whose attributes are watched."""

    def __setattr__(self, name: str, value: Any) -> None:
        # Nothing to note where nothing changes: `warnings.catch_warnings` puts back what is there, and
        # FastAPI uses one for each field. The first set spares all other names the rest.
        changes = name in _names and vars(self).get(name, _names) is not value
        if changes and name in _watched.get(self.__name__, ()):
            note(f"{self.__name__}.{name}", acting_instance())
        _set(self, name, value)

    def __delattr__(self, name: str) -> None:
        if name in _watched.get(self.__name__, ()):
            note(f"{self.__name__}.{name}", acting_instance())
        super().__delattr__(name)


def note(value: str, instance: str) -> None:
    """Note that `instance` changes a value; an empty one notes nothing."""
    if instance and not instance.startswith(_INSTANCES):
        # Code that is being imported for an instance.
        instance = LOADING_FOR.get()
    if instance:
        with _lock:
            _notes[value] = instance


def take_notes() -> dict[str, str]:
    """Return the notes since the last time, by the name of the value."""
    if not _notes:
        return {}
    with _lock:
        taken = dict(_notes)
        _notes.clear()
    return taken


def watch_attributes(module: ModuleType, names: frozenset[str]) -> None:
    """Note who sets or deletes these attributes of a module from now on."""
    _watched[module.__name__] = _watched.get(module.__name__, frozenset()) | names
    _names.update(names)
    if type(module) is ModuleType:
        module.__class__ = NotingModule


def watch_calls(module: ModuleType, name: str, values: str = "") -> None:
    """Note who calls a function of a module; it changes `values`, by default one of the function's name."""
    original = getattr(module, name)
    if name in _called.setdefault(module.__name__, set()):
        return
    _called[module.__name__].add(name)
    changed = values.split() or [f"{module.__name__}.{name}"]

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        instance = acting_instance()
        for value in changed if instance else ():
            note(value, instance)
        return original(*args, **kwargs)

    setattr(module, name, call)


def take_back_calls(module: ModuleType, name: str, undo: Callable[..., Any]) -> None:
    """Have what instances add by a function of a module taken away by `undo(*its arguments)` when they stop.

    What one adds serves all until then, and harms nobody.
    """
    original = getattr(module, name)
    if name in _called.setdefault(module.__name__, set()):
        return
    _called[module.__name__].add(name)

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        instance = acting_instance()
        if instance:
            key = (f"{module.__name__}.{name}", *args[:1])
            undo_log_of(instance).record(key, functools.partial(_take_back, undo, args, kwargs))
        return original(*args, **kwargs)

    setattr(module, name, call)


def _take_back(undo: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    undo(*args, **kwargs)

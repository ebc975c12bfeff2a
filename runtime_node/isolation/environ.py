"""`os.environ` per instance: what an app sets is seen by that app alone, and gone when it stops.

What it is given as `env` is not in it: code that instances share would read the first one's. Programs that it
starts without an `env` of their own get the process's environment: the C level knows of no instances.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from runtime_node.isolation.current import CURRENT_INSTANCE, LOADING_FOR, acting_instance
from runtime_node.isolation.refusals import RefusedError

_DELETED = object()


class RefusedEnvironmentError(RefusedError):
    """Raised where an app reads what it was not given this way. No KeyError: a default would hide it."""


_overlays: dict[str, dict[str, Any]] = {}
_parents: dict[str, str] = {}
_withheld: dict[str, Mapping[str, str]] = {}
"""By instance: for each variable that it is given by other means, how to read it."""


def open_overlay(instance: str, *, parent: str = "", env: Mapping[str, str] | None = None) -> None:
    """Start the instance's overlay with `env`, over that of `parent` (its code location)."""
    if env:
        _overlays.setdefault(instance, {}).update(env)
    if parent:
        _parents[instance] = parent


def belongs_to(instance: str, owner: str) -> bool:
    """Return whether an instance is `owner`, or runs code of the location that is."""
    return instance == owner or _parents.get(instance) == owner


def scopes_of(instance: str) -> tuple[str, ...]:
    """Return under which names there may be something of an instance: its own, and its code location's."""
    parent = _parents.get(instance)
    return (instance,) if parent is None else (instance, parent)


def withhold(instance: str, instead: Mapping[str, str]) -> None:
    """Have the instance told, where it reads one of these variables, what to read instead."""
    if instead:
        _withheld[instance] = instead


def give_up(instance: str, instead: Mapping[str, str]) -> None:
    """End `withhold` for an instance that did not come to be, unless it is being started anew by now."""
    if _withheld.get(instance) is instead:
        del _withheld[instance]


def withheld() -> Mapping[str, str]:
    """Return what is withheld from the running code, also from a module that is imported for an instance."""
    if not _withheld:
        return {}
    return _withheld.get(CURRENT_INSTANCE.get()) or _withheld.get(LOADING_FOR.get()) or {}


def refuse(key: str, instead: str) -> RefusedEnvironmentError:
    """Return the error for an app that looks for a variable which it is given by other means."""
    return RefusedEnvironmentError(
        f"an app in a shared process has no environment of its own: read {instead} instead of"
        f" os.environ[{key!r}], or run this app with isolation PROCESS"
    )


def instances_of(code: str) -> list[str]:
    """Return the instances that run the code of a location."""
    return [instance for instance, parent in list(_parents.items()) if parent == code]


def close_overlay(instance: str) -> None:
    """Forget what the instance set and was given."""
    _overlays.pop(instance, None)
    _parents.pop(instance, None)
    _withheld.pop(instance, None)


def install() -> None:
    """Put the overlay over `os.environ`. The patched methods cost a dictionary lookup more."""
    environ: Any = type(os.environ)
    get, put, delete = environ.__getitem__, environ.__setitem__, environ.__delitem__
    walk, count = environ.__iter__, environ.__len__

    def __getitem__(self: Any, key: str) -> str:  # noqa: N807
        if _overlays and self is os.environ:
            value = _look_up(CURRENT_INSTANCE.get(), key)
            if value is _DELETED:
                raise KeyError(key)
            if value is not None:
                return str(value)
        if _withheld and self is os.environ and key in (instead := withheld()):
            raise refuse(key, instead[key])
        return str(get(self, key))

    def __setitem__(self: Any, key: str, value: str) -> None:  # noqa: N807
        instance = acting_instance() if self is os.environ else ""
        if not instance:
            put(self, key, value)
            return
        # The same checks as the original's, without its effect.
        self.encodekey(key)
        self.encodevalue(value)
        _overlays.setdefault(instance, {})[key] = value

    def __delitem__(self: Any, key: str) -> None:  # noqa: N807
        instance = acting_instance() if self is os.environ else ""
        if not instance:
            delete(self, key)
            return
        self[key]
        _overlays.setdefault(instance, {})[key] = _DELETED

    def __iter__(self: Any) -> Iterator[str]:  # noqa: N807
        instance = CURRENT_INSTANCE.get() if _overlays and self is os.environ else ""
        if not instance:
            yield from walk(self)
            return
        keys = dict.fromkeys(walk(self))
        for scope in (_parents.get(instance, ""), instance):
            keys.update(dict.fromkeys(_overlays.get(scope, ())))
        yield from [key for key in keys if _look_up(instance, key) is not _DELETED]

    def __len__(self: Any) -> int:  # noqa: N807
        return sum(1 for _ in self) if _overlays and self is os.environ else int(count(self))

    environ.__getitem__, environ.__setitem__, environ.__delitem__ = __getitem__, __setitem__, __delitem__
    environ.__iter__, environ.__len__ = __iter__, __len__


def _look_up(instance: str, key: str) -> Any:
    if not instance:
        return None
    value = _overlays.get(instance, {}).get(key)
    if value is None:
        value = _overlays.get(_parents.get(instance, ""), {}).get(key)
    return value

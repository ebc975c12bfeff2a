"""`os.environ` per instance: what an app sets is seen by that app alone, and gone when it stops.

An overlay on the process's environment. Programs that an app starts without an `env` of their own get the
process's environment, not the overlay: the C level knows of no instances.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from runtime_node.isolation.current import CURRENT_INSTANCE, acting_instance

_DELETED = object()
_overlays: dict[str, dict[str, Any]] = {}
_parents: dict[str, str] = {}


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


def close_overlay(instance: str) -> None:
    """Forget what the instance set."""
    _overlays.pop(instance, None)
    _parents.pop(instance, None)


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

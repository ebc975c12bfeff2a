"""Alembic's `context` and `op` per instance: migrations of several apps at once, each on its own database.

Both are modules whose functions call one object per process, which every run of migrations puts there. Here
they call the object of the instance that runs, the last one it has put there.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from runtime_node.isolation.current import CURRENT_INSTANCE

_installed: dict[tuple[type, str], list[Any]] = {}
"""By class and instance: the objects put in place and not yet taken away, the newest last."""


class _Current:
    """Stands for a class's object of whoever runs."""

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def __getattr__(self, name: str) -> Any:
        objects = _installed.get((self._kind, CURRENT_INSTANCE.get()))
        if not objects:
            # As Alembic's own, where no migration has run yet.
            raise NameError(
                f"Can't invoke function {name!r}, as the proxy object has not yet been established for the"
                f" Alembic {self._kind.__name__!r} class"
            )
        return getattr(objects[-1], name)


def keep_apart(module: Any) -> None:
    """Patch `alembic.util.langhelpers`."""
    proxy = module.ModuleClsProxy
    if not all(hasattr(proxy, name) for name in ("_install_proxy", "_remove_proxy", "_setups")):
        return

    def install_proxy(self: Any) -> None:
        kind = type(self)
        attributes, modules = self._setups[kind]
        _installed.setdefault((kind, CURRENT_INSTANCE.get()), []).append(self)
        for names, _ in modules:
            if not isinstance(names.get("_proxy"), _Current):
                _serve(names, _Current(kind), frozenset(attributes))

    def remove_proxy(self: Any) -> None:
        key = type(self), CURRENT_INSTANCE.get()
        objects = _installed.get(key, [])
        if self in objects:
            objects.remove(self)
        if not objects:
            _installed.pop(key, None)

    proxy._install_proxy, proxy._remove_proxy = install_proxy, remove_proxy


def _serve(names: MutableMapping[str, Any], current: _Current, attributes: frozenset[str]) -> None:
    def __getattr__(name: str) -> Any:  # noqa: N807 - a module's own
        if name in attributes:
            try:
                return getattr(current, name)
            except NameError as fault:
                raise AttributeError(str(fault)) from None
        raise AttributeError(f"module {names['__name__']!r} has no attribute {name!r}")

    names["_proxy"] = current
    names["__getattr__"] = __getattr__

"""Patches of modules that need not be loaded: each is made when its module has been imported, by whomever."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Patch = Callable[[Any], None]
"""Changes a module that has just been loaded."""

_lock = threading.Lock()
_patches: dict[str, list[Patch]] = {}
_searches = 0


def when_imported(name: str, patch: Patch) -> None:
    """Have `patch` called with the module `name`: now if it is loaded, else right after it will be."""
    with _lock:
        _patches.setdefault(name, []).append(patch)
    module = sys.modules.get(name)
    if module is not None:
        patch(module)


def loaded(name: str, module: ModuleType) -> None:
    """Make the patches of a module that was loaded by other means: `name` as its author wrote it."""
    for patch in _patches.get(name, ()):
        patch(module)


def searches() -> int:
    """Return how many modules that all share were looked for so far."""
    return _searches


class _Finder:
    """Finds nothing itself: it lets the others find the modules that are to be patched."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec that another finder has, with a loader that patches what it has loaded."""
        global _searches  # noqa: PLW0603 - imports are the process's
        _searches += 1
        if name not in _patches:
            return None
        for finder in list(sys.meta_path):
            spec = finder.find_spec(name, path, target) if finder is not _Finder else None
            if spec is None:
                continue
            loader: Any = spec.loader
            run = getattr(loader, "exec_module", None)
            if run is not None:

                def exec_module(module: ModuleType, run: Callable[[ModuleType], None] = run) -> None:
                    run(module)
                    loaded(name, module)

                # On the object: code that looks at a module's loader still finds one of the usual class.
                loader.exec_module = exec_module
            return spec
        return None


def install() -> None:
    """Take note of imports from now on."""
    sys.meta_path.insert(0, _Finder)

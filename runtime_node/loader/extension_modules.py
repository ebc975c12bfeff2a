"""C extensions of code locations: each can be in a process once, under its own name, from one place.

A package with an extension module is loaded unprivately for the first location that has it; a second
location, or one whose package is installed as well, is refused with a sentence that names both.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder
from pathlib import Path

# Walking a vendored giant must not delay an app's start; what is found late fails late but clearly.
_MOST_ENTRIES = 5_000
_SUFFIXES = tuple(EXTENSION_SUFFIXES)
_lock = threading.Lock()
_claimed: dict[str, str] = {}


def has_extensions(spec: ModuleSpec) -> bool:
    """Whether the top-level module is an extension module or a package with one inside."""
    if spec.origin is not None and spec.origin.endswith(_SUFFIXES):
        return True
    seen = 0
    for location in spec.submodule_search_locations or ():
        for _, _, files in os.walk(location):
            seen += len(files)
            if any(file.endswith(_SUFFIXES) for file in files):
                return True
            if seen > _MOST_ENTRIES:
                return False
    return False


def claim(top: str, spec: ModuleSpec, roots: Sequence[str]) -> str | None:
    """Let the location at `roots` load `top` under its own name; return a sentence if it cannot."""
    root = _root_of(spec, roots)
    with _lock:
        holder = _claimed.get(top)
        if holder is None:
            elsewhere = _loaded_from(top) or _installed_at(top)
            if elsewhere is None:
                _claimed[top] = root
                return None
            holder = elsewhere
        if holder == root:
            return None
    return (
        f"{top} in {root} has C extensions and is loaded from {holder} already; a C extension can be in a"
        " process only once. Use isolation PROCESS for this app, or one version for both"
    )


def check_visible(top: str, roots: Sequence[str]) -> None:
    """Raise ModuleNotFoundError if `top` is in the process only because another location brought it."""
    holder = _claimed.get(top)
    if holder is not None and holder not in roots:
        raise ModuleNotFoundError(f"No module named {top!r}", name=top)


def find_spec(top: str) -> ModuleSpec | None:
    """Return the spec of a claimed top-level module, for the import system."""
    root = _claimed.get(top)
    return None if root is None else PathFinder.find_spec(top, [root])


def _root_of(spec: ModuleSpec, roots: Sequence[str]) -> str:
    place = spec.origin or next(iter(spec.submodule_search_locations or ()), "")
    return next((root for root in roots if place.startswith(root + os.sep)), str(Path(place).parent))


def _loaded_from(top: str) -> str | None:
    module = sys.modules.get(top)
    if module is None:
        return None
    path = getattr(module, "__file__", None)
    return str(Path(path).parent) if path else "the node itself"


def _installed_at(top: str) -> str | None:
    found = PathFinder.find_spec(top)
    return (
        None
        if found is None
        else str(Path(found.origin).parent)
        if found.origin
        else "the installed packages"
    )

"""Lists the code that a node can import, by its top-level names, running none of it."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from runtime_node.loader.trees import label_of

MOST = 2_000
"""Names at most; of a node with more none is told, which keeps no app off it."""

_SOURCES = (".py", ".pyc", ".so")


def importable(app_dirs: Sequence[Path], path: Iterable[str] | None = None) -> list[str]:
    """Return the modules and packages of app directories, these directories' own names, and installed ones.

    `path` is `sys.path` unless given. Without the standard library, and names that begin with an underscore;
    nothing if there are too many. A directory that cannot be read has nothing in it.
    """
    directories = [os.path.abspath(it) for it in app_dirs]
    found = {label_of(Path(it)) for it in directories}
    own = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    installed = [it for it in (sys.path if path is None else path) if it not in own]
    for directory in dict.fromkeys([*directories, *installed]):
        found.update(it for it in _modules_in(directory) if it.isidentifier() and not it.startswith("_"))
    return sorted(found) if len(found) <= MOST else []


def _modules_in(directory: str) -> Iterator[str]:
    try:
        with os.scandir(directory or ".") as entries:
            for entry in entries:
                if entry.name.endswith(_SOURCES):
                    yield entry.name.partition(".")[0]
                elif entry.is_dir():
                    yield entry.name
    except OSError:
        return

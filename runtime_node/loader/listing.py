"""Lists the code that a node can import, by top-level names, running none of it; tells what is missing."""

from __future__ import annotations

import difflib
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from runtime_node.loader.trees import label_of
from services.rpc.errors import SupervisorError

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


def no_such_module(name: str, app_dirs: Sequence[Path]) -> SupervisorError:
    """Return the error for a module that is nowhere to be found, with what may have been meant by it."""
    hint = ""
    if name.endswith(".py"):
        hint = ": an entrypoint has the name of a module, without '.py'"
    elif "." not in name:
        near = difflib.get_close_matches(name, importable(app_dirs, []), n=3, cutoff=0.6)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
    message = f"there is no module {name!r} in this node's app directories or installed packages{hint}"
    return SupervisorError("ENTRYPOINT_MODULE_NOT_FOUND", message)


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

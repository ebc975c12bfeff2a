"""Which code location an entrypoint means, and the module trees of locations: who uses them, when they go.

A location's tree is loaded once and shared by all its users, for that is what shares memory between
instances. Code that changed on disk gets a new tree; the old one goes with its last user.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runtime_node.loader.entrypoint import Entrypoint
from runtime_node.loader.trees import PRIVATE_PACKAGES, ModuleTree, label_of

# A dormant app's code stays warm for its next request, up to this many locations; the oldest goes first.
KEEP_UNUSED = 16


@dataclass(slots=True)
class _Shared:
    tree: ModuleTree
    users: int = 0
    retired: bool = field(default=False)


class Lease:
    """One user's right to a tree. `release` may be called more than once."""

    def __init__(self, locations: Locations, shared: _Shared) -> None:
        self.tree = shared.tree
        self._locations = locations
        self._shared: _Shared | None = shared

    def release(self, *, failed: bool = False) -> None:
        """Give the tree up; `failed` unloads it at once if nobody else uses it."""
        shared, self._shared = self._shared, None
        if shared is not None:
            self._locations.give_back(shared, failed=failed)


class Locations:
    """The code locations of a node. Safe to use from any thread."""

    def __init__(self, app_dirs: Sequence[Path], private_packages: Iterable[str] = PRIVATE_PACKAGES) -> None:
        # Links stay: one that is switched to another release means that one's code from then on.
        self.directories = tuple(Path(os.path.abspath(directory)) for directory in app_dirs)
        self._private_packages = frozenset(private_packages)
        self._lock = threading.Lock()
        self._current: dict[Path, _Shared] = {}
        self._unused: OrderedDict[int, _Shared] = OrderedDict()

    def locate(self, entrypoint: Entrypoint) -> tuple[Path | None, Entrypoint]:
        """Return the directory whose code is meant, None for an installed package, and the entrypoint in it.

        The first directory that has the entrypoint's top-level module wins. An entrypoint whose first part
        is found nowhere but is the name of an app-dir means that app-dir: with `--app-dir apps_v1
        --app-dir apps_v2`, `shop.web:app` is the first one's and `apps_v2.shop.web:app` the second one's.
        Signs that cannot be in an identifier are written `_`.
        """
        for directory in self.directories:
            if _has(directory, entrypoint.top):
                return directory, entrypoint
        rest = entrypoint.module.partition(".")[2]
        for directory in self.directories:
            if rest and label_of(directory) == entrypoint.top and _has(directory, rest.partition(".")[0]):
                return directory, Entrypoint(rest, entrypoint.attributes)
        return None, entrypoint

    def lease(self, directory: Path) -> Lease:
        """Return the right to use the directory's tree, a new one if its files have changed."""
        dropped: list[ModuleTree] = []
        with self._lock:
            shared = self._current.get(directory)
            if shared is not None and shared.tree.is_stale():
                shared.retired = True
                if not shared.users:
                    self._unused.pop(id(shared), None)
                    dropped.append(shared.tree)
                shared = None
            if shared is None:
                shared = _Shared(ModuleTree(label_of(directory), [directory], self._private_packages))
                self._current[directory] = shared
            shared.users += 1
            self._unused.pop(id(shared), None)
        for tree in dropped:
            tree.unload()
        return Lease(self, shared)

    def lease_private(self, directory: Path | None, top: str) -> Lease:
        """Return a tree for nobody else, of the directory or of the installed package `top`."""
        if directory is None:
            tree = ModuleTree("own", [], self._private_packages | {top})
        else:
            tree = ModuleTree(f"own_{label_of(directory)}", [directory], self._private_packages)
        return Lease(self, _Shared(tree, users=1, retired=True))

    def give_back(self, shared: _Shared, *, failed: bool) -> None:
        """Take one user off a tree, and unload what nobody uses."""
        dropped: list[ModuleTree] = []
        with self._lock:
            shared.users -= 1
            if shared.users:
                return
            if shared.retired or failed:
                self._forget(shared)
                dropped.append(shared.tree)
            else:
                self._unused[id(shared)] = shared
            while len(self._unused) > KEEP_UNUSED:
                oldest = next(iter(self._unused.values()))
                self._forget(oldest)
                dropped.append(oldest.tree)
        for tree in dropped:
            tree.unload()

    def close(self) -> None:
        """Unload the trees that nobody uses."""
        with self._lock:
            unused = list(self._unused.values())
            for shared in unused:
                self._forget(shared)
        for shared in unused:
            shared.tree.unload()

    def _forget(self, shared: _Shared) -> None:
        self._unused.pop(id(shared), None)
        for directory in [d for d, current in self._current.items() if current is shared]:
            del self._current[directory]


def _has(directory: Path, top: str) -> bool:
    # Looked at before each start: what most apps are is told by a name, the rest by a list of all names.
    place = os.path.join(directory, top)
    if os.path.isfile(f"{place}.py") or os.path.isdir(place):
        return True
    return any(
        file.name.partition(".")[0] == top and file.suffix in {".py", ".pyc", ".so", ".pyd"}
        for file in directory.glob(f"{top}.*")
    )

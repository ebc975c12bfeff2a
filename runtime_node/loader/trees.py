"""Private module trees: one code location's own view of the modules that come from it.

A module of a location lives in `sys.modules` under a name of its own (`shop` of `apps_a` is `shop__apps_a`),
so `sys.modules[cls.__module__]`, pickle and typing find it. Its `__builtins__` carry an `__import__` that
knows the location, so an import finds the same tree from any thread at any time.
"""

from __future__ import annotations

import builtins
import importlib.util
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.machinery import (
    ExtensionFileLoader,
    ModuleSpec,
    PathFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from pathlib import Path
from types import ModuleType
from typing import Any

from runtime_node.isolation.caches import clear_typing, evict
from runtime_node.isolation.current import TREE_KEY
from runtime_node.isolation.undo_log import undo
from runtime_node.loader import extension_modules
from runtime_node.loader.process_only import IsolationUnsupportedError, refusal_of

PRIVATE_PACKAGES = frozenset({"sqlmodel"})
"""Installed packages of which each tree gets a copy: `SQLModel.metadata` is one registry of tables, so
two apps with tables of one name could not share it, and `create_all` would make the other app's tables."""

_UNDECIDED = "?"
_FRESH_SECONDS = 2.0
_MOST_ABSENT = 1_000


class ModuleTree:
    """The modules of one code location. `roots` are its directories; `label` is part of its modules' names,
    with a number behind it while another tree has it.

    `private` are installed packages that it gets a copy of. Safe to use from any thread.
    """

    def __init__(self, label: str, roots: Sequence[Path], private: Iterable[str] = PRIVATE_PACKAGES) -> None:
        self.label = _reserve(label)
        self.roots = [str(root) for root in roots]
        self.scope = f"code/{self.label}"
        """The instance that side effects of importing the tree's modules count as."""
        self._private = frozenset(private)
        self._unloaded = False
        self._lock = threading.RLock()
        self._names: dict[str, str | None] = {}
        self._files: dict[str, tuple[int, int]] = {}
        self._absent: dict[tuple[str, tuple[str, ...]], None] = {}
        """Modules that were looked for and not there, by name and, in a package, where."""
        self._roots_seen = [_stamp(root) for root in self.roots]
        self._builtins = ModuleType(f"builtins__{self.label}")
        self.builtins: dict[str, Any] = self._builtins.__dict__
        own = {key: self.builtins[key] for key in ("__name__", "__spec__", "__loader__", "__package__")}
        self.builtins.update(builtins.__dict__)
        self.builtins.update(own)
        self.builtins["__import__"] = self._make_import()
        self.builtins[TREE_KEY] = self
        self._register("builtins", self._builtins.__name__)
        sys.modules[self._builtins.__name__] = self._builtins

    def private_name(self, name: str) -> str | None:
        """Return the name that module `name` has in this tree, or None if the tree does not provide it.

        Raises IsolationUnsupportedError for code that cannot be private.
        """
        top = name.partition(".")[0]
        private = self._names.get(top, _UNDECIDED)
        if private is _UNDECIDED:
            private = self._decide(top)
        return None if private is None else private + name[len(top) :]

    def import_module(self, name: str) -> ModuleType:
        """Import module `name` as code of this tree does."""
        module: ModuleType = self.builtins["__import__"](name, None, None, ("__name__",), 0)
        return module

    def plain(self, name: str) -> str:
        """Return `name` as the app's author wrote it."""
        for top, private in self._names.items():
            if private is not None and (name == private or name.startswith(private + ".")):
                return top + name[len(private) :]
        return name

    def modules(self) -> Iterator[ModuleType]:
        """Yield the modules that are loaded now."""
        tops = self.tops()
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] in tops:
                yield module

    def tops(self) -> frozenset[str]:
        """Return the first names of the tree's modules, as they are in `sys.modules`."""
        return frozenset(private for private in self._names.values() if private is not None)

    def is_stale(self) -> bool:
        """Whether a file that was loaded has changed or gone since, or one that was missed has come."""
        if any(_stamp(path) != stamp for path, stamp in list(self._files.items())):
            return True
        seen, self._roots_seen = self._roots_seen, [_stamp(root) for root in self.roots]
        for name, path in list(self._absent):
            # What is not in a package can only have come where a root has changed.
            if path and PathFinder.find_spec(name, path) is not None:
                return True
            if not path and seen != self._roots_seen and self._locate(name) is not None:
                return True
        return False

    def unload(self) -> None:
        """Take the tree's modules and their loggers out of the process's tables. Repeats do nothing."""
        with self._lock:
            if self._unloaded:
                return
            self._unloaded = True
            tops = self.tops()
            for top in tops:
                _TREES.pop(top, None)
            for table in (sys.modules, logging.Logger.manager.loggerDict):
                for name in [name for name in list(table) if name.partition(".")[0] in tops]:
                    table.pop(name, None)
            for root in self.roots:
                for path in [p for p in sys.path_importer_cache if p == root or p.startswith(root + os.sep)]:
                    sys.path_importer_cache.pop(path, None)
            _labels.discard(self.label)
        undo(self.scope)
        evict(tops)
        clear_typing()

    def add_roots(self, roots: Sequence[str], *, first: bool) -> None:
        """Look for modules in further directories as well."""
        with self._lock:
            new = [root for root in roots if root and root not in self.roots]
            self.roots[:] = [*new, *self.roots] if first else [*self.roots, *new]
            self.forget_missing()

    def forget_missing(self) -> None:
        """Look again for modules that were not there."""
        with self._lock:
            for top in [top for top, private in self._names.items() if private is None]:
                del self._names[top]

    def find_spec(self, name: str, path: Sequence[str] | None) -> ModuleSpec | None:
        """Return the spec of a module of this tree by its private name, for the import system."""
        found = PathFinder.find_spec(name, path) if path is not None else self._locate(self.plain(name))
        if found is None:
            self._miss(name, path or ())
            return None
        loader = found.loader
        if loader is None or found.origin is None:
            # A list, not the import system's namespace path: that one would be looked up on sys.path again.
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = list(found.submodule_search_locations or ())
            return spec
        if isinstance(loader, SourceFileLoader):
            own: SourceFileLoader | SourcelessFileLoader = _SourceLoader(name, found.origin, self)
        elif isinstance(loader, SourcelessFileLoader):
            own = _BytecodeLoader(name, found.origin, self)
        elif isinstance(loader, ExtensionFileLoader):
            raise IsolationUnsupportedError(f"{self.plain(name)} is a C extension", name=self.plain(name))
        else:
            raise IsolationUnsupportedError(
                f"{self.plain(name)} is loaded by {type(loader).__name__}, not from a file",
                name=self.plain(name),
            )
        return importlib.util.spec_from_file_location(
            name, found.origin, loader=own, submodule_search_locations=found.submodule_search_locations
        )

    def note_file(self, path: str) -> None:
        """Remember the state of a file as it is loaded."""
        self._files[path] = _stamp(path)

    def _miss(self, name: str, path: Sequence[str]) -> None:
        if len(self._absent) < _MOST_ABSENT:
            self._absent[name, tuple(path)] = None

    def _locate(self, top: str) -> ModuleSpec | None:
        found = PathFinder.find_spec(top, self.roots) if self.roots else None
        if found is not None and found.origin is None:
            # A directory without `__init__.py`: Python takes a package from further along the path rather
            # than that, and without one all such directories together.
            everywhere = PathFinder.find_spec(top, [*self.roots, *sys.path])
            found = everywhere if everywhere is None or everywhere.origin is None else None
        if found is None and top in self._private:
            found = PathFinder.find_spec(top)
        return found

    def _decide(self, top: str) -> str | None:
        with self._lock:
            if top in self._names:
                return self._names[top]
            if top in sys.builtin_module_names or top == "__main__":
                self._names[top] = None
                return None
            found = self._locate(top)
            refusal = refusal_of(top)
            # Vendored it is the same package; a single file of that name is something of the app's own.
            if refusal is not None and (found is None or found.submodule_search_locations is not None):
                raise refusal
            if found is None:
                extension_modules.check_visible(top, self.roots)
                self._miss(top, ())
                self._names[top] = None
                return None
            if extension_modules.has_extensions(found):
                elsewhere = extension_modules.claim(top, found, self.roots)
                if elsewhere is not None:
                    raise IsolationUnsupportedError(elsewhere, name=top)
                self._names[top] = None
                return None
            return self._register(top, f"{top}__{self.label}")

    def _register(self, top: str, private: str) -> str:
        self._names[top] = private
        _TREES[private] = self
        return private

    def _make_import(self) -> Any:
        names = self._names
        original = builtins.__import__

        def __import__(  # noqa: N807 - its frame shows in tracebacks under the name of what it stands for
            name: str,
            globals: Mapping[str, object] | None = None,
            locals: Mapping[str, object] | None = None,
            fromlist: Sequence[str] | None = (),
            level: int = 0,
        ) -> ModuleType:
            if level:
                return original(name, globals, locals, fromlist or (), level)
            top = name.partition(".")[0]
            private = names.get(top, _UNDECIDED)
            if private is _UNDECIDED:
                private = self._decide(top)
            if private is None:
                return original(name, globals, locals, fromlist or (), 0)
            try:
                return original(private + name[len(top) :], globals, locals, fromlist or (), 0)
            except ModuleNotFoundError as fault:
                self.speak_plainly(fault)
                raise

        return __import__

    def speak_plainly(self, fault: ModuleNotFoundError) -> None:
        """Name modules in `fault` as the app's author wrote them."""
        if fault.name is None:
            return
        plain = self.plain(fault.name)
        if plain != fault.name:
            fault.msg = fault.msg.replace(fault.name, plain).replace(
                fault.name.partition(".")[0], plain.partition(".")[0]
            )
            fault.args = (fault.msg,)
            fault.name = plain


class _SourceLoader(SourceFileLoader):
    def __init__(self, fullname: str, path: str, tree: ModuleTree) -> None:
        super().__init__(fullname, path)
        self._tree = tree

    def path_stats(self, path: str) -> Mapping[str, Any]:
        """Return what tells a file's cached bytecode from that of another state of it.

        Raises OSError, for no cache, for a file that was just written: bytecode knows whole seconds alone,
        so it could be of what the file was a moment ago.
        """
        stats: Mapping[str, Any] = super().path_stats(path)
        if time.time() - stats["mtime"] < _FRESH_SECONDS:
            raise OSError(f"{path} has just been written")
        return stats

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code with the builtins of its tree."""
        self._tree.note_file(self.path)
        module.__dict__["__builtins__"] = self._tree.builtins
        super().exec_module(module)


class _BytecodeLoader(SourcelessFileLoader):
    def __init__(self, fullname: str, path: str, tree: ModuleTree) -> None:
        super().__init__(fullname, path)
        self._tree = tree

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code with the builtins of its tree."""
        self._tree.note_file(self.path)
        module.__dict__["__builtins__"] = self._tree.builtins
        super().exec_module(module)


def tree_of_module(name: str) -> ModuleTree | None:
    """Return the tree that a module of this (private) name belongs to."""
    return _TREES.get(name.partition(".")[0])


def all_trees() -> set[ModuleTree]:
    """Return every tree that is loaded."""
    return set(_TREES.values())


def label_of(directory: Path) -> str:
    """Return the label of a directory: its name, made part of an identifier."""
    return re.sub(r"\W", "_", directory.name) or "root"


def _reserve(base: str) -> str:
    with _labels_lock:
        label, number = base, 2
        while label in _labels:
            label, number = f"{base}_{number}", number + 1
        _labels.add(label)
        return label


def _stamp(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)


_labels: set[str] = set()
_labels_lock = threading.Lock()
_TREES: dict[str, ModuleTree] = {}

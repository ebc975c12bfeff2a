"""The process-wide import hooks of private module trees: a finder, and imports by a name in a string.

An `import` in a tree's own code never comes here. This serves shared code that imports on an app's behalf
(`importlib.import_module("shop.settings")` called by a framework) and the lookup of vendored metadata.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import metadata
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from runtime_node.isolation.current import CURRENT_INSTANCE, LOADING_FOR, TREE_KEY, acting_instance, is_import
from runtime_node.loader import extension_modules, paths
from runtime_node.loader.process_only import refusal_of
from runtime_node.loader.trees import ModuleTree, all_trees, tree_of_module

# Enough to get from a framework's helper back to the app's code that called it.
_MOST_FRAMES = 60
_SKIPPED = ("importlib", "_frozen_importlib", "runtime_node.loader")
_LOADING: ContextVar[ModuleTree | None] = ContextVar("loading_tree", default=None)
_by_instance: dict[str, ModuleTree] = {}
_lock = threading.Lock()
_installed = False


def install() -> None:
    """Put the hooks in place, once per process."""
    global _installed  # noqa: PLW0603 - import hooks are the process's, like sys.meta_path itself
    with _lock:
        if _installed:
            return
        _installed = True
        sys.meta_path.insert(0, TreeFinder)
        sys.meta_path.append(AliasFinder)
        _patch_import_module()
        paths.install(_tree_of_caller)


def bind(instance: str, tree: ModuleTree) -> None:
    """Let shared code that runs for `instance` see `tree`."""
    _by_instance[instance] = tree


def unbind(instance: str, tree: ModuleTree) -> None:
    """End `bind`, unless the instance was bound to another tree since."""
    if _by_instance.get(instance) is tree:
        del _by_instance[instance]


@contextmanager
def loading(tree: ModuleTree | None) -> Iterator[None]:
    """Let shared code that this block calls see `tree`."""
    token = _LOADING.set(tree)
    try:
        yield
    finally:
        _LOADING.reset(token)


def current_tree(requested: str = "") -> ModuleTree | None:
    """Return the tree that the calling code belongs to or works for; None for shared code on its own.

    With the name of a `requested` module, shared code works for itself when it asks for modules of its own
    package, and while it is imported: what it binds then, it binds for all.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_SKIPPED):
        frame = frame.f_back
    if frame is not None:
        tree = frame.f_builtins.get(TREE_KEY)
        if tree is not None:
            return _as_tree(tree)
        caller = frame.f_globals.get("__name__", "").partition(".")[0]
        if requested and (is_import(frame) or caller == requested.partition(".")[0]):
            return None
    tree = _LOADING.get() or _by_instance.get(CURRENT_INSTANCE.get())
    if tree is not None:
        return tree
    for _ in range(_MOST_FRAMES):
        if frame is None:
            return None
        tree = frame.f_builtins.get(TREE_KEY)
        if tree is not None:
            return _as_tree(tree)
        frame = frame.f_back
    return None


def _tree_of_caller() -> ModuleTree | None:
    """Return the tree for which `sys.path` is changed now: that of the code that does it, or of the instance
    for which shared code does it, as Alembic for `prepend_sys_path`. What that does at its import is for all.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("runtime_node.loader"):
        frame = frame.f_back
    tree = frame.f_builtins.get(TREE_KEY) if frame is not None else None
    if tree is not None:
        return _as_tree(tree)
    return current_tree() if acting_instance() else None


class TreeFinder:
    """First on `sys.meta_path`: private names, claimed C extensions, metadata of vendored packages."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module of a tree, None for all others."""
        tree = tree_of_module(name)
        if tree is not None:
            return tree.find_spec(name, path)
        refusal = refusal_of(name) if CURRENT_INSTANCE.get() or LOADING_FOR.get() else None
        if refusal is not None:  # asked for by shared code on an app's behalf
            raise refusal
        return extension_modules.find_spec(name) if path is None else None

    @staticmethod
    def find_distributions(context: metadata.DistributionFinder.Context) -> Iterable[metadata.Distribution]:
        """Yield what the calling app's location has installed in it."""
        tree = current_tree()
        if tree is None or not tree.roots:
            return ()
        own = metadata.DistributionFinder.Context(name=context.name, path=tree.roots)
        return metadata.MetadataPathFinder.find_distributions(own)

    @staticmethod
    def invalidate_caches() -> None:
        """Let trees look again for modules that were not there."""
        for tree in all_trees():
            tree.forget_missing()


class AliasFinder:
    """Last on `sys.meta_path`: a name that only trees have, asked for by shared code's own `__import__`."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of an alias that resolves to the calling app's module whenever it is used."""
        tree = current_tree(name)
        if tree is None or tree.private_name(name) is None:
            return None
        if path is not None and not isinstance(sys.modules.get(name.rpartition(".")[0]), AliasModule):
            return None
        module = tree.import_module(name)
        # Frameworks look up here where a package keeps its templates and files.
        spec = ModuleSpec(name, AliasLoader(), origin=getattr(module, "__file__", None))
        if hasattr(module, "__path__"):
            spec.submodule_search_locations = list(module.__path__)
        return spec


class AliasModule(ModuleType):
    """Stands in `sys.modules` for the modules of this name in all trees; each caller sees its own."""

    @property
    def __spec__(self) -> ModuleSpec | None:  # type: ignore[override]
        """The spec of the caller's own module, None if it has none of this name."""
        try:
            return self._real().__spec__
        except AttributeError:
            return None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__") and name != "__file__":
            raise AttributeError(name)
        return getattr(self._real(), name)

    def __dir__(self) -> list[str]:
        return dir(self._real())

    def _real(self) -> ModuleType:
        tree = current_tree(self.__name__)
        if tree is None or tree.private_name(self.__name__) is None:
            raise AttributeError(f"module {self.__name__!r} belongs to other apps on this node")
        return tree.import_module(self.__name__)


class AliasLoader(Loader):
    """Makes alias modules; there is nothing to run."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the alias."""
        return AliasModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Run nothing: the modules behind it are imported in their trees, its submodules are aliases too."""
        if hasattr(module, "__path__"):
            module.__path__ = []

    def get_data(self, path: str) -> bytes:
        """Return the contents of a file beside a module, as `pkgutil.get_data` asks for them."""
        return Path(path).read_bytes()


def _patch_import_module() -> None:
    # `importlib.import_module` looks this up at each call: code that imported the function early is served.
    machinery: Any = importlib._bootstrap
    original = machinery._gcd_import

    def _gcd_import(name: str, package: str | None = None, level: int = 0) -> ModuleType:
        if level > 0:
            name = machinery._resolve_name(name, package, level)
        if name.partition(".")[0] not in sys.stdlib_module_names:
            tree = current_tree(name)
            if tree is not None:
                private = tree.private_name(name)
                if private is not None:
                    try:
                        module: ModuleType = original(private)
                    except ModuleNotFoundError as fault:
                        tree.speak_plainly(fault)
                        raise
                    return module
        result: ModuleType = original(name)
        return result

    machinery._gcd_import = _gcd_import


def _as_tree(value: Any) -> ModuleTree:
    assert isinstance(value, ModuleTree)
    return value

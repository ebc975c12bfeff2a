"""Tells a factory from an app, and what it needs of its process, by reading the source without running any.

Used to choose an isolation tier before code runs: importing an unknown app object just to look at it
would run it in the node's process.
"""

from __future__ import annotations

import ast
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Literal

from runtime_node.loader.detect import CONTEXT_NAMES
from runtime_node.loader.entrypoint import Entrypoint
from runtime_node.loader.process_only import PROCESS_ONLY

Kind = Literal["factory", "bare factory", "app"]
"""A bare factory takes no context."""
_MOST_STEPS = 6
# Read before a start whose tier is not given: a bound on what it may cost.
_MOST_MODULES = 200
_APP_PARAMETERS = ({"scope", "receive", "send"}, {"environ", "start_response"}, {"scope"})


def kind_of(directory: Path | None, entrypoint: Entrypoint) -> Kind | None:
    """Return what `entrypoint` names in `directory` (None: the installed packages); None if unclear."""
    if len(entrypoint.attributes) != 1:
        return None
    return _follow(directory, entrypoint.module, entrypoint.attributes[0], _MOST_STEPS)


def is_installed(top: str) -> bool:
    """Tell whether a package or module of that name can be imported, whatever is in it."""
    return top in sys.modules or top in sys.builtin_module_names or PathFinder.find_spec(top) is not None


def needs_process(directory: Path | None, entrypoint: Entrypoint) -> str | None:
    """Return the package of `PROCESS_ONLY` that the app's own modules import, if they import one.

    Looks at the modules that lead from the entrypoint's through `import` statements, wherever in a function
    they stand, but for those that may fail.
    """
    waiting, seen = deque([entrypoint.module]), {entrypoint.module}
    while waiting and len(seen) <= _MOST_MODULES:
        module = waiting.popleft()
        source = _source_of(directory, module, installed=directory is None)
        if source is None:
            continue
        package = module if source.name == "__init__.py" else module.rpartition(".")[0]
        try:
            imported = _imported_by(source, source.stat().st_mtime_ns, package)
        except (OSError, SyntaxError, ValueError, RecursionError):
            continue
        for name in imported:
            top = name.partition(".")[0]
            if top in PROCESS_ONLY and _source_of(directory, top, installed=False) is None:
                return top
            if name not in seen and (directory is not None or top == entrypoint.top):
                seen.add(name)
                waiting.append(name)
    return None


@lru_cache(maxsize=1024)
def _imported_by(source: Path, modified: int, package: str) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for statement in _needed(ast.parse(source.read_bytes()).body):
        if isinstance(statement, ast.Import):
            names.update(dict.fromkeys(alias.name for alias in statement.names))
        elif isinstance(statement, ast.ImportFrom):
            module = _absolute(package, statement)
            names[module] = None
            names.update(dict.fromkeys(f"{module}.{alias.name}" for alias in statement.names))
    return tuple(names)


def _needed(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Yield the statements of a module at any depth, but for those that may fail or are for type checkers."""
    for node in body:
        if isinstance(node, ast.Try) and node.handlers:
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from _needed(node.orelse)
            continue
        if isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield node
            yield from _needed(ast.iter_child_nodes(node))


def _follow(directory: Path | None, module: str, name: str, steps: int) -> Kind | None:
    source = _source_of(directory, module)
    if source is None or steps == 0:
        return None
    try:
        binding = _bound_in(source, source.stat().st_mtime_ns, name)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None
    if isinstance(binding, ast.FunctionDef | ast.AsyncFunctionDef):
        return _kind_of_function(binding)
    if isinstance(binding, ast.ImportFrom):
        original = next(alias.name for alias in binding.names if (alias.asname or alias.name) == name)
        package = module if source.name == "__init__.py" else module.rpartition(".")[0]
        return _follow(directory, _absolute(package, binding), original, steps - 1)
    if isinstance(binding, ast.Call):
        called = binding.func
        word = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        return None if word == "partial" else "app"
    if isinstance(binding, ast.Name):
        return _follow(directory, module, binding.id, steps - 1)
    return None


@lru_cache(maxsize=256)
def _bound_in(source: Path, modified: int, name: str) -> Any:
    return _binding(ast.parse(source.read_bytes()).body, name)


def _kind_of_function(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Kind | None:
    if function.decorator_list:
        return None
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    required = [a.arg for a in positional[: len(positional) - len(arguments.defaults)]]
    if set(required) in _APP_PARAMETERS or (
        isinstance(function, ast.AsyncFunctionDef) and len(required) == 3
    ):
        return "app"
    if arguments.vararg is not None or any(default is None for default in arguments.kw_defaults):
        return None
    if len(required) > 1:
        return None
    optional = {a.arg for a in (*positional, *arguments.kwonlyargs)}
    return "factory" if required or optional & CONTEXT_NAMES else "bare factory"


def _binding(body: Sequence[ast.stmt], name: str) -> ast.AST | None:
    """Return what binds `name` last: a function, an import or the value assigned."""
    found: ast.AST | None = None
    for statement in _flat(body):
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found = statement if statement.name == name else found
        elif isinstance(statement, ast.Assign):
            if any(isinstance(target, ast.Name) and target.id == name for target in statement.targets):
                found = statement.value
        elif isinstance(statement, ast.AnnAssign):
            if isinstance(statement.target, ast.Name) and statement.target.id == name and statement.value:
                found = statement.value
        elif isinstance(statement, ast.ImportFrom) and any(
            (alias.asname or alias.name) == name for alias in statement.names
        ):
            found = statement
    return found


def _flat(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try | ast.With):
            yield from _flat(statement.body)
            yield from _flat(getattr(statement, "orelse", ()))
            yield from _flat(getattr(statement, "finalbody", ()))
            for handler in getattr(statement, "handlers", ()):
                yield from _flat(handler.body)


def _absolute(package: str, statement: ast.ImportFrom) -> str:
    if not statement.level:
        return statement.module or ""
    parents = package.split(".")
    base = ".".join(parents[: len(parents) - statement.level + 1])
    return f"{base}.{statement.module}" if statement.module else base


def _source_of(directory: Path | None, module: str, *, installed: bool = True) -> Path | None:
    top, _, rest = module.partition(".")
    if not top:
        return None
    found = PathFinder.find_spec(top, [str(directory)]) if directory is not None else None
    if found is None and installed:
        found = PathFinder.find_spec(top)
    if found is None:
        return None
    if not rest:
        return Path(found.origin) if found.origin and found.origin.endswith(".py") else None
    for location in found.submodule_search_locations or ():
        place = Path(location).joinpath(*rest.split("."))
        for candidate in (place / "__init__.py", place.with_suffix(".py")):
            if candidate.is_file():
                return candidate
    return None

"""Tells a factory from an app by reading the source, without running any of it.

Used to choose an isolation tier before code runs: importing an unknown app object just to look at it
would run it in the node's process.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Literal

from runtime_node.loader.entrypoint import Entrypoint

Kind = Literal["factory", "app"]
_MOST_STEPS = 6
_APP_PARAMETERS = ({"scope", "receive", "send"}, {"environ", "start_response"}, {"scope"})


def kind_of(directory: Path | None, entrypoint: Entrypoint) -> Kind | None:
    """Return what `entrypoint` names in `directory` (None: the installed packages); None if unclear."""
    if len(entrypoint.attributes) != 1:
        return None
    return _follow(directory, entrypoint.module, entrypoint.attributes[0], _MOST_STEPS)


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
    return "factory" if len(required) <= 1 else None


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


def _source_of(directory: Path | None, module: str) -> Path | None:
    top, _, rest = module.partition(".")
    if not top:
        return None
    found = PathFinder.find_spec(top, [str(directory)]) if directory is not None else None
    found = found or PathFinder.find_spec(top)
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

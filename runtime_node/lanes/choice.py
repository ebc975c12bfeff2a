"""Which lane an instance starts in: the tier it asks for, or the one that fits its code."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Mapping
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TypeAlias

from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec, IsolationTier
from runtime_node.lanes.lane import Lane
from runtime_node.loader import parse_entrypoint
from services.rpc.errors import SupervisorError

Tier: TypeAlias = IsolationTier.ValueType

_ORDER: tuple[Tier, ...] = (IsolationTier.SHARED, IsolationTier.THREAD, IsolationTier.PROCESS)


def stricter(tier: Tier) -> Tier | None:
    """Return the next stricter tier, or None after the last."""
    index = _ORDER.index(tier) + 1
    return _ORDER[index] if index < len(_ORDER) else None


class Lanes:
    """The lanes of this node, by tier."""

    def __init__(self, lanes: Mapping[Tier, Lane]) -> None:
        self._lanes = lanes

    def has(self, tier: Tier) -> bool:
        """Return whether this node has a lane of that tier."""
        return tier in self._lanes

    async def choose(self, spec: InstanceSpec, floor: Tier) -> Lane:
        """Return the lane for an instance: never looser than `floor`, which a demotion has set.

        Raises SupervisorError ENTRYPOINT_MALFORMED, and ISOLATION_UNSUPPORTED for a tier that is not here.
        """
        tier = spec.isolation
        if not tier:
            plain_app = await asyncio.to_thread(names_plain_app, spec.entrypoint)
            tier = (
                IsolationTier.PROCESS
                if plain_app and self.has(IsolationTier.PROCESS)
                else IsolationTier.SHARED
            )
        tier = max(tier, floor)
        lane = self._lanes.get(tier)
        if lane is None:
            raise SupervisorError(
                "ISOLATION_UNSUPPORTED",
                f"This node has no {IsolationTier.Name(tier)} tier.",
                resource=spec.name,
            )
        return lane


def names_plain_app(entrypoint: str) -> bool:
    """Tell from the source alone whether an entrypoint names an app object rather than a factory.

    Nothing is imported: the code of an unmodified app, which reads the process's environment when it is
    imported, must not run in the node. What the source does not tell counts as an app object.
    Raises SupervisorError ENTRYPOINT_MALFORMED.
    """
    parsed = parse_entrypoint(entrypoint)
    source = _source(parsed.module)
    if source is None or len(parsed.attributes) != 1:
        # A missing module is found out, and told, by whichever lane tries it: the cheaper one.
        return source is not None
    try:
        return _defines_app(source, source.stat().st_mtime_ns, parsed.attributes[0])
    except (OSError, SyntaxError, ValueError):
        return False


@lru_cache(maxsize=4096)
def _defines_app(source: Path, modified: int, name: str) -> bool:
    body = ast.parse(source.read_bytes()).body
    defined: ast.stmt | None = None
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if statement.name == name:
                defined = statement
        elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.ImportFrom) and name in _names(statement):
            defined = statement
    if isinstance(defined, ast.FunctionDef | ast.AsyncFunctionDef):
        arguments = defined.args
        return len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults) > 1
    return True


def _names(statement: ast.Assign | ast.AnnAssign | ast.ImportFrom) -> set[str]:
    if isinstance(statement, ast.ImportFrom):
        return {alias.asname or alias.name for alias in statement.names}
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _source(module: str) -> Path | None:
    search: list[str] | None = None
    found: str | None = None
    for part in module.split("."):
        spec = PathFinder.find_spec(part, search)
        if spec is None:
            return None
        search = list(spec.submodule_search_locations or [])
        found = spec.origin
    return Path(found) if found is not None and found.endswith(".py") else None

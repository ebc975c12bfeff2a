"""What a filter says, as a tree: restrictions, each with its column, and how they are combined.

Knows neither how a filter is written (`filter_grammar`) nor any field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from services.rpc.errors import SupervisorError, Violation


@dataclass(frozen=True, slots=True)
class Literal:
    """A value as written: `text` without quotes and escapes, `parts` of it between unescaped stars."""

    text: str
    parts: tuple[str, ...]
    quoted: bool
    column: int

    @property
    def has_wildcard(self) -> bool:
        """Whether an unescaped star stands in it."""
        return len(self.parts) > 1


@dataclass(frozen=True, slots=True)
class Restriction:
    """`path operator argument`, or a bare value where `operator` is empty."""

    path: tuple[Literal, ...]
    operator: str
    argument: Literal | Node | None
    column: int
    depth: int = 0

    @property
    def literal(self) -> Literal:
        """What was written before the operator, as one value."""
        return joined(self.path)


@dataclass(frozen=True, slots=True)
class AllOf:
    """Holds where every one of `nodes` holds."""

    nodes: tuple[Node, ...]
    depth: int


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Holds where any of `nodes` holds."""

    nodes: tuple[Node, ...]
    depth: int


@dataclass(frozen=True, slots=True)
class Not:
    """Holds where `node` does not."""

    node: Node
    depth: int


Node = Restriction | AllOf | AnyOf | Not


def joined(path: tuple[Literal, ...]) -> Literal:
    """Return a dotted path that stands for a value, such as `2.5` or `shop.example.com`, as that value."""
    if len(path) == 1:
        return path[0]
    parts = list(path[0].parts)
    for literal in path[1:]:
        parts[-1] += "." + literal.parts[0]
        parts += literal.parts[1:]
    quoted = any(literal.quoted for literal in path)
    return Literal(".".join(literal.text for literal in path), tuple(parts), quoted, path[0].column)


def refuse(column: int, rule: str) -> NoReturn:
    """Raise INVALID_FILTER pointing at a column, counted from 1."""
    raise SupervisorError(
        "INVALID_FILTER",
        f"filter, column {column}: {rule}.",
        violations=(Violation("filter", f"column {column}: {rule}"),),
        metadata={"column": str(column)},
    )

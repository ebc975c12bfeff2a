"""Filters of ListApps and WatchApps: AIP-160 text to a test of one app.

The grammar is `filter_grammar`'s, the meaning of each field `filter_fields`'.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from services.control_plane.rules.filter_fields import FIELDS, Predicate, search
from services.control_plane.rules.filter_grammar import (
    AllOf,
    AnyOf,
    Literal,
    Node,
    Not,
    Restriction,
    parse_filter,
    refuse,
)

_LOWER_CASE_OPERATORS = frozenset({"and", "or", "not"})


@dataclass(frozen=True, slots=True)
class Filter:
    """A compiled filter; call it with an app, or `matches` in a loop over many."""

    text: str
    matches: Callable[[App], bool]
    exact_name: str | None
    """The one name that can match, where the filter fixes it: a look-up serves then; None otherwise."""
    matches_all: bool
    """Whether the filter is empty."""

    def __call__(self, app: App) -> bool:
        """Tell whether the app matches."""
        return self.matches(app)


@lru_cache(maxsize=256)
def compile_filter(text: str) -> Filter:
    """Return the test that `text` asks for; raises INVALID_FILTER with the column and what is expected there.

    `!=` is the opposite of `=` throughout, so that it also matches what is not set. A bare word is searched
    for in the app's id and display name.
    """
    node = parse_filter(text)
    if node is None:
        return Filter(text, lambda _: True, None, True)
    return Filter(text, _compile(node), _exact_name(node), False)


def _compile(node: Node) -> Predicate:
    match node:
        case AllOf(nodes):
            return _all([_compile(inner) for inner in nodes])
        case AnyOf(nodes):
            return _any([_compile(inner) for inner in nodes])
        case Not(inner):
            test = _compile(inner)
            return lambda app: not test(app)
        case Restriction():
            return _compile_restriction(node)


def _compile_restriction(node: Restriction) -> Predicate:
    name = node.path[0]
    argument = node.argument
    if argument is None:
        return _compile_search(node)
    if name.text not in FIELDS or name.quoted:
        refuse(name.column, f"there is no field {name.text[:64]!r}; use {', '.join(FIELDS)}")
    if isinstance(argument, Literal):
        return FIELDS[name.text].compile(node.path, node.operator, argument)
    if node.operator not in ("=", ":"):
        refuse(node.column, f"several values in parentheses go with = and : only, not {node.operator}")
    return _compile_values(node, argument)


def _compile_values(node: Restriction, values: Node) -> Predicate:
    """Compile `field:(a OR b)`, in which each value is compared with the field."""
    match values:
        case AllOf(nodes):
            return _all([_compile_values(node, inner) for inner in nodes])
        case AnyOf(nodes):
            return _any([_compile_values(node, inner) for inner in nodes])
        case Not(inner):
            test = _compile_values(node, inner)
            return lambda app: not test(app)
        case Restriction():
            if values.argument is not None:
                refuse(values.column, f"expected values of {node.path[0].text} in the parentheses")
            return FIELDS[node.path[0].text].compile(node.path, node.operator, values.literal)


def _compile_search(node: Restriction) -> Predicate:
    literal = node.literal
    if not literal.quoted:
        # Words that nearly always were meant as something else, and would match nothing in silence.
        if literal.text in _LOWER_CASE_OPERATORS:
            refuse(node.column, f"write {literal.text.upper()} in capitals, or quote it to search for it")
        if node.path[0].text in FIELDS:
            refuse(node.column, f"compare {literal.text[:64]} with a value, or quote it to search for it")
    return search(literal)


def _all(tests: list[Predicate]) -> Predicate:
    if len(tests) == 2:
        first, second = tests
        return lambda app: first(app) and second(app)
    if len(tests) == 1:
        return tests[0]
    several = tuple(tests)

    def matches(app: App) -> bool:
        for test in several:  # noqa: SIM110 - a generator would double the cost per app
            if not test(app):
                return False
        return True

    return matches


def _any(tests: list[Predicate]) -> Predicate:
    if len(tests) == 2:
        first, second = tests
        return lambda app: first(app) or second(app)
    if len(tests) == 1:
        return tests[0]
    several = tuple(tests)

    def matches(app: App) -> bool:
        for test in several:  # noqa: SIM110 - a generator would double the cost per app
            if test(app):
                return True
        return False

    return matches


def _exact_name(node: Node) -> str | None:
    match node:
        case AllOf(nodes):
            return next((name for inner in nodes if (name := _exact_name(inner)) is not None), None)
        case Restriction(path, "=", Literal() as value):
            exact = len(path) == 1 and path[0].text == "name" and not value.has_wildcard
            return value.text if exact else None
    return None

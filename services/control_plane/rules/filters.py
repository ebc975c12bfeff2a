"""Filters of apps and of their events: AIP-160 text to a test of one message.

The grammar is `filter_grammar`'s, which makes a `filter_tree`; the meaning of each field `filter_fields`'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from services.control_plane.rules.filter_fields import (
    CERTIFICATE_FIELDS,
    EVENT_FIELDS,
    FIELDS,
    RETAINED_FIELDS,
    Field,
    Predicate,
    search,
    search_certificates,
    search_events,
    search_retained,
)
from services.control_plane.rules.filter_tree import (
    AllOf,
    AnyOf,
    Literal,
    Node,
    Not,
    Restriction,
    refuse,
)

_LOWER_CASE_OPERATORS = frozenset({"and", "or", "not"})


@dataclass(frozen=True, slots=True)
class Filter:
    """A compiled filter; call it with a message, or `matches` in a loop over many."""

    text: str
    matches: Callable[[Any], bool]
    exact_name: str | None
    """The one name that can match, where the filter fixes it: a look-up serves then; None otherwise."""
    matches_all: bool
    """Whether the filter is empty."""

    def __call__(self, message: Any) -> bool:
        """Tell whether the message matches."""
        return self.matches(message)


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """What the filters of one kind of message may name."""

    fields: Mapping[str, Field]
    search: Callable[[Literal], Predicate]
    """Compiles a bare word."""


_APPS = _Vocabulary(FIELDS, search)
_EVENTS = _Vocabulary(EVENT_FIELDS, search_events)
_RETAINED = _Vocabulary(RETAINED_FIELDS, search_retained)
_CERTIFICATES = _Vocabulary(CERTIFICATE_FIELDS, search_certificates)


@lru_cache(maxsize=256)
def compile_filter(text: str) -> Filter:
    """Return the test that `text` asks for; raises INVALID_FILTER with the column and what is expected there.

    `!=` is the opposite of `=` throughout, so that it also matches what is not set. A bare word is searched
    for in the app's id and display name.
    """
    node = _parsed(text)
    if node is None:
        return Filter(text, lambda _: True, None, True)
    return Filter(text, _compile(node, _APPS), _exact_name(node, "name"), False)


@lru_cache(maxsize=256)
def compile_event_filter(text: str) -> Filter:
    """Return the test of events that `text` asks for; raises as `compile_filter`.

    A bare word is searched for in the type, the reason and the message. `exact_name` is the one app.
    """
    node = _parsed(text)
    if node is None:
        return Filter(text, lambda _: True, None, True)
    return Filter(text, _compile(node, _EVENTS), _exact_name(node, "app"), False)


@lru_cache(maxsize=64)
def compile_retained_filter(text: str) -> Filter:
    """Return the test of retained data that `text` asks for; raises as `compile_filter`.

    A bare word is searched for in the name of the app that left the data.
    """
    node = _parsed(text)
    if node is None:
        return Filter(text, lambda _: True, None, True)
    return Filter(text, _compile(node, _RETAINED), _exact_name(node, "name"), False)


@lru_cache(maxsize=64)
def compile_certificate_filter(text: str) -> Filter:
    """Return the test of certificates that `text` asks for; raises as `compile_filter`.

    A bare word is searched for in the name and the domains.
    """
    node = _parsed(text)
    if node is None:
        return Filter(text, lambda _: True, None, True)
    return Filter(text, _compile(node, _CERTIFICATES), _exact_name(node, "name"), False)


def _parsed(text: str) -> Node | None:
    if not text:
        return None
    # With Lark and its tables: most control planes are asked for all there is.
    from services.control_plane.rules.filter_grammar import parse_filter  # noqa: PLC0415

    return parse_filter(text)


def _compile(node: Node, words: _Vocabulary) -> Predicate:
    match node:
        case AllOf(nodes):
            return _all([_compile(inner, words) for inner in nodes])
        case AnyOf(nodes):
            return _any([_compile(inner, words) for inner in nodes])
        case Not(inner):
            test = _compile(inner, words)
            return lambda app: not test(app)
        case Restriction():
            return _compile_restriction(node, words)


def _compile_restriction(node: Restriction, words: _Vocabulary) -> Predicate:
    name = node.path[0]
    argument = node.argument
    if argument is None:
        return _compile_search(node, words)
    if name.text not in words.fields or name.quoted:
        refuse(name.column, f"there is no field {name.text[:64]!r}; use {', '.join(words.fields)}")
    if isinstance(argument, Literal):
        return words.fields[name.text].compile(node.path, node.operator, argument)
    if node.operator not in ("=", ":"):
        refuse(node.column, f"several values in parentheses go with = and : only, not {node.operator}")
    return _compile_values(node, argument, words)


def _compile_values(node: Restriction, values: Node, words: _Vocabulary) -> Predicate:
    """Compile `field:(a OR b)`, in which each value is compared with the field."""
    match values:
        case AllOf(nodes):
            return _all([_compile_values(node, inner, words) for inner in nodes])
        case AnyOf(nodes):
            return _any([_compile_values(node, inner, words) for inner in nodes])
        case Not(inner):
            test = _compile_values(node, inner, words)
            return lambda app: not test(app)
        case Restriction():
            if values.argument is not None:
                refuse(values.column, f"expected values of {node.path[0].text} in the parentheses")
            return words.fields[node.path[0].text].compile(node.path, node.operator, values.literal)


def _compile_search(node: Restriction, words: _Vocabulary) -> Predicate:
    literal = node.literal
    if not literal.quoted:
        # Words that nearly always were meant as something else, and would match nothing in silence.
        if literal.text in _LOWER_CASE_OPERATORS:
            refuse(node.column, f"write {literal.text.upper()} in capitals, or quote it to search for it")
        if node.path[0].text in words.fields:
            refuse(node.column, f"compare {literal.text[:64]} with a value, or quote it to search for it")
    return words.search(literal)


def _all(tests: list[Predicate]) -> Predicate:
    if len(tests) == 2:
        first, second = tests
        return lambda app: first(app) and second(app)
    if len(tests) == 1:
        return tests[0]
    several = tuple(tests)

    def matches(app: Any) -> bool:
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

    def matches(app: Any) -> bool:
        for test in several:  # noqa: SIM110 - a generator would double the cost per app
            if test(app):
                return True
        return False

    return matches


def _exact_name(node: Node, field: str) -> str | None:
    match node:
        case AllOf(nodes):
            return next((name for inner in nodes if (name := _exact_name(inner, field)) is not None), None)
        case Restriction(path, "=", Literal() as value):
            exact = len(path) == 1 and path[0].text == field and not value.has_wildcard
            return value.text if exact else None
    return None

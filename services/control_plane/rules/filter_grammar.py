"""The grammar of AIP-160: text to a tree of restrictions, each with its column.

Knows no fields. Differs from AIP-160 by having no functions, and keys in backquotes as update masks
have them; `OR` binds tighter than `AND`, as there.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, NoReturn

from lark import Lark, Token, Transformer, UnexpectedCharacters, UnexpectedEOF, UnexpectedToken

from services.control_plane.rules.filter_tree import (
    AllOf,
    AnyOf,
    Literal,
    Node,
    Not,
    Restriction,
    joined,
    refuse,
)
from services.rpc.errors import SupervisorError, Violation

MAX_LENGTH = 4096
MAX_DEPTH = 32

_GRAMMAR = r"""
start: [expression]
expression: sequence (AND sequence)*
sequence: factor+
factor: term (OR term)*
term: simple | (NOT | MINUS) simple
?simple: restriction | composite | function
composite: LPAREN expression RPAREN
restriction: member [COMPARATOR arg]
?arg: value | composite | function
function: FUNCTION
value: [MINUS] member
member: _value (DOT _field)*
_value: TEXT | STRING | QUOTED_KEY | TIMESTAMP
_field: TEXT | STRING | QUOTED_KEY | AND | OR | NOT

AND: "AND"
OR: "OR"
NOT: "NOT"
MINUS: "-"
DOT: "."
LPAREN: "("
RPAREN: ")"
COMPARATOR: "<=" | ">=" | "!=" | "<" | ">" | "=" | ":"
TIMESTAMP.2: /\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)/
FUNCTION.2: /(?!(AND|OR|NOT)\()[^\s"'`().,:<>=!~\-][^\s"'`().,:<>=!~]*(?=\()/
TEXT: /[^\s"'`().,:<>=!~\-][^\s"'`().,:<>=!~]*/
STRING: /"([^"\\]|\\.)*"|'([^'\\]|\\.)*'/s
QUOTED_KEY: /`([^`]|``)*`/
WS: /\s+/
%ignore WS
"""

_TERMINALS = {
    "AND": "AND",
    "OR": "OR",
    "NOT": "NOT",
    "MINUS": "'-'",
    "DOT": "'.'",
    "LPAREN": "'('",
    "RPAREN": "')'",
    "COMPARATOR": "a comparison (=, !=, <, <=, >, >=, :)",
    "TEXT": "a word",
    "STRING": "a quoted string",
    "QUOTED_KEY": "a key in backquotes",
    "TIMESTAMP": "a timestamp",
    "$END": "the end",
}
_ESCAPE = re.compile(r"\\(.)|(\*)", re.DOTALL)


def parse_filter(text: str) -> Node | None:
    """Return the tree of a filter, None for one without a restriction; raises INVALID_FILTER."""
    if len(text) > MAX_LENGTH:
        raise SupervisorError(
            "INVALID_FILTER",
            f"filter must be at most {MAX_LENGTH:,} characters.",
            violations=(Violation("filter", f"must be at most {MAX_LENGTH:,} characters"),),
        )
    try:
        # The tree is built by _Builder while it is parsed.
        tree: Any = _parser().parse(text)
    except UnexpectedCharacters as error:
        at = error.pos_in_stream or 0
        if text[at] in "\"'`":
            refuse(at + 1, "the string is not closed")
        refuse(at + 1, f"{text[at]!r} can only stand inside quotes")
    except UnexpectedToken as error:
        at_end = error.token.type == "$END"
        column = len(text) + 1 if at_end else (error.token.start_pos or 0) + 1
        found = "the end" if at_end else repr(str(error.token))
        refuse(column, f"{_wanted(error.accepts or error.expected)}, found {found}")
    except UnexpectedEOF as error:
        refuse(len(text) + 1, f"{_wanted(set(error.expected))}, found the end")
    node: Node | None = tree
    return node


class _Builder(Transformer[Token, Any]):
    """Makes the nodes, innermost first; depth is bounded here so that no later walk recurses too far."""

    def start(self, children: list[Any]) -> Node | None:
        node: Node | None = children[0]
        return node

    def expression(self, children: list[Any]) -> Node:
        return _combine(AllOf, [child for child in children if not isinstance(child, Token)])

    def sequence(self, children: list[Any]) -> Node:
        return _combine(AllOf, children)

    def factor(self, children: list[Any]) -> Node:
        return _combine(AnyOf, [child for child in children if not isinstance(child, Token)])

    def term(self, children: list[Any]) -> Node:
        node: Node = children[-1]
        return node if len(children) == 1 else Not(node, node.depth)

    def composite(self, children: list[Any]) -> Node:
        opening, node, _ = children
        if node.depth >= MAX_DEPTH:
            refuse(opening.start_pos + 1, f"parentheses must be nested at most {MAX_DEPTH} deep")
        return _deeper(node)

    def function(self, children: list[Token]) -> NoReturn:
        refuse((children[0].start_pos or 0) + 1, f"there is no function {str(children[0])!r}")

    def restriction(self, children: list[Any]) -> Restriction:
        path, comparator, argument = children
        depth = argument.depth if isinstance(argument, Node) else 0
        return Restriction(path, str(comparator or ""), argument, path[0].column, depth)

    def value(self, children: list[Any]) -> Literal:
        minus, path = children
        whole = joined(path)
        if minus is None:
            return whole
        parts = (f"-{whole.parts[0]}", *whole.parts[1:])
        return Literal(f"-{whole.text}", parts, whole.quoted, minus.start_pos + 1)

    def member(self, children: list[Any]) -> tuple[Literal, ...]:
        return tuple(_literal(token) for token in children if token.type != "DOT")


def _combine(kind: type[AllOf] | type[AnyOf], nodes: list[Node]) -> Node:
    if len(nodes) == 1:
        return nodes[0]
    return kind(tuple(nodes), max(node.depth for node in nodes))


def _deeper(node: Node) -> Node:
    depth = node.depth + 1
    match node:
        case AllOf(nodes):
            return AllOf(nodes, depth)
        case AnyOf(nodes):
            return AnyOf(nodes, depth)
        case Not(inner):
            return Not(inner, depth)
        case Restriction():
            return Restriction(node.path, node.operator, node.argument, node.column, depth)


def _literal(token: Token) -> Literal:
    column = (token.start_pos or 0) + 1
    if token.type == "QUOTED_KEY":  # as in update masks: no star and no escape but the doubled backquote
        key = token[1:-1].replace("``", "`")
        return Literal(key, (key,), True, column)
    quoted = token.type == "STRING"
    raw = token[1:-1] if quoted else str(token)
    parts = [""]
    at = 0
    for found in _ESCAPE.finditer(raw):
        escaped, star = found.groups()
        parts[-1] += raw[at : found.start()]
        at = found.end()
        if star:
            parts.append("")
        elif quoted and escaped in "\"'\\*":
            parts[-1] += escaped
        elif quoted:
            refuse(column + 1 + found.start(), f"unknown escape \\{escaped}; write \\\\ for a backslash")
        else:
            parts[-1] += found.group()
    parts[-1] += raw[at:]
    return Literal("*".join(parts), tuple(parts), quoted, column)


def _wanted(terminals: set[str]) -> str:
    names = [name for terminal, name in _TERMINALS.items() if terminal in terminals]
    return f"expected {', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else f"expected {names[0]}"


@cache
def _parser() -> Lark:
    # The contextual lexer would read AND, OR and NOT as plain words wherever they are not expected.
    return Lark(_GRAMMAR, parser="lalr", lexer="basic", transformer=_Builder(), maybe_placeholders=True)

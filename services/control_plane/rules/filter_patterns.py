"""Patterns of filters: text in which an unescaped star stands for any characters, matched in linear time."""

from __future__ import annotations

from collections.abc import Callable

from services.control_plane.rules.filter_tree import Literal

TextTest = Callable[[str], bool]


def text_test(value: Literal, *, fold: bool = False) -> TextTest:
    """Return a test for equality with `value`, in which an unescaped star stands for any characters.

    `fold` ignores case; then the text tested has to be case-folded already.
    """
    parts = tuple(part.casefold() for part in value.parts) if fold else value.parts
    if len(parts) == 1:
        wanted = parts[0]
        return lambda text: text == wanted
    first, *middle, last = parts
    middle = [part for part in middle if part]
    if not middle:
        if not last:
            return lambda text: text.startswith(first)
        shortest = len(first) + len(last)
        return lambda text: len(text) >= shortest and text.startswith(first) and text.endswith(last)
    if not first and not last and len(middle) == 1:
        inner = middle[0]
        return lambda text: inner in text

    def matches(text: str) -> bool:
        # Taking each part at its first place is enough and, unlike a regular expression, linear.
        end = len(text) - len(last)
        if end < len(first) or not text.startswith(first) or not text.endswith(last):
            return False
        at = len(first)
        for part in middle:
            at = text.find(part, at, end)
            if at < 0:
                return False
            at += len(part)
        return True

    return matches

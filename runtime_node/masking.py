"""Blanks out the values of an app's secrets, also in the forms in which text carries them. Pure."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from itertools import groupby, takewhile
from urllib.parse import quote, quote_plus

SHORTEST_SECRET = 4
"""A shorter value occurs by chance in most lines: blanking it out would tell more than it hides."""

SHORTEST_ANYWHERE = 8
"""A shorter value is blanked out where it stands as a word of its own, not within one."""

BLANK = "***"
_SHORTEST_PIECE = 4
_SHORTEST_ENCODED = 6
"""Characters of base64 that occur by chance once in 70 billion places."""
_DEEPEST = 40
"""Branches within each other; each takes some frames of the pattern's compiler."""


class Masker:
    """Knows one app's secrets: as they are, in a repr, JSON, a URL, base64 and hexadecimal; line by line."""

    __slots__ = ("_forms", "_pattern")

    def __init__(self, secrets: Iterable[str], shortest: int = SHORTEST_SECRET) -> None:
        words: set[str] = set()
        forms: set[str] = set()
        for secret in secrets:
            for part in {secret, secret.strip(), *secret.splitlines()}:
                if len(part) < shortest:
                    continue
                raw = part.encode("utf-8", "surrogatepass")
                written = {part, repr(part)[1:-1], repr(raw)[2:-1], json.dumps(part)[1:-1], *_in_urls(raw)}
                (forms if len(part) >= SHORTEST_ANYWHERE else words).update(written)
                forms.update(_encoded(raw))
        self._forms = tuple(forms | words)
        patterns = [_tree(sorted(forms))] if forms else []
        patterns += [rf"(?<![^\W_])(?:{_tree(sorted(words))})(?![^\W_])"] if words else []
        self._pattern = re.compile("|".join(patterns)) if patterns else None

    def __call__(self, text: str, *, begins_cut: bool = False, ends_cut: bool = False) -> str:
        """Return the text without secrets; `…_cut` for a text that goes on where another one ended."""
        if self._pattern is None:
            return text
        text = self._pattern.sub(BLANK, text)
        if begins_cut:
            text = self._without_tail_of_secret(text)
        return self._without_head_of_secret(text) if ends_cut else text

    def _without_head_of_secret(self, text: str) -> str:
        start = len(text)
        for form in self._forms:
            at = text.find(form[:_SHORTEST_PIECE], max(0, len(text) - len(form)))
            while 0 <= at < start:
                if form.startswith(text[at:]):
                    start = at
                at = text.find(form[:_SHORTEST_PIECE], at + 1)
        return text if start == len(text) else text[:start] + BLANK

    def _without_tail_of_secret(self, text: str) -> str:
        end = 0
        for form in self._forms:
            at = text.rfind(form[-_SHORTEST_PIECE:], 0, len(form))
            while at + _SHORTEST_PIECE > end and at >= 0:
                if form.endswith(text[: at + _SHORTEST_PIECE]):
                    end = at + _SHORTEST_PIECE
                at = text.rfind(form[-_SHORTEST_PIECE:], 0, at + _SHORTEST_PIECE - 1)
        return BLANK + text[end:] if end else text


def _in_urls(raw: bytes) -> Iterator[str]:
    for form in (quote(raw), quote(raw, safe=""), quote_plus(raw)):
        yield form
        yield re.sub(r"%[0-9A-F]{2}", lambda code: code[0].lower(), form)


def _encoded(raw: bytes) -> Iterator[str]:
    yield raw.hex()
    yield raw.hex().upper()
    # Three bytes make four characters: after one or two bytes of something else the same value looks
    # otherwise. What is left out at either end depends on its neighbours, too.
    for before in range(3):
        whole = b64encode(bytes(before) + raw).decode()
        first = (0, 2, 3)[before]
        last = (before + len(raw)) * 8 // 6
        inner = whole[first:last]
        if len(inner) >= _SHORTEST_ENCODED:
            yield inner
            yield inner.replace("+", "-").replace("/", "_")


def _tree(words: list[str], depth: int = 0) -> str:
    """Return a pattern that matches the longest of the sorted words at a place.

    An alternation would try each of some thousand forms at each character; this one follows a single path.
    """
    if depth == _DEEPEST:
        return "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    # Of sorted words the first and the last have in common what all have.
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(words[0], words[-1], strict=False))
    prefix = "".join(first for first, _ in pairs)
    rests = [word[len(prefix) :] for word in words]
    branches = [_tree(list(group), depth + 1) for first, group in groupby(rests, _first) if first]
    tail = f"(?:{'|'.join(branches)}){'' if rests[0] else '?'}" if branches else ""
    return re.escape(prefix) + tail


def _first(text: str) -> str:
    return text[:1]

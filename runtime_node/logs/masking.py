"""Blanks out the values of an app's secrets in what it logs. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

SHORTEST_SECRET = 8
"""A shorter value is a word that occurs by chance: blanking it would tell more than it hides."""

BLANK = "***"
_SHORTEST_PIECE = 4


class Masker:
    """Knows one app's secrets, also as they look in a repr, in JSON and in a URL, and line by line."""

    __slots__ = ("_forms", "_pattern")

    def __init__(self, secrets: Iterable[str], shortest: int = SHORTEST_SECRET) -> None:
        forms: set[str] = set()
        for secret in secrets:
            for part in {secret, secret.strip(), *secret.splitlines()}:
                if len(part) >= shortest:
                    forms |= {part, repr(part)[1:-1], json.dumps(part)[1:-1], quote(part), quote_plus(part)}
        # The longest first: a secret that begins with another one is blanked out as a whole.
        self._forms = tuple(sorted(forms, key=len, reverse=True))
        self._pattern = re.compile("|".join(map(re.escape, self._forms))) if forms else None

    def __call__(self, text: str, *, begins_cut: bool = False, ends_cut: bool = False) -> str:
        """Return the text without secrets; `…_cut` for a text that goes on where another one ended."""
        if self._pattern is None:
            return text
        text = self._pattern.sub(BLANK, text)
        if begins_cut:
            text = self._without_tail_of_secret(text)
        return self._without_head_of_secret(text) if ends_cut else text

    def _without_head_of_secret(self, text: str) -> str:
        for form in self._forms:
            for size in range(min(len(form), len(text)), _SHORTEST_PIECE - 1, -1):
                if text.endswith(form[:size]):
                    return text[: len(text) - size] + BLANK
        return text

    def _without_tail_of_secret(self, text: str) -> str:
        for form in self._forms:
            for size in range(min(len(form), len(text)), _SHORTEST_PIECE - 1, -1):
                if text.startswith(form[-size:]):
                    return BLANK + text[size:]
        return text

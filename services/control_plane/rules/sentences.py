"""Sentences for people, put together so that each ends before the next begins."""

from __future__ import annotations

_ENDS = (".", "!", "?", "…", ":", ".”", '."', ".)", ".'")


def counted(number: int, noun: str) -> str:
    """Return how many there are, as `1 app` or `2,000 apps`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def sentences(*parts: str) -> str:
    """Return the parts that are not empty as one text, each ended by a full stop unless it ends itself."""
    told = [part.strip() for part in parts if part.strip()]
    return " ".join(part if part.endswith(_ENDS) else f"{part}." for part in told)

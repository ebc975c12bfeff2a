"""Sentences for people, put together so that each ends before the next begins."""

from __future__ import annotations

_ENDS = (".", "!", "?", "…", ":", ".”", '."', ".)", ".'")


def sentences(*parts: str) -> str:
    """Return the parts that are not empty as one text, each ended by a full stop unless it ends itself."""
    told = [part.strip() for part in parts if part.strip()]
    return " ".join(part if part.endswith(_ENDS) else f"{part}." for part in told)

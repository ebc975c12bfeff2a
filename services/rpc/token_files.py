"""Secrets that two programs share, from files: others see flags and the environment."""

from __future__ import annotations

from pathlib import Path

SHORTEST, LONGEST = 32, 1024
"""Characters of a token."""


def read_token(path: str) -> str:
    """Return the token in a file, without what is blank around it.

    Raises ValueError for a file that has none or cannot be read; its sentence has nothing of the token.
    """
    try:
        with Path(path).open(encoding="ascii") as file:
            token = file.read(2 * LONGEST).strip()
    except (OSError, UnicodeDecodeError) as unreadable:
        raise ValueError(f"{path} cannot be read as a token: {type(unreadable).__name__}") from None
    if not (SHORTEST <= len(token) <= LONGEST and token.isprintable() and " " not in token):
        raise ValueError(f"{path} must hold one word of {SHORTEST} to {LONGEST:,} visible ASCII characters")
    return token

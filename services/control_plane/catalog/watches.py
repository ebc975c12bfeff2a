"""What the catalog's two watches have in common: how many are open, and when a quiet one is told so."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")

BOOKMARK_SECONDS = 5.0
"""Silence after which a watcher is told that nothing has happened."""


class OpenWatches:
    """Counts the streams of one kind that are open. Belongs to the server's loop."""

    def __init__(self) -> None:
        self.count = 0

    async def counted(self, messages: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """Pass on a stream's messages; it counts, and is closed, with the one that is returned."""
        self.count += 1
        try:
            async with aclosing(messages):
                async for message in messages:
                    yield message
        finally:
            self.count -= 1

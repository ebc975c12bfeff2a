"""Follows a feed of the mirror for ever, whatever it has forgotten meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeVar

from services.rpc.errors import SupervisorError
from services.rpc.feed import ChangeFeed, Entry

IDLE_SECONDS = 60.0
"""How long a follower waits before it looks again without having been woken."""

V = TypeVar("V")


async def follow(feed: ChangeFeed[V], position: int) -> AsyncIterator[tuple[str, V | None]]:
    """Yield what changes after a position until the feed closes; all there is, if it goes back less far."""
    resume: int | None = position
    while True:
        try:
            async for item in feed.watch(resume, IDLE_SECONDS):
                if isinstance(item, Entry):
                    yield item.key, item.value
        except SupervisorError:
            if feed.closed:
                return
            resume = None

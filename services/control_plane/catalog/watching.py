"""A watch as callers see it: messages over a feed, with tokens that resume it and bookmarks while idle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from typing import Protocol, TypeVar

from services.control_plane.catalog.positions import position_of, token_at
from services.control_plane.catalog.scans import LOOK_EVERY
from services.control_plane.catalog.watches import BOOKMARK_SECONDS
from services.control_plane.store.interface import CatalogStore
from services.rpc.feed import ChangeFeed, Entry, Mark, Signal

V = TypeVar("V")


class Told(Protocol):
    """One message of a watch."""

    resume_token: str


M = TypeVar("M", bound=Told)


async def watched(
    store: CatalogStore,
    feed: ChangeFeed[V],
    token: str,
    digest: str,
    *,
    entry: Callable[[Entry[V], bool], M | None],
    mark: Callable[[Mark], M],
    changed_together: bool = False,
) -> AsyncGenerator[M, None]:
    """Yield a feed's messages: a snapshot, or what changed after `token`, SYNCED, changes and bookmarks.

    `entry` makes the message of a change, None for one that this reader is not told; it hears whether the
    reader has resumed. `digest` is of the request's other fields. With `changed_together` one revision may
    change several keys: a token then resumes before all of them. Raises SupervisorError as `position_of` and
    `ChangeFeed.watch`.
    """
    resume = await position_of(store, token, digest) if token else None
    resumed = exact = resume is not None
    told, passed = time.monotonic(), 0
    async for item in feed.watch(resume, BOOKMARK_SECONDS):
        message = mark(item) if isinstance(item, Mark) else entry(item, resumed)
        exact = exact or isinstance(item, Mark)
        if message is None:
            passed += 1
            if passed % LOOK_EVERY == 0:
                await asyncio.sleep(0)
            if not exact or time.monotonic() < told + BOOKMARK_SECONDS:
                continue
            # Much happens, but nothing for this reader: its token must not grow old.
            message = mark(Mark(Signal.IDLE, item.revision))
        if exact:
            before = changed_together and isinstance(item, Entry)
            message.resume_token = token_at(store, item.revision - before, digest)
        yield message
        told = time.monotonic()

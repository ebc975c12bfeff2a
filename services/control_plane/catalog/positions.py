"""Positions in the change log as callers hold them: resume tokens, good at every replica of one catalog."""

from __future__ import annotations

import asyncio

from services.control_plane.rules.paging import decode_resume_token, encode_resume_token
from services.control_plane.store.errors import unavailable
from services.control_plane.store.interface import CatalogStore
from services.control_plane.store.records import EVENTS_PER_COMMAND
from services.rpc.errors import SupervisorError

CATCH_UP_SECONDS = 5.0
"""How long a caller waits for this replica to learn what another has told it."""


async def caught_up(store: CatalogStore) -> int:
    """Return the mirror's revision once it has all that any replica had answered before.

    Raises SupervisorError STORE_UNAVAILABLE when the database cannot be asked in time.
    """
    try:
        return await asyncio.wait_for(asyncio.wrap_future(store.catch_up()), CATCH_UP_SECONDS)
    except TimeoutError as late:
        raise unavailable() from late


def token_at(store: CatalogStore, revision: int, digest: str) -> str:
    """Return the token that resumes a watch after a revision."""
    return encode_resume_token(store.catalog_id, store.histories.of(revision), revision, digest)


async def position_of(store: CatalogStore, token: str, digest: str) -> int:
    """Return the revision after which a watch resumes; a replica that lags behind the token catches up first.

    Raises SupervisorError INVALID_RESUME_TOKEN as `decode_resume_token`, RESUME_TOKEN_EXPIRED for a revision
    that was lost when the catalog was restored from an older copy, STORE_UNAVAILABLE as `caught_up`.
    """
    history, revision = decode_resume_token(token, store.catalog_id, digest)
    await _found(store, history, revision)
    return revision


def event_token_at(store: CatalogStore, number: int, digest: str) -> str:
    """Return the token that resumes a watch of events after the one of a number."""
    history = store.histories.of(number // EVENTS_PER_COMMAND)
    return encode_resume_token(store.catalog_id, history, number, digest)


async def event_position_of(store: CatalogStore, token: str, digest: str) -> int:
    """Return the number after which a watch of events resumes; catches up and raises as `position_of`."""
    history, number = decode_resume_token(token, store.catalog_id, digest)
    await _found(store, history, number // EVENTS_PER_COMMAND)
    return number


async def _found(store: CatalogStore, history: str, revision: int) -> None:
    feed = store.mirror.apps
    if revision > feed.revision:
        await caught_up(store)
    if revision > feed.revision or store.histories.of(revision) != history:
        raise SupervisorError(
            "RESUME_TOKEN_EXPIRED",
            "The catalog has been restored from an older copy, and this position was lost with the rest; "
            "start again without a token.",
            metadata={"oldest_revision": str(feed.oldest_revision)},
        )

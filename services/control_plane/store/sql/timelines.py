"""Reads the apps' events from the database: the newest ones, or what follows a place.

What was forgotten in between is found out with it, so that nobody misses it in silence.
"""

from __future__ import annotations

import re

from sqlalchemy import Connection
from sqlmodel import col, func, select

from appsupervisor.catalog.v1.app_catalog_pb2 import AppEvent
from services.control_plane.store.records import last_event_number
from services.control_plane.store.sql.tables import AppEventRow, MetaRow
from services.rpc.errors import SupervisorError

_EVENT_ID = re.compile("[0-7][0-9a-f]{15}")  # as `add_event` writes it


def newest_events(connection: Connection, app: str, limit: int, before: str) -> list[AppEvent]:
    """Return up to `limit` events, newest first, of one app or of all (""), older than the id `before`.

    Raises SupervisorError INVALID_PAGE_TOKEN if `before` is no event id.
    """
    query = select(AppEventRow.body)
    if app:
        query = query.where(AppEventRow.app == app)
    if before:
        query = query.where(col(AppEventRow.id) < _number_of(before))
    query = query.order_by(col(AppEventRow.id).desc()).limit(limit)
    return [AppEvent.FromString(body) for body in connection.execute(query).scalars()]


def events_after(
    connection: Connection, app: str, after: int, up_to: int, limit: int, kept: int
) -> list[AppEvent]:
    """Return up to `limit` events of one app or of all (""), oldest first, `after` < number <= `up_to`.

    `kept` is how many each app keeps at least. Raises SupervisorError RESUME_TOKEN_EXPIRED if any that
    followed `after` has been forgotten.
    """
    query = select(AppEventRow.id, AppEventRow.body).where(col(AppEventRow.id) > after)
    crowded = select(AppEventRow.app).where(col(AppEventRow.id) > after)
    if app:
        query = query.where(AppEventRow.app == app)
        crowded = crowded.where(AppEventRow.app == app)
    rows = connection.execute(query.order_by(col(AppEventRow.id)).limit(limit)).all()
    # Looked at only now: what was forgotten before the page was read is missing from it. Of a removed app
    # all goes that is not newer than the change log; of the others what is beyond the newest `kept`.
    oldest = connection.execute(select(MetaRow.oldest_revision)).scalar_one()
    forgotten = after < last_event_number(oldest)
    if not forgotten and len(rows) >= min(limit, kept):
        crowded = crowded.group_by(AppEventRow.app).having(func.count() >= kept).limit(1)
        forgotten = connection.execute(crowded).first() is not None
    if forgotten:
        raise SupervisorError(
            "RESUME_TOKEN_EXPIRED",
            "Events that followed this position have been forgotten; start again without a token.",
            metadata={"oldest_revision": str(oldest)},
        )
    return [AppEvent.FromString(body) for number, body in rows if number <= up_to]


def _number_of(text: str) -> int:
    if _EVENT_ID.fullmatch(text) is None:
        raise SupervisorError("INVALID_PAGE_TOKEN", "The page token is not one of ours.")
    return int(text, 16)

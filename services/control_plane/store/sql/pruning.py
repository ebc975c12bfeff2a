"""What the catalog forgets: expired operations and request ids, and events and changes beyond bounds.

Each call finds a bounded part with a reading connection; the writer then forgets it as one command.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, bindparam
from sqlmodel import col, func, select

from services.control_plane.store.records import last_event_number
from services.control_plane.store.sql.tables import AppEventRow, ChangeRow, OperationRow, RequestRow
from services.control_plane.store.state import State
from services.control_plane.store.transaction import CommandTransaction

# What each call asks, also where nothing goes, is made once: it takes longer than the database does.
_EXPIRED_REQUESTS = (
    select(RequestRow.request_id).where(RequestRow.expire_time <= bindparam("now")).limit(bindparam("most"))
)
_ENDED = select(OperationRow.name).where(col(OperationRow.done)).order_by(col(OperationRow.expire_time))
_OLDEST_ENDED = _ENDED.limit(bindparam("most"))
_EXPIRED_ENDED = _ENDED.where(col(OperationRow.expire_time).between(1, bindparam("now"))).limit(
    bindparam("most")
)
_CROWDED = (
    select(AppEventRow.app)
    .where(col(AppEventRow.app).in_(bindparam("apps", expanding=True)))
    .group_by(AppEventRow.app)
    .having(func.count() > bindparam("most"))
)


@dataclass(frozen=True)
class Bounds:
    """What is kept, and how much one call looks at."""

    changes: int = 200_000
    """Newest revisions that the change log tells of; a removed app's events go with its removal."""
    events: int = 1_000
    """Newest events of each app."""
    operations: int = 50_000
    """Operations that ended last, each with the app as it then was, about 3 KB in memory; the others go
    before their time: at ten creates a second a day's would take gigabytes."""
    at_once: int = 500
    """Records of each kind in one call: bounds how long it holds up other writes."""


@dataclass(frozen=True)
class Prunable:
    """What one call found."""

    operations: list[str]
    requests: list[str]
    events: list[tuple[str, int]]
    """Apps, each with the id up to which its events go."""
    event_count: int
    oldest_revision: int
    """The change log goes up to here; 0 for none of it."""

    def __bool__(self) -> bool:
        return bool(self.operations or self.requests or self.events or self.oldest_revision)

    def forget(self, transaction: CommandTransaction) -> int:
        """Forget what is still beyond its bounds; return how many records that are not changes."""
        operations = 0
        for name in self.operations:
            operation = transaction.operation(name)
            if operation is not None and operation.done:
                transaction.delete_operation(name)
                operations += 1
        for request_id in self.requests:
            transaction.forget_expired_request(request_id)
        for app, up_to in self.events:
            transaction.forget_events(app, up_to)
        if self.oldest_revision:
            transaction.forget_changes(self.oldest_revision)
        return operations + len(self.requests) + self.event_count


def find_prunable(connection: Connection, state: State, bounds: Bounds, now: int) -> Prunable:
    """Return a bounded part of what can go as of `now` (µs)."""
    requests = connection.execute(_EXPIRED_REQUESTS, {"now": now, "most": bounds.at_once})
    oldest_revision, events = _old_changes(connection, state, bounds)
    events += _surplus_events(connection, state, bounds)
    count = sum(
        connection.execute(
            select(func.count()).where(AppEventRow.app == app, col(AppEventRow.id) <= up_to)
        ).scalar_one()
        for app, up_to in events
    )
    operations = _old_operations(connection, state, bounds, now)
    return Prunable(operations, list(requests.scalars()), events, count, oldest_revision)


def _old_operations(connection: Connection, state: State, bounds: Bounds, now: int) -> list[str]:
    """Return ended operations that have expired, or are more than may be kept, the oldest first."""
    surplus = len(state.mirror.operations) - state.mirror.count_open_operations() - bounds.operations
    if surplus > 0:
        found = connection.execute(_OLDEST_ENDED, {"most": min(surplus, bounds.at_once)})
    else:
        found = connection.execute(_EXPIRED_ENDED, {"now": now, "most": bounds.at_once})
    return list(found.scalars())


def _old_changes(connection: Connection, state: State, bounds: Bounds) -> tuple[int, list[tuple[str, int]]]:
    """Return up to which revision the log can go, and the events that go with removed apps."""
    oldest = min(state.revision - bounds.changes, state.oldest_revision + 10 * bounds.at_once)
    if oldest <= state.oldest_revision:
        return 0, []
    removals = connection.execute(
        select(ChangeRow.key, ChangeRow.revision)
        .where(ChangeRow.revision <= oldest, ChangeRow.kind == "app", col(ChangeRow.deleted))
        .order_by(col(ChangeRow.revision))
        .limit(bounds.at_once)
    ).all()
    if len(removals) == bounds.at_once:
        # A revision goes as a whole: the last one's removals may not all have been found.
        oldest = max(removals[-1].revision - 1, removals[0].revision)
    events = [(app, last_event_number(revision)) for app, revision in removals if revision <= oldest]
    return oldest, events


def _surplus_events(connection: Connection, state: State, bounds: Bounds) -> list[tuple[str, int]]:
    """Look at apps that have had events since they were last looked at."""
    apps = [state.eventful.popitem()[0] for _ in range(min(bounds.at_once, len(state.eventful)))]
    if not apps:
        return []
    # One statement for all of them: a burst of new apps has few events each, and there is nothing to do.
    crowded = connection.execute(_CROWDED, {"apps": apps, "most": bounds.events})
    surplus: list[tuple[str, int]] = []
    for app in crowded.scalars().all():
        up_to = connection.execute(
            select(AppEventRow.id)
            .where(AppEventRow.app == app)
            .order_by(col(AppEventRow.id).desc())
            .offset(bounds.events)
            .limit(1)
        ).scalar()
        if up_to is not None:
            surplus.append((app, up_to))
    return surplus

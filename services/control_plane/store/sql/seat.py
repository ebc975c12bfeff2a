"""The row that says who leads, taken and kept on a connection of its own: a busy writer delays no renewal."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from services.control_plane.store.errors import unavailable
from services.control_plane.store.interface import Standing
from services.control_plane.store.sql.connections import KeptConnection
from services.control_plane.store.sql.database import Database
from services.control_plane.tenure import steady_seconds

CALL_SECONDS = 3
"""How long one call may take at the server; the leader's time goes on meanwhile."""
STILL_SECONDS = 3.0
"""For which a replica may stand still in the midst of what it sends; then its session is ended."""
_END_STILL = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity AS still
WHERE datname = current_database() AND usename = current_user
AND application_name = current_setting('application_name')
AND state IN ('active', 'idle in transaction') AND wait_event = 'ClientRead' AND backend_xid IS NOT NULL
AND state_change < clock_timestamp() - CAST(:seconds AS float) * interval '1 second'
AND NOT EXISTS (SELECT FROM pg_locks WHERE pg_locks.pid = still.pid AND locktype = 'advisory')
"""
"""Sessions that hold the lock of every write and send nothing; those that migrate the schema may take longer.

The server's own limit of idle transactions ends them by chance alone: it does not hold while the rest of what
is sent together is waited for, and a request to flush that comes after the end of that turns it off."""


class _Ends:
    """When another's time is up, counted here once it is seen: the server's clock may be set to another time.

    Set back, it would keep everybody from leading until it has caught up; set forward, it would end the time
    of a leader that goes on by its own clock.
    """

    def __init__(self) -> None:
        self._expire_time = 0
        self._end = self._looked = -math.inf

    def remaining(self, looked: float, expire_time: int, remaining: float, lasts: float) -> float:
        """Return the seconds that are left of an entry that was read after `looked`, at most `lasts`.

        `remaining` is what the server's clock says. Steady clock, seconds.
        """
        now = steady_seconds()
        if expire_time != self._expire_time:
            self._expire_time = expire_time
            # It was not there at the last look: so it was renewed after that.
            self._end = max(now + min(remaining, lasts), self._looked + lasts)
        self._looked = looked
        return self._end - now


class SqlLeaderSeat:
    """The `LeaderSeat` of one database."""

    def __init__(self, database: Database) -> None:
        self._connection = KeptConnection(database.writer, self._prepare)
        self._now = database.now if database.shared else "0"
        self._lock = " FOR UPDATE" if database.shared else ""
        self._shared = database.shared
        self._ends = _Ends()

    @property
    def exclusive(self) -> bool:
        """Whether nobody else can open this catalog."""
        return not self._shared

    def take(self, holder: str, address: str, seconds: float) -> Standing:
        """See `LeaderSeat.take`."""
        looked = steady_seconds()
        with self._transaction() as connection:
            self._end_still(connection)
            # The lock of every write: none of an older term can be under way once the new one is stored.
            term = connection.execute(text(f"SELECT term FROM meta WHERE id = 1{self._lock}")).scalar_one()  # noqa: S608
            known = connection.execute(
                text(
                    f"SELECT holder, address, expire_time, expire_time - {self._now} AS remaining "  # noqa: S608
                    f"FROM leadership WHERE id = 1{self._lock}"
                )
            ).one()
            if self._shared and known.holder:
                remaining = self._ends.remaining(looked, known.expire_time, known.remaining / 1e6, seconds)
                if remaining > 0:
                    return Standing(term, False, remaining, known.holder, known.address)
            # Also above the terms of a catalog of which this one is an older copy: nodes may know them.
            term = max(term + 1, int(time.time()))
            connection.execute(text("UPDATE meta SET term = :term WHERE id = 1"), {"term": term})
            connection.execute(
                text(
                    "UPDATE leadership SET holder = :holder, address = :address, term = :term, "  # noqa: S608
                    f"expire_time = {self._now} + :lasts WHERE id = 1"
                ),
                {"holder": holder, "address": address, "term": term, "lasts": int(seconds * 1e6)},
            )
            connection.commit()
            return Standing(term, True, seconds)

    def renew(self, holder: str, term: int, seconds: float) -> bool:
        """See `LeaderSeat.renew`."""
        return self._change(f"expire_time = {self._now} + :lasts", holder, term, lasts=int(seconds * 1e6))

    def leave(self, holder: str, term: int) -> None:
        """See `LeaderSeat.leave`."""
        self._change("holder = '', address = '', expire_time = 0", holder, term)

    def close(self) -> None:
        """Drop the connection."""
        self._connection.drop()

    def _prepare(self, connection: Connection) -> None:
        if self._shared:
            for setting in ("lock_timeout", "statement_timeout"):
                connection.exec_driver_sql(f"SET {setting} = '{CALL_SECONDS}s'")
            connection.commit()

    def _end_still(self, connection: Connection) -> None:
        if self._shared:
            connection.execute(text(_END_STILL), {"seconds": STILL_SECONDS})

    def _change(self, change: str, holder: str, term: int, **values: int) -> bool:
        with self._transaction() as connection:
            self._end_still(connection)
            changed = connection.execute(
                text(f"UPDATE leadership SET {change} WHERE id = 1 AND holder = :holder AND term = :term"),  # noqa: S608
                {"holder": holder, "term": term, **values},
            ).rowcount
            connection.commit()
            return changed == 1

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            connection = self._connection.get()
            yield connection
            connection.rollback()
        except (DBAPIError, OSError) as error:
            self.close()
            raise unavailable(error) from error
        except BaseException:
            self.close()
            raise
        finally:
            if not self._shared:
                self.close()  # its file is written by the writer's connection

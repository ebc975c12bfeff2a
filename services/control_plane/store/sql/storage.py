"""Stores batches on the writer's one connection, and finds out what became of a commit that failed.

Used by the writer's thread alone, which so is the only one to move the state.
"""

from __future__ import annotations

import logging
import uuid

from sqlalchemy import Connection
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError

from services.control_plane.store.changes import Meta
from services.control_plane.store.clock import RemoteClock
from services.control_plane.store.errors import StoreError
from services.control_plane.store.history import new_history
from services.control_plane.store.records import RequestRecord
from services.control_plane.store.sql.database import Database
from services.control_plane.store.sql.reader import read_changes, read_histories
from services.control_plane.store.sql.statements import Statements
from services.control_plane.store.state import State
from services.control_plane.store.write_set import Batch
from services.control_plane.store.writer import UnreadableError

_log = logging.getLogger(__name__)


class BatchStorage:
    """Makes and stores batches; renews its connection after a failure. See the writer's `Storage`."""

    def __init__(self, database: Database, state: State, clock: RemoteClock | None = None) -> None:
        self._engine = database.writer
        self._statements = Statements(database.writer.dialect)
        self._state = state
        self._clock = clock
        self.shared = database.shared
        self.writer_id = uuid.uuid4().hex
        """Of this process, in its commits."""
        self._number = 0
        self._connection: Connection | None = None
        self._begins = ""
        self._doubt: tuple[Batch, int] | None = None

    @property
    def in_doubt(self) -> bool:
        """Whether it is unknown if the last commit has happened; nothing can be stored until then."""
        return self._doubt is not None

    def begin(self) -> Batch:
        """Lock the catalog, take in what others have committed, and return a batch over that.

        Raises what the database raises, and StoreError if what this process knows is not in it any more.
        """
        connection = self._connect()
        try:
            meta = self._statements.lock(connection)
            self._catch_up(connection, meta)
        except BaseException:
            self.forget()
            raise
        return Batch(self._state, self.find_request, term=meta.term, begins=self._begins)

    def follow(self) -> None:
        """Take in what others have committed, without a lock."""
        connection = self._connect()
        self._statements.begin_snapshot(connection)
        self._catch_up(connection, self._statements.look(connection))
        self.forget()

    def _catch_up(self, connection: Connection, meta: Meta) -> None:
        state = self._state
        if meta.now is not None and self._clock is not None:
            self._clock.tell(meta.now)
        if meta.revision < state.revision or meta.catalog_id != state.catalog_id:
            raise _lost(state)
        if meta.history != state.histories.newest:
            if not read_histories(connection).continues(state.histories, state.revision):
                raise _lost(state)
        elif meta.revision == state.revision:
            return
        state.take(read_changes(connection, meta, state.revision, self._known))

    def _known(self, feed: str) -> list[str]:
        return [record.name for record in getattr(self._state.mirror, feed).values()]

    def find_request(self, request_id: str) -> RequestRecord | None:
        """Read a stored request, expired or not. Raises UnreadableError."""
        try:
            return self._statements.find_request(self._connect(), request_id)
        except (DBAPIError, OSError) as error:
            raise UnreadableError(str(error)) from error

    def store(self, batch: Batch) -> None:
        """Write and commit a batch; a batch without changes only ends what its reads began.

        On an error nothing is stored, unless `in_doubt`. Raises what the database raises.
        """
        if not batch.commits:
            self.forget()
            return
        connection = self._connect()
        self._number += 1
        try:
            self._statements.write(connection, batch, self.writer_id, self._number)
        except BaseException:
            self.forget()
            raise
        self._doubt = batch, self._number
        connection.commit()
        self._doubt = None
        self._begins = ""

    def forget(self) -> None:
        """End the transaction that reads or a failed batch have left."""
        if self._connection is None:
            return
        try:
            self._connection.rollback()
        except (DBAPIError, OSError):
            self.disconnect()

    def settle(self) -> Batch | None:
        """Find out, on a new connection, whether the commit in doubt has happened; return it if so.

        While the database cannot be asked it stays `in_doubt`. Raises StoreError as `begin` does.
        """
        self.disconnect()
        if self._doubt is None:
            return None
        batch, number = self._doubt
        try:
            connection = self._connect()
            # A server whose client is gone may still be about to commit: the lock waits for that.
            meta = self._statements.lock(connection)
            stored = self._statements.last_number(connection, self.writer_id) >= number
        except (DBAPIError, OSError):
            self.disconnect()
            return None
        self.forget()
        if meta.revision < (batch.revision if stored else self._state.revision):
            raise _lost(self._state)
        self._doubt = None
        return batch if stored else None

    def disconnect(self) -> None:
        """Drop the connection; the next use makes a new one, and its first commit begins a history."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            connection.invalidate()
            connection.close()
        except (DBAPIError, OSError) as error:
            _log.warning("Closing the catalog failed: %s", error, extra={"action": "store.close_failed"})

    def _connect(self) -> Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
            self._begins = new_history()
        return self._connection

    @staticmethod
    def is_of_one_command(error: BaseException) -> bool:
        """Tell a row that the database refuses from a database that cannot be used."""
        if isinstance(error, DBAPIError):
            return isinstance(error, (IntegrityError, DataError, ProgrammingError))
        return isinstance(error, Exception) and not isinstance(error, OSError)

    @staticmethod
    def is_lost_connection(error: BaseException) -> bool:
        """Tell a connection that was lost, and may be made again at once, from a database that refuses."""
        cause = error.__cause__ if isinstance(error, UnreadableError) else error
        return isinstance(cause, DBAPIError) and cause.connection_invalidated


def _lost(state: State) -> StoreError:
    return StoreError(
        f"The catalog's database has lost revision {state.revision}, which was committed: it was "
        "restored from an older copy, or failed over to a server that was behind. Start again to go on "
        "with what it has."
    )

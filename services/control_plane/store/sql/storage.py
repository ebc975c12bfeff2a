"""Stores batches on the writer's one connection, and finds out what became of a commit that failed.

Used by the writer's thread alone, which so is the only one to move the state.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence

from sqlalchemy import Connection
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError

from services.control_plane.store.changes import Meta
from services.control_plane.store.clock import RemoteClock
from services.control_plane.store.errors import StoreError
from services.control_plane.store.history import new_history
from services.control_plane.store.records import RequestRecord
from services.control_plane.store.sql.connections import KeptConnection
from services.control_plane.store.sql.database import Database
from services.control_plane.store.sql.reader import Known, read_changes, read_histories
from services.control_plane.store.sql.rows import Row
from services.control_plane.store.sql.statements import Statements
from services.control_plane.store.state import State
from services.control_plane.store.write_set import Batch
from services.control_plane.store.writer import UnreadableError


class BatchStorage:
    """Makes and stores batches; renews its connection after a failure. See the writer's `Storage`."""

    def __init__(self, database: Database, state: State, clock: RemoteClock | None = None) -> None:
        self._statements = Statements(database)
        self._state = state
        self._clock = clock
        self.shared = database.shared
        self.writer_id = uuid.uuid4().hex
        """Of this process, in its commits."""
        self._number = 0
        self._connection = KeptConnection(database.writer, self._begin_history)
        self._begins = ""
        self._doubt: tuple[Batch, int] | None = None

    def _begin_history(self, _: Connection) -> None:
        self._begins = new_history()

    @property
    def in_doubt(self) -> bool:
        """Whether it is unknown if the last commit has happened; nothing can be stored until then."""
        return self._doubt is not None

    def begin(self) -> Batch:
        """Lock the catalog, take in what others have committed, and return a batch over that.

        Raises what the database raises, and StoreError if what this process knows is not in it any more.
        """
        connection = self._connection.get()
        try:
            meta, log = self._statements.lock(connection, self._state.revision)
            self._catch_up(connection, meta, log)
        except BaseException:
            self.forget()
            raise
        return Batch(self._state, self.find_request, term=meta.term, begins=self._begins)

    def follow(self) -> None:
        """Take in what others have committed, without a lock."""
        connection = self._connection.get()
        self._catch_up(connection, *self._statements.look(connection, self._state.revision))
        self.forget()

    def _catch_up(self, connection: Connection, meta: Meta, log: Sequence[Row]) -> None:
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
        known = Known(state.revision, state.histories, state.mirror.keys)
        state.take(read_changes(connection, self._statements, meta, log, known))

    def find_requests(self, ids: Collection[str]) -> dict[str, RequestRecord | None]:
        """Read stored requests, expired or not. Raises what the database raises."""
        return self._statements.find_requests(self._connection.get(), ids)

    def find_request(self, request_id: str) -> RequestRecord | None:
        """Read a stored request, expired or not. Raises UnreadableError."""
        try:
            return self.find_requests([request_id])[request_id]
        except (DBAPIError, OSError) as error:
            raise UnreadableError(str(error)) from error

    def store(self, batch: Batch) -> None:
        """Write and commit a batch; a batch without changes only ends what its reads began.

        On an error nothing is stored, unless `in_doubt`. Raises what the database raises.
        """
        if not batch.commits:
            self.forget()
            return
        connection = self._connection.get()
        self._number += 1
        self._doubt = batch, self._number
        try:
            self._statements.store(connection, batch, self.writer_id, self._number)
        except BaseException as error:
            if self.is_of_one_command(error):
                self._doubt = None
                self.forget()
            raise
        self._doubt = None
        self._begins = ""

    def forget(self) -> None:
        """End the transaction that reads or a failed batch have left."""
        self._connection.roll_back()

    def settle(self) -> Batch | None:
        """Find out, on a new connection, whether the commit in doubt has happened; return it if so.

        While the database cannot be asked it stays `in_doubt`. Raises StoreError as `begin` does.
        """
        self.disconnect()
        if self._doubt is None:
            return None
        batch, number = self._doubt
        try:
            connection = self._connection.get()
            # A server whose client is gone may still be about to commit: the lock waits for that.
            meta, _ = self._statements.lock(connection)
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
        self._connection.drop()

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

"""Stores batches on the writer's one connection, and finds out what became of a commit that failed.

Used by the writer's thread alone.
"""

from __future__ import annotations

import logging

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlmodel import select

from services.control_plane.store.errors import StoreError
from services.control_plane.store.write_set import Batch, State
from services.control_plane.store.records import RequestRecord
from services.control_plane.store.sql.statements import Statements
from services.control_plane.store.sql.tables import MetaRow

_log = logging.getLogger(__name__)


class UnreadableError(BaseException):
    """The database failed under a command's read; not an Exception, for no command shall catch it."""


class BatchStorage:
    """Stores batches; renews its connection after a failure."""

    def __init__(self, engine: Engine, state: State) -> None:
        self._engine = engine
        self._statements = Statements(engine.dialect)
        self._state = state
        self._connection: Connection | None = None
        self._doubt: Batch | None = None

    @property
    def in_doubt(self) -> bool:
        """Whether it is unknown if the last commit has happened; nothing can be stored until then."""
        return self._doubt is not None

    def find_request(self, request_id: str) -> RequestRecord | None:
        """Read a stored request, expired or not. Raises UnreadableError."""
        try:
            return self._statements.find_request(self._connect(), request_id)
        except (DBAPIError, OSError) as error:
            raise UnreadableError(str(error)) from error

    def store(self, batch: Batch) -> None:
        """Write and commit a batch; a batch without changes only ends what its reads began.

        On an error nothing is stored, unless `in_doubt`. Raises what the database raises, and
        StoreError if another program has written the catalog.
        """
        if not batch.commits:
            self.forget()
            return
        connection = self._connect()
        try:
            self._statements.write(connection, batch)
        except BaseException:
            self.forget()
            raise
        self._doubt = batch
        connection.commit()
        self._doubt = None

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

        While the database cannot be asked it stays `in_doubt`. Raises StoreError if another program
        has written the catalog.
        """
        batch = self._doubt
        self.disconnect()
        if batch is None:
            return None
        try:
            stored = self._connect().execute(select(MetaRow.revision)).scalar_one()
        except (DBAPIError, OSError):
            self.disconnect()
            return None
        self.forget()
        if stored not in (batch.revision, self._state.revision):
            raise StoreError("Another program has written the catalog; only one control plane may.")
        self._doubt = None
        return batch if stored == batch.revision else None

    def disconnect(self) -> None:
        """Drop the connection; the next use makes a new one."""
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
        return self._connection


def is_of_one_command(error: Exception) -> bool:
    """Tell a row that the database refuses from a database that cannot be used."""
    if isinstance(error, DBAPIError):
        return isinstance(error, (IntegrityError, DataError, ProgrammingError))
    return not isinstance(error, OSError)

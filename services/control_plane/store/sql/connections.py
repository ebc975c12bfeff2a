"""A connection that is kept: made when it is first asked for, and again after it was dropped."""

from __future__ import annotations

import logging
from collections.abc import Callable

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

_log = logging.getLogger(__name__)


class KeptConnection:
    """One connection of an engine, for one user at a time. `made` is called with each new one."""

    def __init__(self, engine: Engine, made: Callable[[Connection], None]) -> None:
        self._engine = engine
        self._made = made
        self._connection: Connection | None = None

    def get(self) -> Connection:
        """Return the connection. Raises what the database raises."""
        if self._connection is None:
            self._connection = self._engine.connect()
            self._made(self._connection)
        return self._connection

    def roll_back(self) -> None:
        """End the transaction that reads or a failed write have left; a connection that cannot is dropped."""
        if self._connection is None:
            return
        try:
            self._connection.rollback()
        except (DBAPIError, OSError):
            self.drop()

    def drop(self) -> None:
        """Close it, whatever state it is in."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            connection.invalidate()
            connection.close()
        except (DBAPIError, OSError) as error:
            _log.warning("Closing the catalog failed: %s", error, extra={"action": "store.close_failed"})

"""The catalog in PostgreSQL, which any number of control planes may write.

libpq reads the URL, so that hosts, TLS and passwords are given as to every other program. A server that
is gone, or a control plane that hangs in a transaction, is found out in seconds on both sides.
"""

from __future__ import annotations

import logging
import os
import selectors
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from services.control_plane.store.errors import StoreError
from services.control_plane.store.sql.array_dumpers import register_columns
from services.control_plane.store.sql.bulk import Step
from services.control_plane.store.sql.database import Database
from services.control_plane.store.sql.statements import CHANNEL

READERS = 4
"""Connections for reads outside the mirror."""
CONNECTION: dict[str, str | int] = {
    "application_name": "appsupervisor control plane",
    "target_session_attrs": "read-write",  # of several hosts the one that can be written
    "connect_timeout": 5,
    # A server that does not answer any more is given up within 10 s, also in the middle of a call.
    "keepalives_idle": 3,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 8_000,
}
"""What libpq is told unless the URL says otherwise."""
SESSION = """
SET idle_in_transaction_session_timeout = '3s';
SET lock_timeout = '5s';
SET statement_timeout = '60s';
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'
"""
# A control plane that is stopped or cut off in a batch holds the one lock: after 3 s the server takes it
# back; others wait longer than that. What is acknowledged was made durable.
NOW = "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)"
"""The server's clock, µs since the Unix epoch."""
CLOSE_SECONDS = 6.0
"""How long closing waits for the listener: it may just be connecting."""
LISTEN_PAUSE = 1.0
"""Seconds between tries to listen again; a poll goes on meanwhile."""
MIGRATION_SECONDS = 600
"""How long a migration may take, and others wait for it."""
SCHEMA_LOCK = 0x6170707375706572
"""Key of the advisory lock under which the schema is migrated: `appsuper`."""

_log = logging.getLogger(__name__)


def open_postgresql(url_text: str, stack: ExitStack) -> Database:
    """Return the engines on a database; the stack closes them. Raises StoreError if the URL is not one."""
    kind, _, rest = url_text.partition("://")
    if kind.partition("+")[2] not in ("", "psycopg"):
        raise StoreError("PostgreSQL is spoken to by psycopg alone; write postgresql://user@host/database")
    try:
        given = conninfo_to_dict(f"postgresql://{rest}")
    except psycopg.Error:
        # Its own words may quote the password.
        raise StoreError(
            "The database URL cannot be read; write for example postgresql://user:password@host:5432/database"
        ) from None
    conninfo = make_conninfo("", **{**CONNECTION, **given})

    def connect() -> psycopg.Connection[Any]:
        connection = psycopg.connect(conninfo)
        try:
            register_columns(connection)
            connection.execute(SESSION)
            connection.commit()
        except BaseException:
            connection.close()
            raise
        return connection

    writer = create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool)
    # Connections of a server that was restarted are found out before they are used.
    reader = create_engine(
        "postgresql+psycopg://", creator=connect, pool_size=READERS, max_overflow=0, pool_timeout=5,
        pool_pre_ping=True,
    )  # fmt: skip
    stack.callback(writer.dispose)
    stack.callback(reader.dispose)
    return Database(
        writer,
        reader,
        _label(given),
        AllAtOnce(),
        now=NOW,
        shared=True,
        listen=lambda told: NotificationListener(connect, told),
        lock_schema=_lock_schema,
    )


def _label(given: dict[str, Any]) -> str:
    host = given.get("host") or given.get("hostaddr") or "localhost"
    return f"postgresql://{host}/{given.get('dbname') or given.get('user') or ''}"


def _lock_schema(connection: Connection) -> None:
    for setting in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
        connection.exec_driver_sql(f"SET LOCAL {setting} = '{MIGRATION_SECONDS}s'")
    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (SCHEMA_LOCK,))


class AllAtOnce:
    """Sends statements together and reads their results together: one round trip, however many they are."""

    def run(self, connection: Connection, steps: Sequence[Step]) -> Sequence[Any]:
        """See `Runner.run`."""
        if not connection.in_transaction():
            connection.begin()  # SQLAlchemy must know of the transaction that psycopg begins
        raw: Any = connection.connection.driver_connection
        try:
            with raw.pipeline():
                return [raw.execute(step.sql, step.parameters or None, binary=True) for step in steps]
        except psycopg.Error as error:
            gone = raw.closed or raw.broken
            raise DBAPIError.instance(
                None, None, error, psycopg.Error, connection_invalidated=gone, dialect=connection.dialect
            ) from error

    def run_and_commit(self, connection: Connection, steps: Sequence[Step]) -> Sequence[Any]:
        """See `Runner.run_and_commit`."""
        found = self.run(connection, [*steps, Step("COMMIT")])
        connection.commit()  # the server has: this tells SQLAlchemy
        return found[:-1]


class NotificationListener:
    """Calls `told` with the id of each writer that has committed; connects again for ever."""

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]], told: Callable[[str], None]) -> None:
        self._connect = connect
        self._told = told
        self._closed = threading.Event()
        self._wake_read, self._wake_write = os.pipe()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="store-listener", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        os.write(self._wake_write, b"x")
        self._thread.join(CLOSE_SECONDS)
        if not self._thread.is_alive():
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                with self._connect() as connection:
                    self._listen(connection)
            except (psycopg.Error, OSError) as error:
                if not self._failing:
                    _log.warning(
                        "The catalog's notifications are not heard: %s",
                        " ".join(str(error).split()),
                        extra={"action": "store.not_listening"},
                    )
                self._failing = True
                self._closed.wait(LISTEN_PAUSE)

    def _listen(self, connection: psycopg.Connection[Any]) -> None:
        connection.autocommit = True
        connection.execute(f"LISTEN {CHANNEL}")
        self._failing = False
        self._told("")  # what was committed before was not heard
        with selectors.DefaultSelector() as ready:
            ready.register(connection.fileno(), selectors.EVENT_READ)
            ready.register(self._wake_read, selectors.EVENT_READ)
            while not self._closed.is_set():
                ready.select()
                for notification in connection.notifies(timeout=0):
                    self._told(notification.payload)

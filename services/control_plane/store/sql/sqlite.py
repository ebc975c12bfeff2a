"""The catalog in an SQLite file: its mode, its one owner, its write-ahead log.

After a clean end the file is the whole catalog: the log is empty, and what was deleted is overwritten.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from services.control_plane.store.errors import StoreError
from services.control_plane.store.sql.bulk import Step
from services.control_plane.store.sql.database import Database

BUSY_SECONDS = 5.0
"""How long SQLite waits for a lock that someone else (a backup, a shell) holds on the file."""
READERS = 4
"""Connections for reads outside the mirror."""
WAL_PAGES = 4_000
"""Pages of 4 KiB after which the log is written back into the file: its size while nobody reads long."""
WAL_BYTES = 32 * 1024 * 1024
"""What is left of a log that grew beyond this while a reader held it up."""
OPTIONS = {"timeout": float, "cached_statements": int}
"""What the URL may set, and what each must be."""

_log = logging.getLogger(__name__)


def open_sqlite(url: URL, stack: ExitStack) -> Database:
    """Return the engines on a file, made if it isn't there; the stack closes them and gives the file free.

    Raises StoreError if the URL is not usable, the file cannot be opened or another process has it.
    """
    path, options = sqlite_path(url), _options(url)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # One file, one name: by whatever links two control planes reach it, they meet at one lock.
        path = path.resolve()
        _own(path, stack)
        _create(path)
        _refuse_links(path)
    except OSError as error:
        raise StoreError(f"The catalog's file {path} cannot be opened: {error.strerror}.") from error
    url = url.set(database=str(path), query=options)
    writer = create_engine(url, poolclass=NullPool)
    reader = create_engine(
        url.set(
            database=path.as_uri(),
            query={**options, "mode": "ro", "uri": "true", "check_same_thread": "false"},
        ),
        pool_size=READERS,
        max_overflow=0,
    )
    event.listen(writer, "connect", _prepare_writer)
    event.listen(writer, "begin", _begin)
    event.listen(reader, "connect", _prepare_reader)
    stack.callback(writer.dispose)
    stack.callback(reader.dispose)
    return Database(
        writer, reader, str(path), InTurn(), path=path, finish=lambda: _finish(path, writer, reader)
    )


class InTurn:
    """Runs one statement after another: the file is in this process.

    By the driver's own connection: SQLAlchemy's way there costs more than the statement of a small batch.
    """

    def run(self, connection: Connection, steps: Sequence[Step]) -> Sequence[Any]:
        """See `Runner.run`."""
        if not connection.in_transaction():
            connection.begin()
        with _driver_of(connection) as driver:
            return [driver.execute(step.sql, step.parameters) for step in steps]

    def run_and_commit(self, connection: Connection, steps: Sequence[Step]) -> Sequence[Any]:
        """See `Runner.run_and_commit`."""
        found = self.run(connection, steps)
        connection.commit()
        return found


def sqlite_path(url: URL) -> Path:
    """Return the file of an SQLite URL. Raises StoreError for a database in memory."""
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise StoreError("The catalog needs a file, so that it survives; write sqlite:///path/to/file.db")
    return Path(url.database).absolute()


def _options(url: URL) -> dict[str, str]:
    options = {"timeout": str(BUSY_SECONDS)}
    for name, value in url.query.items():
        kind = OPTIONS.get(name)
        if kind is None:
            raise StoreError(f"The database URL's option {name!r} is not one of {', '.join(OPTIONS)}.")
        try:
            options[name] = str(kind(str(value)))
        except ValueError:
            raise StoreError(f"The database URL's option {name} must be a number, not {value!r}.") from None
    return options


def _own(path: Path, stack: ExitStack) -> None:
    # flock, not POSIX locks: it also refuses a second store in this process, and no unrelated close
    # of the file lets it go.
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    stack.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        raise StoreError(
            f"Another control plane (process {owner or 'unknown'}) uses the catalog {path}; "
            "stop it first, or give this one another --database-url."
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def _create(path: Path) -> None:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _refuse_links(path: Path) -> None:
    # SQLite names its log after the path: what one name's log holds is not seen through the other.
    names = path.stat().st_nlink
    if names > 1:
        raise StoreError(
            f"The catalog's file {path} has {names} names (hard links): another control plane could open it "
            "by one of them, and each would miss what the other wrote. Remove the others, or make a copy."
        )


def _prepare_writer(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # BEGIN is ours, so that also DDL is part of a transaction
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "secure_delete=ON",  # secrets of what was deleted do not stay in free pages
        f"wal_autocheckpoint={WAL_PAGES}",
        f"journal_size_limit={WAL_BYTES}",
    ):
        connection.execute(f"PRAGMA {pragma}").fetchall()


def _begin(connection: Connection) -> None:
    with _driver_of(connection) as driver:
        driver.execute("BEGIN IMMEDIATE")


@contextmanager
def _driver_of(connection: Connection) -> Iterator[Any]:
    """Lend the driver's own connection. Raises DBAPIError as SQLAlchemy's does."""
    try:
        yield connection.connection.driver_connection
    except sqlite3.Error as error:
        raise DBAPIError.instance(None, None, error, sqlite3.Error, dialect=connection.dialect) from error


def _prepare_reader(connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA query_only=ON").fetchall()


def _finish(path: Path, writer: Engine, reader: Engine) -> None:
    """Close the readers, which would hold the log, and write all of it back into the file."""
    reader.dispose()
    try:
        connection = writer.raw_connection()
        try:
            busy, _, _ = connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            connection.close()
        if busy:
            _log.warning(
                "The catalog's log could not be written back: something else reads %s; copy %s-wal with it",
                path,
                path,
                extra={"action": "store.checkpoint_busy"},
            )
    except DBAPIError as error:
        _log.warning("The catalog's log could not be written back: %s", error.orig,
                     extra={"action": "store.checkpoint_failed"})  # fmt: skip

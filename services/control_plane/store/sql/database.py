"""Opening the catalog's database: SQLite's file, its mode, its one owner, and the engines on it.

SQL elsewhere in the store is the same for every database; what differs between them is here.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import NullPool

from services.control_plane.store.errors import StoreError

BUSY_SECONDS = 5.0
"""How long SQLite waits for a lock that someone else (a backup, a shell) holds on the file."""
READERS = 4
"""Connections for reads outside the mirror."""


@dataclass(frozen=True)
class Database:
    """The engines on one database: `writer` for the one writing connection, `reader` for reads."""

    writer: Engine
    reader: Engine
    label: str
    """What it is, for messages; without a password."""
    path: Path | None = None
    """SQLite's file."""

    def make_private(self) -> None:
        """Keep other users of the machine out of the file: the catalog holds secrets."""
        if self.path is not None:
            for suffix in ("", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    Path(f"{self.path}{suffix}").chmod(0o600)


def open_database(url_text: str, stack: ExitStack) -> Database:
    """Return the engines on a database; the stack closes them and gives its file free.

    Raises StoreError if the URL is not one of a database that is supported, or if another process
    has the file.
    """
    try:
        url = make_url(url_text)
    except ArgumentError as error:
        raise StoreError("The database URL cannot be read; write for example sqlite:///data/cp.db") from error
    if url.get_backend_name() == "sqlite":
        return _open_sqlite(url, stack)
    if url.get_backend_name() == "postgresql":
        writer, reader = create_engine(url, poolclass=NullPool), create_engine(url, pool_size=READERS)
        stack.callback(writer.dispose)
        stack.callback(reader.dispose)
        return Database(writer, reader, url.render_as_string(hide_password=True))
    raise StoreError(f"Databases of the kind {url.get_backend_name()} are not supported; use SQLite.")


def sqlite_path(url: URL) -> Path:
    """Return the file of an SQLite URL. Raises StoreError for a database in memory."""
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise StoreError("The catalog needs a file, so that it survives; write sqlite:///path/to/file.db")
    return Path(url.database).absolute()


def _open_sqlite(url: URL, stack: ExitStack) -> Database:
    path = sqlite_path(url)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _own(path, stack)
        _create(path)
    except OSError as error:
        raise StoreError(f"The catalog's file {path} cannot be opened: {error.strerror}.") from error
    url = url.set(database=str(path), query={"timeout": str(BUSY_SECONDS), **url.query})
    writer = create_engine(url, poolclass=NullPool)
    reader = create_engine(
        url.set(
            database=path.as_uri(),
            query={**url.query, "mode": "ro", "uri": "true", "check_same_thread": "false"},
        ),
        pool_size=READERS,
        max_overflow=0,
    )
    event.listen(writer, "connect", _prepare_writer)
    event.listen(writer, "begin", _begin)
    event.listen(reader, "connect", _prepare_reader)
    stack.callback(writer.dispose)
    stack.callback(reader.dispose)
    return Database(writer, reader, str(path), path)


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


def _prepare_writer(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # BEGIN is ours, so that also DDL is part of a transaction
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "wal_autocheckpoint=4000"):
        connection.execute(f"PRAGMA {pragma}").fetchall()


def _begin(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _prepare_reader(connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA query_only=ON").fetchall()

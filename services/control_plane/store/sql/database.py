"""A database that holds the catalog: its engines, and who is told that it has changed.

SQL elsewhere in the store is the same for every database; what differs is in `sqlite` and `postgresql`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection, Engine

from services.control_plane.store.sql.bulk import Step


class Listener(Protocol):
    """Calls back, from a thread of its own, when another process has committed."""

    def close(self) -> None:
        """End the thread."""
        ...


class Runner(Protocol):
    """Runs statements on a connection, in as few round trips as the database allows.

    Raises SQLAlchemy's DBAPIError as connections do.
    """

    def run(self, connection: Connection, steps: Sequence[Step]) -> Sequence[Any]:
        """Run statements in their order; return what each found, to be fetched as from a DB-API cursor."""
        ...

    def run_and_commit(self, connection: Connection, steps: Sequence[Step]) -> Sequence[Any]:
        """Run statements and commit. After a refused statement nothing is stored; after any other error it is
        unknown whether the commit has happened."""
        ...


@dataclass(frozen=True)
class Database:
    """The engines on one database: `writer` for the one writing connection, `reader` for reads."""

    writer: Engine
    reader: Engine
    label: str
    """What it is, for messages; without a password."""
    runner: Runner
    now: str = "NULL"
    """SQL of the database's clock, µs, where it has one of its own."""
    shared: bool = False
    """Whether other control planes may write it too."""
    path: Path | None = None
    """SQLite's file."""
    listen: Callable[[Callable[[str], None]], Listener] | None = None
    """Begins to call back with the id of each writer that has committed."""
    lock_schema: Callable[[Connection], None] | None = None
    """Keeps other processes from migrating until the transaction ends."""

    finish: Callable[[], None] | None = None
    """Called after the writer has ended, before the engines are closed."""

    def make_private(self) -> None:
        """Keep other users of the machine out of the file: the catalog holds secrets."""
        if self.path is not None:
            for suffix in ("", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    Path(f"{self.path}{suffix}").chmod(0o600)

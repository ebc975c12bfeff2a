"""A database that holds the catalog: its engines, and who is told that it has changed.

SQL elsewhere in the store is the same for every database; what differs is in `sqlite` and `postgresql`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection, Engine


class Listener(Protocol):
    """Calls back, from a thread of its own, when another process has committed."""

    def close(self) -> None:
        """End the thread."""
        ...


@dataclass(frozen=True)
class Database:
    """The engines on one database: `writer` for the one writing connection, `reader` for reads."""

    writer: Engine
    reader: Engine
    label: str
    """What it is, for messages; without a password."""
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

"""Opens a database of the kind that its URL names, and loads what it holds."""

from __future__ import annotations

import gc
from contextlib import ExitStack

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from services.control_plane.store.errors import StoreError
from services.control_plane.store.sql.database import Database
from services.control_plane.store.sql.reader import read_everything
from services.control_plane.store.sql.sqlite import open_sqlite
from services.control_plane.store.sql.statements import Statements
from services.control_plane.store.state import State
from services.rpc.process import collector_paused

LOADING_SECONDS = 300
"""How long a server lets a control plane decode what it has read."""
FREEZE = 10_000
"""Apps from which on the collector is told to leave the loaded catalog alone."""


def open_database(url_text: str, stack: ExitStack) -> Database:
    """Return the engines on a database; the stack closes them and gives what they hold free.

    Raises StoreError if the URL is not one of a database that is supported, or if another process
    has the file.
    """
    kind = url_text.partition("://")[0].partition("+")[0]
    if kind in ("postgresql", "postgres"):
        # With psycopg, which nobody else has use for.
        from services.control_plane.store.sql.postgresql import open_postgresql  # noqa: PLC0415

        return open_postgresql(url_text, stack)
    try:
        url = make_url(url_text)
    except (ArgumentError, ValueError) as error:
        raise StoreError("The database URL cannot be read; write for example sqlite:///data/cp.db") from error
    if url.get_backend_name() == "sqlite":
        return open_sqlite(url, stack)
    raise StoreError(
        f"Databases of the kind {url.get_backend_name()} are not supported; use SQLite or PostgreSQL."
    )


def load(database: Database) -> tuple[State, int | None]:
    """Return all that is stored, as of one moment, and the database's time (µs) if it has one of its own.

    Raises StoreError if a record cannot be decoded, and what the database raises.
    """
    statements = Statements(database)
    with database.writer.connect() as connection:
        if database.shared:
            # Nobody waits for a reader, and a large catalog takes longer than a batch may stand still.
            patience = f"SET LOCAL idle_in_transaction_session_timeout = '{LOADING_SECONDS}s'"
            connection.exec_driver_sql(patience)
        meta, _ = statements.look(connection)
        with collector_paused():
            state = State.loaded(read_everything(connection, meta))
    if len(state.mirror.apps) >= FREEZE:
        gc.freeze()  # all of it stays: to look through it for what doesn't is a quarter of the loading
    return state, meta.now

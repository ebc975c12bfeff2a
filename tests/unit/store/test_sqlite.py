"""The catalog's SQLite file: who may open it, what is refused untouched, and a disk that fills."""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from services.control_plane.store.errors import StoreError
from services.control_plane.store.sql.tables import SCHEMA
from services.control_plane.store.sql_store import SqlCatalogStore, open_store
from services.rpc.errors import SupervisorError
from tests.contract.store.samples import WAIT, app, contents, put


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made" / "on the way" / "catalog.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqlCatalogStore]:
    store = open_store(f"sqlite:///{path}?timeout=0.05")
    yield store
    store.close()


def test_the_file_is_its_owners_alone_and_made_with_its_directory(store: SqlCatalogStore, path: Path) -> None:
    store.write(put(app("apps/a"))).result(WAIT)
    files = sorted(path.parent.iterdir())
    assert [it.name for it in files] == ["catalog.db", "catalog.db-shm", "catalog.db-wal", "catalog.db.lock"]
    assert {stat.S_IMODE(it.stat().st_mode) for it in files} == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_file_that_others_could_read_is_made_private(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.touch(0o644)
    path.with_name("catalog.db-wal").touch(0o644)
    store = open_store(f"sqlite:///{path}")
    store.write(put(app("apps/a"))).result(WAIT)
    assert {stat.S_IMODE(it.stat().st_mode) for it in path.parent.iterdir()} == {0o600}
    store.close()


def test_commits_are_synced(store: SqlCatalogStore) -> None:
    with store._database.writer.connect() as connection:
        pragmas = ("journal_mode", "synchronous", "foreign_keys")
        values = [connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in pragmas]
    assert values == ["wal", 2, 1]


def test_a_second_control_plane_is_refused_and_told_who_is_first(store: SqlCatalogStore, path: Path) -> None:
    with pytest.raises(StoreError, match=f"process {os.getpid()}"):
        open_store(f"sqlite:///{path}")
    code = (
        "import sys; from services.control_plane.store.sql_store import open_store\n"
        "from services.control_plane.store.errors import StoreError\n"
        "try: open_store(sys.argv[1])\n"
        "except StoreError as error: print(error)"
    )
    other = subprocess.run(
        [sys.executable, "-c", code, f"sqlite:///{path}"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert f"process {os.getpid()}" in other.stdout
    store.write(put(app("apps/a"))).result(WAIT)
    store.close()
    open_store(f"sqlite:///{path}").close()


def test_the_schema_of_the_migrations_is_that_of_the_tables(store: SqlCatalogStore) -> None:
    with store._database.reader.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, SCHEMA.metadata) == []
        made = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE sql LIKE '%WITHOUT ROWID%'")
        assert set(made.scalars()) == {
            table.name
            for table in SCHEMA.metadata.tables.values()
            if not table.dialect_options["sqlite"]["with_rowid"]
        }


def test_a_catalog_of_a_newer_program_is_refused_untouched(path: Path) -> None:
    open_store(f"sqlite:///{path}").close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="9999"):
        open_store(f"sqlite:///{path}")
    assert path.read_bytes() == before
    assert not (path.parent / "catalog.db-wal").read_bytes()


def test_a_database_of_something_else_is_refused_untouched(path: Path) -> None:
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE apps (name TEXT)")
    connection.close()
    path.chmod(0o644)
    before = path.read_bytes(), path.stat().st_mode
    with pytest.raises(StoreError, match="not a catalog's"):
        open_store(f"sqlite:///{path}")
    assert (path.read_bytes(), path.stat().st_mode) == before


def test_a_file_that_is_no_database_is_refused_untouched(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreError, match="cannot be opened"):
        open_store(f"sqlite:///{path}")
    assert path.read_bytes() == b"not a database at all" * 100


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "sqlite://",
        "sqlite:///:memory:",
        "mysql://user:hunter2@host/db",
        "sqlite:////dev/null/x.db",
    ],
)
def test_an_unusable_url_is_refused_in_a_sentence_without_its_password(url: str) -> None:
    with pytest.raises(StoreError) as caught:
        open_store(url)
    assert str(caught.value).endswith((".", "db"))
    assert "hunter2" not in str(caught.value)


def test_a_failed_migration_leaves_nothing_behind(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError("pulled the plug")

    with monkeypatch.context() as patch:
        patch.setattr("services.control_plane.store.sql.migrate._begin_catalog", fails)
        with pytest.raises(StoreError):
            open_store(f"sqlite:///{path}")
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    connection.close()
    open_store(f"sqlite:///{path}").close()


def test_a_database_that_someone_else_locks_fails_writes_until_it_is_free(
    store: SqlCatalogStore, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    intruder = sqlite3.connect(path, isolation_level=None)
    intruder.execute("BEGIN IMMEDIATE")
    for _ in range(2):
        with pytest.raises(SupervisorError) as caught:
            store.write(put(app("apps/a"))).result(WAIT)
        assert caught.value.reason == "STORE_UNAVAILABLE"
    assert not contents(store.mirror.apps)
    assert store.events("apps/a", 1) == []
    intruder.rollback()
    intruder.close()
    store.write(put(app("apps/a"))).result(WAIT)
    assert [
        (it.levelname, it.__dict__["action"]) for it in caplog.records if it.levelno >= logging.WARNING
    ] == [("ERROR", "store.unavailable")]


FULL_DISK = """
import resource, signal, sys
from services.control_plane.store.sql_store import open_store
from services.rpc.errors import SupervisorError
from tests.contract.store.samples import app, contents, put
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = open_store(sys.argv[1])
acknowledged = []
def write(first, last):
    for number in range(first, last):
        try:
            store.write(put(app(f"apps/a{number}", domains=("x" * 5000 + str(number),)))).result(20)
        except SupervisorError as error:
            return error.reason
        acknowledged.append(f"apps/a{number}")
assert write(0, 5) is None
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
for _ in range(3):
    assert write(len(acknowledged), 1000) == "STORE_UNAVAILABLE"
    assert sorted(contents(store.mirror.apps)) == sorted(acknowledged)
full = len(acknowledged)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
assert write(full, full + 5) is None
known = sorted(contents(store.mirror.apps))
store.close()
store = open_store(sys.argv[1])
assert sorted(contents(store.mirror.apps)) == known == sorted(acknowledged), (known, acknowledged)
store.close()
print("wrote", full, "then", len(acknowledged))
"""


def test_a_full_disk_fails_writes_until_there_is_room(path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", FULL_DISK, f"sqlite:///{path}"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert child.stdout.startswith("wrote"), child.stderr

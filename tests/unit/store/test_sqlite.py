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
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, create_engine, inspect

from services.control_plane.store.errors import StoreError
from services.control_plane.store.sql import sqlite as sqlite_module
from services.control_plane.store.sql.tables import SCHEMA
from services.control_plane.store.sql.upgrade import scripts, upgrade
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
        timeout=110,
        check=True,
    )
    assert f"process {os.getpid()}" in other.stdout
    store.write(put(app("apps/a"))).result(WAIT)
    store.close()
    open_store(f"sqlite:///{path}").close()


def described(connection: Connection) -> dict[str, Any]:
    """Return what a database has, without the order of columns and the values that old rows were given."""
    found = inspect(connection)
    without_rowid = connection.exec_driver_sql(
        "SELECT name FROM sqlite_master WHERE sql LIKE '%WITHOUT ROWID%'"
    ).scalars()
    by_name = {"key": lambda one: str(one["name"])}
    return {
        "without rowid": sorted(without_rowid),
        **{
            table: {
                "columns": sorted(
                    (one["name"], str(one["type"]), one["nullable"]) for one in found.get_columns(table)
                ),
                "key": found.get_pk_constraint(table),
                "unique": found.get_unique_constraints(table),
                "indexes": sorted(found.get_indexes(table), **by_name),
                "references": sorted(map(str, found.get_foreign_keys(table))),
            }
            for table in found.get_table_names()
        },
    }


def test_a_new_catalog_is_what_the_migrations_make(store: SqlCatalogStore, tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'migrated.db'}")
    with engine.begin() as connection:
        upgrade(connection)
    with engine.connect() as migrated, store._database.reader.connect() as made:
        assert described(made) == described(migrated)
        (version,) = made.exec_driver_sql("SELECT version_num FROM alembic_version").scalars()
        assert [version] == scripts().get_heads(), "the last file is the last migration"
        for connection in (made, migrated):
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, SCHEMA.metadata) == []
            # What the migrations put there, too: with ids of their own.
            rows = [
                connection.exec_driver_sql(f"SELECT {columns} FROM {table}").fetchall()
                for table, columns in (("histories", "after, time"), ("leadership", "id, holder, term"))
            ]
            assert rows == [[(0, 0)], [(1, "", 0)]]
    engine.dispose()


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
        patch.setattr("services.control_plane.store.sql.migrate.environment_values", fails)
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
    (failing,) = (it for it in caplog.records if it.levelno >= logging.WARNING)
    assert (failing.levelname, failing.__dict__["action"]) == ("ERROR", "store.unavailable")
    assert failing.getMessage() == "The catalog's database cannot be used: database is locked"
    assert failing.exc_info is None, "a sentence says it all"


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
            store.write(put(app(f"apps/a{number}", domains=("x" * 5000 + str(number),)))).result(60)
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
        timeout=110,
        check=False,
    )
    assert child.stdout.startswith("wrote"), child.stderr


def test_after_a_clean_end_the_file_alone_is_the_catalog(path: Path, tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{path}")
    for number in range(20):
        store.write(put(app(f"apps/a{number}"))).result(WAIT)
    assert store.events("apps/a0", 1) == []  # a reading connection is open
    store.close()
    assert sorted(it.name for it in path.parent.iterdir()) == ["catalog.db", "catalog.db.lock"]
    copy = tmp_path / "copy.db"
    copy.write_bytes(path.read_bytes())
    restored = open_store(f"sqlite:///{copy}")
    assert len(restored.mirror.apps) == 20
    restored.close()


def test_the_secrets_of_a_deleted_app_are_in_no_file_after_a_clean_end(path: Path) -> None:
    secret = "hunter2-" * 3
    store = open_store(f"sqlite:///{path}")
    for number in range(50):
        record = app(f"apps/a{number}")
        record.spec.secret_env["TOKEN"] = secret * (1 + number * 10)  # in its own pages, and beside others
        store.write(put(record)).result(WAIT)
    for number in range(0, 50, 2):
        changed = app(f"apps/a{number}", generation=2)
        store.write(put(changed)).result(WAIT)
    store.close()
    assert secret.encode() in path.read_bytes()
    store = open_store(f"sqlite:///{path}")
    for number in range(50):
        store.write(lambda tx, number=number: tx.delete_app(f"apps/a{number}")).result(WAIT)
    store.close()
    for file in path.parent.iterdir():
        assert b"hunter2" not in file.read_bytes(), file


def test_a_log_that_a_long_reader_held_up_is_cut_once_it_is_gone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_module, "WAL_BYTES", 200_000)
    monkeypatch.setattr(sqlite_module, "WAL_PAGES", 20)
    store = open_store(f"sqlite:///{path}")
    log = path.with_name("catalog.db-wal")
    reader = sqlite3.connect(path)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM apps").fetchall()

    def write(count: int) -> None:
        for number in range(count):
            record = app(f"apps/a{number}")
            record.spec.config["text"] = "x" * 20_000
            store.write(put(record)).result(WAIT)

    write(60)
    assert log.stat().st_size > 1_000_000
    reader.close()
    write(3)
    assert log.stat().st_size <= 400_000
    store.close()


def test_a_file_reached_by_another_path_is_the_same_file(
    store: SqlCatalogStore, path: Path, tmp_path: Path
) -> None:
    for number, target in enumerate((path, path.parent)):
        link = tmp_path / f"link{number}"
        link.symlink_to(target)
        other = link if target == path else link / path.name
        with pytest.raises(StoreError, match=f"process {os.getpid()}"):
            open_store(f"sqlite:///{other}")
    store.write(put(app("apps/a"))).result(WAIT)


def test_a_file_with_a_second_name_is_refused(store: SqlCatalogStore, path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    other.hardlink_to(path)
    with pytest.raises(StoreError, match="2 names"):
        open_store(f"sqlite:///{other}")
    store.write(put(app("apps/a"))).result(WAIT)
    other.unlink()


@pytest.mark.parametrize("option", ["timeout=abc", "colour=blue"])
def test_an_option_of_the_url_that_cannot_be_used_is_named(path: Path, option: str) -> None:
    with pytest.raises(StoreError, match=option.partition("=")[0]):
        open_store(f"sqlite:///{path}?{option}")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("UPDATE apps SET spec = x'ffffff'", "record of apps/a, in its table apps"),
        ("DELETE FROM meta", "lost the row of its table meta"),
        ("DELETE FROM histories", "table histories is empty"),
        ("DROP TABLE operations", "no such table: operations"),
    ],
)
def test_a_damaged_catalog_is_refused_in_a_sentence_that_names_the_damage(
    path: Path, damage: str, sentence: str
) -> None:
    store = open_store(f"sqlite:///{path}")
    store.write(put(app("apps/a"))).result(WAIT)
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute(damage)
    connection.close()
    with pytest.raises(StoreError, match=sentence) as caught:
        open_store(f"sqlite:///{path}")
    assert "\n" not in str(caught.value)


def test_who_has_the_file_leads_at_once_and_by_a_new_term_each_time(path: Path) -> None:
    terms = []
    for _ in range(3):
        store = open_store(f"sqlite:///{path}")
        standing = store.seat.take("me", "127.0.0.1:1", 5.0)
        assert (store.seat.exclusive, standing.leads) == (True, True)
        store.led_by(standing.term).write(put(app("apps/a"))).result(WAIT)
        terms.append(standing.term)
        store.close()
    assert terms == sorted(set(terms))
    assert len(terms) == 3

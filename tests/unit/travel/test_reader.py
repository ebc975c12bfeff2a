"""What the reader of a data directory sends: with it a database is as it was when it was frozen."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from runtime_node.travel.reader_process import BLOCK_BYTES, Reader

Read = Callable[[Path], Reader]


@pytest.fixture
def read() -> Iterator[Read]:
    """Give a function that begins to read a directory."""
    readers: list[Reader] = []

    def begin(directory: Path) -> Reader:
        readers.append(Reader(directory))
        readers[-1].pin()
        return readers[-1]

    yield begin
    for reader in readers:
        reader.close()


def copied(reader: Reader, target: Path) -> int:
    """Take a first pass into a directory; return how many bytes that was."""
    return _pass(reader, target, changed=False)


def finished(reader: Reader, target: Path) -> int:
    """Take what has changed since into it, and remove what is not there any more."""
    return _pass(reader, target, changed=True)


def caught_up(reader: Reader, target: Path) -> int:
    """Take what has changed since into it while the app goes on; return how many bytes that was."""
    return _pass(reader, target, changed=True, live=True)


def _pass(reader: Reader, target: Path, *, changed: bool, live: bool = False) -> int:
    sent, begin, named = 0, True, set()
    while page := reader.entries(begin=begin, after="", count=7, changed=changed)[0]:
        begin = False
        for entry in page:
            named.add(entry["path"])
            sent += _take(reader, target / entry["path"], entry, changed=changed, live=live)
    final = changed and not live
    for left in {str(it.relative_to(target)) for it in target.rglob("*")} - named if final else ():
        (target / left).unlink()
    return sent


def _take(reader: Reader, place: Path, entry: dict[str, Any], *, changed: bool, live: bool) -> int:
    if entry["kind"] == "directory":
        if place.is_file():
            place.unlink()
        place.mkdir(exist_ok=True)
        return 0
    if place.is_dir():
        shutil.rmtree(place)
    place.touch()
    if changed and not live:
        os.truncate(place, min(place.stat().st_size, entry["size"]))
    offset = sent = 0
    while not entry.get("same") and (
        block := reader.block(entry["path"], offset, changed=changed, live=live)
    ):
        at, data, _ = block
        with place.open("r+b") as file:
            file.seek(at)
            file.write(data)
        offset, sent = at + len(data), sent + len(data)
    return sent


@contextmanager
def writing(database: Path) -> Iterator[list[int]]:
    """Write numbered rows as fast as it goes, and give those that are acknowledged."""
    acknowledged: list[int] = []
    ended = threading.Event()

    def run() -> None:
        with closing(sqlite3.connect(database, isolation_level=None, timeout=30)) as own:
            while not ended.is_set():
                number = len(acknowledged) + 1
                own.execute("INSERT INTO row VALUES (?, ?)", (number, b"x" * 500))
                acknowledged.append(number)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield acknowledged
    finally:
        ended.set()
        thread.join()


def made(directory: Path, mode: str, *, padding: int = 2) -> Path:
    directory.mkdir(exist_ok=True)
    database = directory / "app.db"
    with closing(sqlite3.connect(database, isolation_level=None)) as own:
        own.execute(f"PRAGMA journal_mode = {mode}")
        own.execute("CREATE TABLE row (n INTEGER PRIMARY KEY, text BLOB)")
        own.execute("CREATE TABLE padding (block BLOB)")
        for _ in range(padding):
            own.execute("INSERT INTO padding VALUES (?)", (os.urandom(1 << 20),))
    return database


def rows(database: Path) -> list[int]:
    with closing(sqlite3.connect(database)) as own:
        assert own.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [number for (number,) in own.execute("SELECT n FROM row ORDER BY n")]


def enough(acknowledged: list[int], more: int = 200) -> None:
    goal = len(acknowledged) + more
    pause = threading.Event()
    while len(acknowledged) < goal:
        pause.wait(0.001)


@pytest.mark.parametrize("mode", ["wal", "delete", "truncate"])
def test_a_database_that_is_written_all_the_while_comes_whole(tmp_path: Path, read: Read, mode: str) -> None:
    database = made(tmp_path / "source", mode)
    target = tmp_path / "target"
    target.mkdir()
    with writing(database) as acknowledged:
        enough(acknowledged)
        reader = read(tmp_path / "source")
        assert reader.pinned() == (["app.db"] if mode == "wal" else [])
        copied(reader, target)
        enough(acknowledged)
    finished(reader, target)
    assert rows(target / "app.db") == acknowledged


def test_of_a_database_in_wal_mode_its_log_alone_is_sent_again(tmp_path: Path, read: Read) -> None:
    database = made(tmp_path / "source", "wal", padding=8)
    target = tmp_path / "target"
    target.mkdir()
    reader = read(tmp_path / "source")
    copied(reader, target)
    with writing(database) as acknowledged:
        enough(acknowledged, 100)
    with closing(sqlite3.connect(database, isolation_level=None)) as own:
        own.execute("PRAGMA wal_checkpoint(PASSIVE)")
        own.execute("DELETE FROM row WHERE n % 2 = 0")
        own.execute("VACUUM")
    log_bytes = (tmp_path / "source" / "app.db-wal").stat().st_size
    assert finished(reader, target) <= log_bytes
    assert rows(target / "app.db") == acknowledged[::2]


def test_a_log_that_is_begun_anew_after_the_first_pass_is_sent_as_it_is(tmp_path: Path, read: Read) -> None:
    database = made(tmp_path / "source", "wal")
    with writing(database) as before:
        enough(before, 50)
    with closing(sqlite3.connect(database, isolation_level=None)) as own:
        own.execute("PRAGMA wal_checkpoint(RESTART)")  # the next write begins the log anew
        reader = read(tmp_path / "source")
        target = tmp_path / "target"
        target.mkdir()
        copied(reader, target)
        own.execute("DELETE FROM row WHERE n > 10")
        own.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        own.execute("INSERT INTO row VALUES (1000, '')")
    finished(reader, target)
    assert rows(target / "app.db") == [*range(1, 11), 1000]


def test_other_files_are_compared_and_what_is_gone_is_not_named(tmp_path: Path, read: Read) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "uploads").mkdir(parents=True)
    target.mkdir()
    (source / "uploads" / "same").write_bytes(os.urandom(3 * BLOCK_BYTES))
    (source / "uploads" / "changed").write_bytes(os.urandom(3 * BLOCK_BYTES))
    (source / "gone").write_text("gone")
    (source / ".owner").write_text("uid")
    os.utime(source / "uploads" / "same", (1, 1))
    reader = read(source)
    assert copied(reader, target) == 6 * BLOCK_BYTES + 4
    (source / "gone").unlink()
    (source / "late").write_text("late")
    with (source / "uploads" / "changed").open("r+b") as file:
        file.seek(BLOCK_BYTES + 5)
        file.write(b"!")
    assert finished(reader, target) == BLOCK_BYTES + 4
    names = {str(it.relative_to(target)) for it in target.rglob("*") if it.is_file()}
    assert names == {"uploads/same", "uploads/changed", "late"}
    for name in names:
        assert (target / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize("mode", ["wal", "delete", "persist"])
def test_what_was_written_during_the_copy_is_not_looked_through_once_the_app_stands_still(
    tmp_path: Path, read: Read, mode: str
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    database = made(source, mode, padding=4)
    target.mkdir()
    reader = read(source)
    copied(reader, target)
    with writing(database) as acknowledged:
        enough(acknowledged, 50)
    for file in source.iterdir():
        os.utime(file, (1, 1))  # written long ago, as far as that goes
    assert 0 < caught_up(reader, target) < 4 << 20
    page = reader.entries(begin=True, after="", count=9, changed=True)[0]
    assert all(entry["same"] for entry in page)
    assert (finished(reader, target), rows(target / "app.db")) == (0, acknowledged)


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_what_is_written_after_it_was_caught_up_with_comes_along(
    tmp_path: Path, read: Read, mode: str
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    database = made(source, mode)
    target.mkdir()
    with writing(database) as acknowledged:
        reader = read(source)
        copied(reader, target)
        enough(acknowledged)
        caught_up(reader, target)
        enough(acknowledged)
    finished(reader, target)
    assert rows(target / "app.db") == acknowledged


def test_a_folder_that_was_a_file_for_a_while_is_sent_again(tmp_path: Path, read: Read) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "things").mkdir(parents=True)
    target.mkdir()
    (source / "things" / "one").write_text("1")
    os.utime(source / "things" / "one", (1, 1))
    reader = read(source)
    copied(reader, target)
    (source / "things").rename(tmp_path / "away")
    (source / "things").write_text("a file")
    caught_up(reader, target)
    (source / "things").unlink()
    (tmp_path / "away").rename(source / "things")
    finished(reader, target)
    assert (target / "things" / "one").read_text() == "1"


def test_a_link_in_the_place_of_a_folder_leads_nowhere(tmp_path: Path, read: Read) -> None:
    source, secret = tmp_path / "source", tmp_path / "secret"
    (source / "folder").mkdir(parents=True)
    (source / "folder" / "file").write_text("own")
    secret.mkdir()
    (secret / "file").write_text("another's")
    reader = read(source)
    reader.entries(begin=True, after="", count=10, changed=False)
    shutil.rmtree(source / "folder")
    (source / "folder").symlink_to(secret)
    assert reader.block("folder/file", 0, changed=False) is None
    kinds = {
        it["path"]: it["kind"] for it in reader.entries(begin=True, after="", count=10, changed=False)[0]
    }
    assert kinds == {"folder": "link"}


def test_a_file_that_grows_as_fast_as_it_is_read_ends_a_pass_and_is_whole_at_the_end(
    tmp_path: Path, read: Read
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    log = source / "log"
    log.write_bytes(b"a" * BLOCK_BYTES)
    reader = read(source)
    grown, block = 0, reader.block

    def growing(*arguments: Any, **options: Any) -> Any:
        nonlocal grown
        assert grown < 100, "it is read for ever"
        grown += 1
        with log.open("ab") as file:
            file.write(b"b" * BLOCK_BYTES)
        return block(*arguments, **options)

    reader.block = growing  # type: ignore[method-assign]
    copied(reader, target)
    caught_up(reader, target)
    reader.block = block  # type: ignore[method-assign]
    finished(reader, target)
    assert (target / "log").read_bytes() == log.read_bytes()

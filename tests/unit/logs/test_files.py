"""An app's log on disk: bounded, continuous over restarts, and read without missing an entry in silence."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_node.logs.entries import Entry, decode, encode
from runtime_node.logs.files import AppLog, LogReader

Open = Callable[..., AppLog]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Opens the log of one app, any number of times."""
    logs: list[AppLog] = []

    def open_it(**bounds: int) -> AppLog:
        logs.append(AppLog(tmp_path / "shop.uid-1", **bounds))
        logs[-1].load()
        return logs[-1]

    yield open_it
    for log in logs:
        log.end()


def add(log: AppLog, count: int, text: str = "line") -> None:
    for _ in range(count):
        log.append([Entry(log.next, 1_000_000 + log.next, 20, "a1", "stdout", f"{text} {log.next}")])


def read_all(log: AppLog, after: int = 0) -> list[int]:
    reader, found = LogReader(log, after), []
    while entries := reader.read():
        found += [entry.cursor for entry in entries]
    reader.close()
    return found


@given(st.text(), st.integers(0, 2**60))
def test_an_entry_comes_back_as_it_was(text, time):
    text = text.encode("utf-8", "replace").decode()
    entry = Entry(7, time, 30, "a1", "stderr", text, 3)
    line = encode(entry)
    assert line.count(b"\n") == 1
    assert decode(line) == entry


def test_entries_are_read_back_from_any_cursor(opened):
    log = opened(max_file_bytes=500)
    add(log, 20)
    assert read_all(log, 0)[-1] == 20
    assert read_all(log, 17) == [18, 19, 20]
    assert read_all(log, 20) == []


def test_the_files_are_bounded_and_the_oldest_entries_go(opened):
    log = opened(max_file_bytes=1_000, max_files=3)
    add(log, 500)
    sizes = [path.stat().st_size for path in log.directory.iterdir()]
    assert len(sizes) == 3
    assert max(sizes) < 1_100
    found = read_all(log)
    assert found == list(range(log.oldest, 501))
    assert log.oldest > 400


def test_the_cursor_goes_on_after_a_restart(opened):
    first = opened(max_file_bytes=400)
    add(first, 12)
    first.end()
    second = opened(max_file_bytes=400)
    assert (second.id, second.next) == (first.id, 13)
    add(second, 3)
    assert read_all(second, 10) == [11, 12, 13, 14, 15]


def test_a_line_that_was_torn_by_a_crash_is_cut_off(opened):
    log = opened()
    add(log, 3)
    log.end()
    path = log.segments[-1].path
    path.write_bytes(path.read_bytes() + b'[4,1000,20,"a1","std')
    again = opened()
    add(again, 1)
    assert read_all(again) == [1, 2, 3, 4]


def test_a_reader_goes_on_while_files_are_rotated_and_sees_a_gap_by_the_cursor(opened):
    log = opened(max_file_bytes=300, max_files=2)
    add(log, 4)
    reader = LogReader(log, 0)
    assert reader.read()[0].cursor == 1
    add(log, 100)
    found = []
    while entries := reader.read():
        found += [entry.cursor for entry in entries]
    assert found == sorted(set(found))
    assert found[-1] == 104
    assert any(after - before > 1 for before, after in zip([4, *found], found, strict=False))
    reader.close()


def test_a_purge_removes_all_and_a_later_log_is_another(opened, tmp_path):
    log = opened()
    add(log, 3)
    log.purge()
    assert not any(tmp_path.iterdir())
    log.append([Entry(4, 0, 20, "a1", "stdout", "late")])
    assert not any(tmp_path.iterdir())
    again = opened()
    assert again.id != log.id
    assert again.next == 1


def test_entries_that_cannot_be_written_do_not_count(opened, monkeypatch):
    log = opened()
    add(log, 1)

    class Full:
        def __init__(self, file) -> None:
            self._file = file

        def write(self, data: bytes) -> int:
            return self._file.write(data[: len(data) // 2])

        def truncate(self, size: int) -> None:
            self._file.truncate(size)

    with monkeypatch.context() as patch:
        patch.setattr(log, "_file", Full(log._file))
        with pytest.raises(OSError, match="full"):
            add(log, 1)
    add(log, 1, "room again")
    assert read_all(log) == [1, 2]
    assert decode(log.segments[-1].path.read_bytes().splitlines()[-1]).text == "room again 2"

"""One app's log on disk: a few files of bounded size, named after the first cursor in each.

Appended to by the writer's thread alone; any number of readers follow it without holding it up.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from runtime_node.logs.entries import Entry, decode, encode
from runtime_node.removal import remove_directory

MAX_FILE_BYTES = 1 << 20
MAX_FILES = 4
READ_BYTES = 256 << 10

_NAME = re.compile(r"([0-9a-f]{8})-(\d{16})\.log")


class Segment(NamedTuple):
    """One file: its first cursor and where it is."""

    first: int
    path: Path


class AppLog:
    """The log of one app. `id` tells it from any other log, also from a later one of the same app."""

    def __init__(
        self, directory: Path, *, max_file_bytes: int = MAX_FILE_BYTES, max_files: int = MAX_FILES
    ) -> None:
        self.directory = directory
        self._max_file_bytes = max_file_bytes
        self._max_files = max_files
        self._file: BinaryIO | None = None
        self._size = 0
        self._loaded = False
        self.ended = False
        """Purged, or given up for another object of the same log: nothing is added any more."""
        self.lost = 0
        """Lines that could not be written since this object was made."""
        self.told = 0
        """Of those, the ones that an entry tells of."""
        self.listeners: set[Callable[[], None]] = set()
        """Called on the writer's thread after entries were added, and at the end."""
        self.id = ""
        self.next = 1
        """Cursor of the next entry."""
        self.segments: tuple[Segment, ...] = ()
        """Replaced as a whole, so that readers of other threads need no lock."""

    def load(self) -> None:
        """Find out what is there, once; the directory is made with the first entry. Raises OSError."""
        if self._loaded:
            return
        self.id, segments = _find(self.directory)
        if segments:
            last, self._size = _last_entry(segments[-1].path)
            self.next = segments[-1].first if last is None else last.cursor + 1
        self.segments = segments
        self._loaded = True

    @property
    def oldest(self) -> int:
        """Cursor of the oldest entry that is kept; `next` when there is none."""
        return self.segments[0].first if self.segments else self.next

    def append(self, entries: list[Entry]) -> None:
        """Add entries, whose cursors go on from `next`. Raises OSError; `next` tells how far it came."""
        lines: list[bytes] = []
        size = 0
        for line in map(encode, entries):
            if lines and self._size + size + len(line) > self._max_file_bytes:
                self._write(lines)
                lines, size = [], 0
            lines.append(line)
            size += len(line)
        if lines:
            self._write(lines)

    def _write(self, lines: list[bytes]) -> None:
        if self.ended:
            return
        data = b"".join(lines)
        if self._file is None or self._size + len(data) > self._max_file_bytes:
            self._open(len(data))
        assert self._file is not None
        try:
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, "the disk is full")
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            raise
        self._size += len(data)
        self.next += len(lines)
        self.tell()

    def lose(self, lines: int) -> None:
        """Take note that lines could not be written, behind the last entry; readers are told at once."""
        self.lost += lines
        self.tell()

    def tell(self) -> None:
        """Wake the readers."""
        for listener in tuple(self.listeners):
            listener()

    def end(self) -> None:
        """Add nothing any more, and let readers know."""
        self.ended = True
        self._close()
        self.tell()

    def purge(self) -> None:
        """End it and remove its files. Raises OSError."""
        self.segments = ()
        self.end()
        remove_directory(self.directory)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, room: int) -> None:
        """Open the last file, or another one if it has not so many bytes of room."""
        self._close()
        if self.segments and self._size + room <= self._max_file_bytes:
            segment = self.segments[-1]
        else:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            segment = Segment(self.next, self.directory / f"{self.id}-{self.next:016d}.log")
            self._size = 0
        # Unbuffered: each batch of entries is one write, and readers see whole lines.
        self._file = segment.path.open("ab", buffering=0)
        if segment not in self.segments:
            kept = (*self.segments, segment)
            self.segments = kept[-self._max_files :]
            for old in kept[: -self._max_files]:
                with contextlib.suppress(OSError):
                    old.path.unlink()


class LogReader:
    """Reads one log from after a cursor on. Blocks on the disk; belongs to one reader at a time."""

    def __init__(self, log: AppLog, after: int) -> None:
        self.log = log
        self.cursor = after
        """The last entry that was read."""
        self._segment: Segment | None = None
        self._file: BinaryIO | None = None

    def read(self) -> list[Entry]:
        """Return the next entries, oldest first, some hundred KiB at most; none at the end.

        A cursor that does not follow the one before tells that entries are missing between them.
        """
        while True:
            segments = self.log.segments
            if self._file is None and not self._next_file(segments):
                return []
            assert self._file is not None
            begin = self._file.tell()
            data = self._file.read(READ_BYTES)
            end = data.rfind(b"\n") + 1
            if end:
                self._file.seek(begin + end)
                entries = [entry for line in data[:end].splitlines() if (entry := decode(line)) is not None]
                entries = [entry for entry in entries if entry.cursor > self.cursor]
                if entries:
                    self.cursor = entries[-1].cursor
                    return entries
                continue
            self._file.seek(begin)
            if not segments or self._segment is None or segments[-1].first <= self._segment.first:
                return []
            # It was complete before it was read: what follows is in the next file.
            self.close()

    def close(self) -> None:
        """Release the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _next_file(self, segments: tuple[Segment, ...]) -> bool:
        if self._segment is None:
            holding = [segment for segment in segments if segment.first <= self.cursor + 1]
            candidates = (*holding[-1:], *(s for s in segments if s.first > self.cursor + 1))
        else:
            candidates = tuple(s for s in segments if s.first > self._segment.first)
        for segment in candidates:
            try:
                self._file = segment.path.open("rb")
            except FileNotFoundError:
                continue  # too old by now; the next cursor tells how much is missing
            self._segment = segment
            return True
        return False


def _find(directory: Path) -> tuple[str, tuple[Segment, ...]]:
    found: dict[str, list[Segment]] = {}
    if directory.is_dir():
        for path in directory.iterdir():
            if match := _NAME.fullmatch(path.name):
                found.setdefault(match[1], []).append(Segment(int(match[2]), path))
    if not found:
        return secrets.token_hex(4), ()
    # One log has one id; should there ever be files of another, the one written last counts.
    log_id = max(found, key=lambda key: max(s.path.stat().st_mtime for s in found[key]))
    return log_id, tuple(sorted(found[log_id]))


def _last_entry(path: Path) -> tuple[Entry | None, int]:
    """Return the last entry of a file and the file's size, after cutting off a torn line at its end."""
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        # An entry has at most 16 KiB of text, of which JSON makes six times as much at worst.
        file.seek(max(0, size - READ_BYTES))
        data = file.read()
        end = data.rfind(b"\n") + 1
        size += end - len(data)
        file.truncate(size)
    for line in reversed(data[:end].splitlines()):
        if (entry := decode(line)) is not None:
            return entry, size
    return None, size

"""Reads an app's data directory, in a process of its own: takes lines of JSON, answers in lines and blocks.

A process that closes a file which SQLite has open in it loses its locks on it: read in the node's own, an
app's database could be written by two. Needs the standard library alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sqlite3
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK_BYTES = 256 * 1024
DIGEST_BYTES = 16
MARKS = frozenset({".owner", ".owner.new", ".arrived"})
"""What a node itself has put into a data directory."""
MAX_ENTRIES = 1_000_000
MAX_PINNED = 64
"""Databases in WAL mode whose logs are kept; each of the others is compared as a whole."""
_RACY_SECONDS = 2.0
"""A file that was written so shortly before it was read may be written again under the same time."""
_MAGIC = b"SQLite format 3\x00"
_WAL_MODE = b"\x02\x02"

Signature = tuple[int, int, int, int]
"""Inode, size, times of change in nanoseconds: of a file that was not written these stay."""


class Reader:
    """One directory, and what of it has been sent. Every path is below it, its parts joined by slashes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._sent: dict[str, dict[int, bytes]] = {}
        """By path and offset: the digest of the block that was sent last."""
        self._signatures: dict[str, tuple[Signature, bool]] = {}
        """Of files when their sending began, and whether one that is the same now has not changed."""
        self._pinned: dict[str, tuple[sqlite3.Connection, int]] = {}
        self._open: dict[str, io.FileIO] = {}
        self._listing: Iterator[dict[str, Any]] | None = None
        self._folders: set[str] = set()
        """Folders of what was sent, as a pass began."""
        self._skipped = 0

    def pin(self) -> int:
        """Keep the logs of databases in WAL mode from being reset from now on; return the bytes of all files.

        Such a database is what its file was at any later moment with the whole log over it: a reader in it
        keeps the log from being begun anew, and what a checkpoint writes into the file is in the log, too.
        """
        total = 0
        for entry in self._walk():
            total += entry["size"]
            path = entry["path"]
            if entry["kind"] == "file" and len(self._pinned) < MAX_PINNED and path not in self._pinned:
                self._pin(path)
        return total

    def _pin(self, path: str) -> None:
        file = self._root / path
        with contextlib.suppress(OSError, sqlite3.Error):
            # Kept open: to close it would give up what SQLite locks below.
            raw = self._opened(path)
            head = os.pread(raw.fileno(), 20, 0)
            if not head.startswith(_MAGIC) or head[18:20] != _WAL_MODE:
                return
            database = sqlite3.connect(
                f"{file.as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=1.0
            )
            try:
                database.execute("BEGIN")
                database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
                (mode,) = database.execute("PRAGMA journal_mode").fetchone()
            except sqlite3.Error:
                database.close()
                raise
            if mode != "wal":
                database.close()
                return
            self._pinned[path] = database, os.fstat(raw.fileno()).st_ino

    def pinned(self) -> list[str]:
        """Return the databases whose logs are kept."""
        return sorted(self._pinned)

    def entries(
        self, *, begin: bool, after: str, count: int, changed: bool
    ) -> tuple[list[dict[str, Any]], int]:
        """Return up to `count` entries from a path on, none after the last; and how many were left out.

        With `changed` a file that is known to be as it was sent says so: `same`.
        """
        if begin or self._listing is None:
            self._skipped = 0
            if not changed:
                # What is sent again, or stood at the place of something else, is no more as it was sent.
                self._sent = {path: blocks for path, blocks in self._sent.items() if path <= after}
                self._signatures = {path: it for path, it in self._signatures.items() if path <= after}
            self._folders = {folder for path in self._sent for folder in _folders_of(path)}
            for path in list(self._open):
                self._close(path)  # another file may stand there by now
            self._listing = iter(sorted(self._walk(), key=lambda entry: str(entry["path"])))
        page: list[dict[str, Any]] = []
        for entry in self._listing:
            if entry["path"] >= after:
                if entry["kind"] != "file":
                    self._sent.pop(entry["path"], None)
                    self._signatures.pop(entry["path"], None)
                elif entry["path"] in self._folders:
                    self._drop_below(entry["path"])
                elif changed:
                    entry["same"] = self._is_same(entry["path"])
                page.append(entry)
                if len(page) == count:
                    break
        return page, self._skipped

    def _drop_below(self, folder: str) -> None:
        """Forget what was sent of a folder in whose place a file is now: it goes where it was sent to."""
        for path in [it for it in self._sent if it.startswith(f"{folder}/")]:
            del self._sent[path]
            self._signatures.pop(path, None)

    def _walk(self) -> Iterator[dict[str, Any]]:
        folders, count = [""], 0
        while folders:
            folder = folders.pop()
            for path, kind, entry in self._inside(folder):
                if path in MARKS or (kind == "file" and self._is_index(path)):
                    continue
                if not kind:
                    self._skipped += 1
                    continue
                count += 1
                if count > MAX_ENTRIES:
                    raise OSError(f"there are more than {MAX_ENTRIES:,} files")
                if kind == "directory":
                    folders.append(f"{path}/")
                yield entry

    def _inside(self, folder: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Yield what is in a folder: path, kind, entry. A folder that is gone has nothing in it."""
        try:
            descriptor = self._descriptor(folder.rstrip("/"), os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            for name in sorted(os.listdir(descriptor)):
                path = f"{folder}{name}"
                if path.encode(errors="surrogateescape") != path.encode(errors="replace"):
                    raise OSError(f"the name of {path!r} is not UTF-8")
                try:
                    status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                    kind = _kind(status.st_mode)
                    link = os.readlink(name, dir_fd=descriptor) if kind == "link" else ""
                except FileNotFoundError:
                    continue  # gone meanwhile
                size = status.st_size if kind == "file" else 0
                mode = stat.S_IMODE(status.st_mode)
                yield path, kind, {"path": path, "kind": kind, "mode": mode, "size": size, "link": link}
        finally:
            os.close(descriptor)

    def _is_index(self, path: str) -> bool:
        """Tell the index of a database's log, which SQLite makes anew, from another file of that ending."""
        if not path.endswith("-shm"):
            return False
        try:  # kept open, as every file that may be a database of which something is locked
            return os.pread(self._opened(path.removesuffix("-shm")).fileno(), 16, 0) == _MAGIC
        except OSError:
            return False

    def _descriptor(self, path: str, flags: int) -> int:
        """Open something below the root. Raises OSError, FileNotFoundError also where a link leads out of it.

        The app may put a link in the place of a folder at any moment, and is to get nothing of others by it.
        """
        place = os.path.join(self._root, path) if path else str(self._root)
        found = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | flags)
        if path and os.readlink(f"/proc/self/fd/{found}") != place:
            os.close(found)
            raise FileNotFoundError(2, "it is not there any more", place)
        return found

    def block(
        self, path: str, offset: int, *, changed: bool, live: bool = False
    ) -> tuple[int, bytes, bytes] | None:
        """Return the next block of a file at or after an offset: where it is, its bytes, their digest.

        With `changed` the next one that is not as it was sent; None without one, and of no such file. `live`:
        the app goes on, and a file that is as it is now will not be looked through again.
        """
        try:
            file = self._opened(path)
        except FileNotFoundError:
            return None
        sent = self._sent.setdefault(path, {})
        if (live or not changed) and (offset == 0 or path not in self._signatures):
            status = os.fstat(file.fileno())
            settled = time.time() - status.st_mtime > _RACY_SECONDS
            self._signatures[path] = _signature(status), settled
        if (live or not changed) and offset >= self._signatures[path][0][1]:
            # An app that writes faster than it is read would be read for ever: the rest is for the next pass,
            # to which the file is another one, or for the log of a database that is pinned.
            self._close(path)
            return None
        while data := os.pread(file.fileno(), BLOCK_BYTES, offset):
            if len(data) < BLOCK_BYTES:
                self._close(path)
            digest = hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()
            if not changed:
                sent[offset] = digest
            elif sent.get(offset) == digest:
                if len(data) < BLOCK_BYTES:
                    return None
                offset += BLOCK_BYTES
                continue
            return offset, data, digest
        self._close(path)
        return None

    def _is_same(self, path: str) -> bool:
        signature, settled = self._signatures.get(path, (None, False))
        if signature is None:
            return False
        try:
            status = os.stat(self._root / path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if path in self._pinned:
            return status.st_ino == self._pinned[path][1]
        return settled and signature == _signature(status)

    def _opened(self, path: str) -> io.FileIO:
        known = self._open.get(path)
        if known is not None:
            if path not in self._pinned or os.fstat(known.fileno()).st_ino == _inode(self._root / path):
                return known
            del self._pinned[path]  # another file stands in its place: compared as a whole
            del self._open[path]
        file = open(self._descriptor(path, 0), "rb", buffering=0)  # noqa: SIM115 - closed once it is read
        self._open[path] = file
        return file

    def close(self) -> None:
        """Let logs be reset again, and close all files."""
        for database, _ in self._pinned.values():
            database.close()
        self._pinned.clear()
        for path in list(self._open):
            self._close(path)

    def _close(self, path: str) -> None:
        if path not in self._pinned and path in self._open:
            self._open.pop(path).close()


def _folders_of(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "link" if stat.S_ISLNK(mode) else ""


def _signature(status: os.stat_result) -> Signature:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _inode(path: Path) -> int:
    return os.stat(path, follow_symlinks=False).st_ino


def main() -> None:
    """Answer each line of standard input with one on standard output, a block's bytes behind it.

    One directory after another, from `begin` to `leave`: never two, of which a file might be the same.
    """
    reader = Reader(Path())
    commands, answers = sys.stdin.buffer, sys.stdout.buffer
    for line in commands:
        data, command = b"", json.loads(line)
        try:
            if command["do"] in {"begin", "leave"}:
                reader.close()
                reader = Reader(Path(command.get("root", "")).resolve())
                answer: dict[str, Any] = {}
            else:
                answer, data = _answer(reader, command)
        except OSError as fault:
            answer = {"error": f"{fault.strerror or fault} ({fault.filename or reader})"}
        answers.write(json.dumps(answer).encode() + b"\n" + data)
        answers.flush()
    reader.close()


def _answer(reader: Reader, command: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    what = command.pop("do")
    if what == "pin":
        return {"bytes": reader.pin(), "pinned": reader.pinned()}, b""
    if what == "entries":
        entries, skipped = reader.entries(**command)
        return {"entries": entries, "skipped": skipped}, b""
    found = reader.block(**command)
    if found is None:
        return {"length": 0}, b""
    offset, data, digest = found
    return {"length": len(data), "offset": offset, "digest": digest.hex()}, data


if __name__ == "__main__":
    main()

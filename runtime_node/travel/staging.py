"""What has come of an app's data directory: kept apart until all of it is there, then put in its place.

What comes is checked to stay below the directory, whoever sends it; no link is made before the last file is
written.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from appsupervisor.runtime.v1 import data_transfers_pb2 as pb
from runtime_node.data_directory import sync_directory
from runtime_node.instances.databases import Databases
from runtime_node.removal import finish_removals, remove_directory
from runtime_node.travel.reader_process import DIGEST_BYTES, MARKS, MAX_ENTRIES

Entry = pb.ReadDataResponse.Entry

SYNC_BYTES = 32 * 1024 * 1024
"""Written at most before the disk is waited for: all at the end would hold up every other write."""

_WRITE = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Staging:
    """One directory that is being received. Methods block on the disk, one at a time; each raises OSError."""

    def __init__(self, databases: Databases, app: str, uid: str) -> None:
        self._databases = databases
        self._app, self._uid = app, uid
        self._root = databases.staging / f"{app}.{uid}"
        self._kept: dict[str, Entry] = {}
        """What came as an entry in this pass, by path."""
        self._files: set[str] = set()
        """Written and not yet on the disk."""
        self._folders: set[Path] = set()
        self._last = False
        self._unsynced = 0

    def create(self) -> None:
        """Begin with nothing; what the app has in its place here already is put aside, unless it left it."""
        self._databases.make_room(self._app, self._uid)
        remove_directory(self._root)
        self._root.mkdir(mode=0o700, parents=True)

    def begin_pass(self) -> None:
        """Begin the last pass: what no entry names from now on is removed at the end, what is longer is cut.

        Before that nothing is: it would be missing where the source believes it sent.
        """
        self._kept = {}
        self._last = True

    def take(self, entries: Iterable[Entry]) -> None:
        """Make files and folders as entries say."""
        for entry in entries:
            path = self._path(entry.path)
            if entry.path in MARKS:
                raise OSError(errno.EINVAL, "a node's own mark came as the app's", entry.path)
            if len(self._kept) >= MAX_ENTRIES:
                raise OSError(errno.EFBIG, f"there are more than {MAX_ENTRIES:,} files")
            if entry.kind == Entry.DIRECTORY:
                if not path.is_dir() or path.is_symlink():
                    path.unlink(missing_ok=True)
                    path.mkdir(mode=0o700)
                    self._folders.update((path, path.parent))
            elif entry.kind == Entry.FILE:
                self._make_file(entry, path)
            elif entry.kind != Entry.LINK:
                continue
            self._kept[entry.path] = entry

    def _make_file(self, entry: Entry, path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        new = not path.exists()
        descriptor = os.open(path, _WRITE, 0o600)
        try:
            if self._last and os.fstat(descriptor).st_size > entry.size_bytes:
                os.ftruncate(descriptor, entry.size_bytes)
                self._files.add(entry.path)
        finally:
            os.close(descriptor)
        if new:
            self._files.add(entry.path)
            self._folders.add(path.parent)

    def write(self, block: pb.ReadDataResponse.Block) -> None:
        """Write a block of a file whose entry came before. Raises OSError also for a damaged one."""
        if block.path not in self._kept:
            raise OSError(errno.EINVAL, "a block came without its entry", block.path)
        if hashlib.blake2b(block.data, digest_size=DIGEST_BYTES).digest() != block.digest:
            raise OSError(errno.EBADMSG, "a block came damaged", block.path)
        descriptor = os.open(self._path(block.path), os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            view, offset = memoryview(block.data), block.offset
            if offset >= os.fstat(descriptor).st_size and not block.data.strip(b"\0"):
                # Of a file that is mostly holes only what is written takes room.
                os.ftruncate(descriptor, offset + len(view))
                view = view[:0]
            while view:
                written = os.pwrite(descriptor, view, offset)
                view, offset = view[written:], offset + written
            self._unsynced += len(block.data)
            if self._unsynced > SYNC_BYTES:
                os.fdatasync(descriptor)
                self._unsynced = 0
        finally:
            os.close(descriptor)
        self._files.add(block.path)

    def sync(self) -> None:
        """Wait until all that was written is on the disk."""
        for path in sorted(self._files):
            # One that has been removed since is not missed: what is to be there is looked for at the end.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                descriptor = os.open(self._path(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        for folder in sorted(self._folders):
            if folder.is_dir():
                sync_directory(folder)
        self._files.clear()
        self._folders.clear()

    def finish(self, freeze_id: str) -> None:
        """Put all that came in this pass in its place, durably, with its marks."""
        self._remove_others()
        for path, entry in self._kept.items():
            folder = path.rpartition("/")[0]
            if folder and getattr(self._kept.get(folder), "kind", None) != Entry.DIRECTORY:
                raise OSError(errno.EINVAL, "a path leads out of the directory", path)
            if entry.kind == Entry.LINK:
                if "\0" in entry.link_target:
                    raise OSError(errno.EINVAL, "a link leads nowhere", path)
                place = self._path(path)
                place.symlink_to(entry.link_target)
                self._folders.add(place.parent)
        # From the innermost: a folder that may not be written takes no more after this.
        for path, entry in sorted(self._kept.items(), reverse=True):
            if entry.kind != Entry.LINK:
                self._path(path).chmod(entry.mode & 0o777)
        self._folders.add(self._root)
        self._databases.mark_arrived(self._root, self._uid, freeze_id)
        self.sync()
        self._databases.put_in_place(self._root, self._app, self._uid)

    def discard(self) -> None:
        """Remove what has come."""
        remove_directory(self._root)

    def _remove_others(self) -> None:
        for folder, names, files in os.walk(self._root):
            inner = Path(folder)
            for name in [*names, *files]:
                place = inner / name
                entry = self._kept.get(str(place.relative_to(self._root)))
                if entry is not None and entry.kind != Entry.LINK:
                    continue
                self._folders.add(inner)
                if name in names and not place.is_symlink():
                    names.remove(name)
                    shutil.rmtree(place)
                else:
                    place.unlink()
                self._files.discard(str(place.relative_to(self._root)))

    def _path(self, path: str) -> Path:
        parts = path.split("/")
        if not all(part and part not in (".", "..") and "\0" not in part for part in parts):
            raise OSError(errno.EINVAL, "a path leads out of the directory", path)
        return self._root.joinpath(*parts)


def clear(databases: Databases) -> None:
    """Remove, as far as it goes, what was being received when the node ended."""
    root = databases.staging
    if not root.is_dir():
        return
    finish_removals(root)
    for left in root.iterdir():
        remove_directory(left)

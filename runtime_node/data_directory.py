"""The node's data directory as a whole: held by one node at a time, and the identity that is kept in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

IDENTITY = "node-id"
_LONGEST = 100


class DataDirectoryError(Exception):
    """The data directory cannot be used; the message is one sentence that says why and what to do."""


@contextlib.contextmanager
def held(directory: Path) -> Iterator[str]:
    """Hold the data directory for this process and give the node's identity.

    Raises DataDirectoryError while another node holds it, and when it cannot be made, read or written.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Never through a link: two names of one directory are two nodes on one directory.
        file = (directory.resolve() / "node.lock").open("a+")
    except OSError as fault:
        raise DataDirectoryError(f"--data-dir {directory} cannot be used: {_why(fault)}") from fault
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(_LONGEST).strip() or "unknown"
            raise DataDirectoryError(
                f"{directory} is in use by another node (process {holder}); give this one its own --data-dir"
            ) from None
        try:
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            identity = _read(directory / IDENTITY) or _make(directory / IDENTITY)
        except OSError as fault:
            raise DataDirectoryError(f"--data-dir {directory} cannot be used: {_why(fault)}") from fault
        yield identity


def _read(path: Path) -> str | None:
    """Return the identity that is kept, None when there is none yet."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        text = file.read(_LONGEST).decode("ascii", "replace").strip() if regular else ""
    try:
        identity = uuid.UUID(text)
    except ValueError:
        identity = None
    if identity is None or str(identity) != text:
        # Never replaced by itself: the control plane knows the apps of this directory by what stood here.
        raise DataDirectoryError(
            f"{path} does not hold a node's identity; put it back from a backup, or remove it to let the "
            "node join as another one, without the apps it had"
        )
    return text


def _make(path: Path) -> str:
    """Make an identity and keep it: on the disk, whole, before anybody is told."""
    identity = str(uuid.uuid4())
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(identity + "\n")
        file.flush()
        os.fsync(descriptor)
    new.rename(path)
    sync_directory(path.parent)
    return identity


def sync_directory(directory: Path) -> None:
    """Wait until the names in a directory are on the disk. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _why(fault: OSError) -> str:
    return fault.strerror or type(fault).__name__

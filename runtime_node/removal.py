"""Removes a directory with all in it, or says why it cannot; never leaves through a symbolic link."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

DOOMED = ".purged."


def remove_directory(directory: Path) -> None:
    """Remove a directory; one that is not there is fine. Blocks on the disk. Raises OSError.

    Renamed first, so that a removal that is cut short never leaves half a directory behind under its name;
    `finish_removals` or a repeat removes the rest.
    """
    doomed = directory.with_name(f"{DOOMED}{directory.name}")
    _remove(doomed)
    if _exists(directory):
        _refuse_link(directory)
        directory.rename(doomed)
        _remove(doomed)


def finish_removals(parent: Path) -> None:
    """Remove, as far as it goes, what removals left in `parent` that the end of the process cut short."""
    if parent.is_dir():
        for doomed in parent.glob(f"{DOOMED}*"):
            try:
                _remove(doomed)
            except OSError:
                continue  # whoever asks for the removal again is told


def _remove(path: Path) -> None:
    if not _exists(path):
        return
    _refuse_link(path)
    if not path.is_dir():
        path.unlink()
        return
    try:
        shutil.rmtree(path)
    except PermissionError:
        _make_removable(path)
        shutil.rmtree(path)


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        text = (
            "a symbolic link stands in its place; what it points at has to be removed by hand, then the link"
        )
        raise OSError(errno.ELOOP, text, str(path))


def _make_removable(path: Path) -> None:
    """Allow its owner to write in every directory below: apps protect what they have made."""
    path.chmod(stat.S_IRWXU)
    for folder, names, _ in os.walk(path):
        for name in names:
            inner = Path(folder, name)
            if not inner.is_symlink():
                inner.chmod(stat.S_IRWXU)


def _exists(path: Path) -> bool:
    return os.path.lexists(path)

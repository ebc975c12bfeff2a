"""Control groups (version 2) for guests, where this process may make some: a way out of which no fork leads.

One for each guest, below one for the node's life. Without them the marks and the zygote do the same for all
but the most determined; so nothing here fails a start, and what is enforced is told.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from pathlib import Path
from typing import Final

_PREFIX: Final = "appsupervisor-"
END_SECONDS: Final = 2.0
LOOK_SECONDS: Final = 0.005


def own_group(proc: Path = Path("/proc/self")) -> Path | None:
    """Return the directory of this process's group of version 2; None where there is none."""
    try:
        lines = (proc / "cgroup").read_text().splitlines()
        mounts = (proc / "mountinfo").read_text().splitlines()
    except OSError:
        return None
    inside = next((line[3:] for line in lines if line.startswith("0::")), None)
    for line in mounts:
        fields, _, kind = line.partition(" - ")
        if inside is None or kind.split(" ", 1)[0] != "cgroup2":
            continue
        root, mount = fields.split()[3:5]
        if root in ("/", inside) or inside.startswith(root + "/"):
            return Path(mount) / inside.removeprefix(root).lstrip("/")
    return None


class GuestGroups:
    """The groups of one node's guests. Its methods make one or two system calls each, but for `join`."""

    def __init__(self, root: Path, *, counts_tasks: bool) -> None:
        self.root = root
        self.counts_tasks = counts_tasks
        """Whether the kernel bounds how many processes and threads a group has."""

    @classmethod
    def open(cls, base: Path | None) -> GuestGroups | None:
        """Make a group in `base` below which the guests' will be; None where that may not be done.

        May move this process into a group of its own below `base`: find `base` before the first call.
        """
        if base is None:
            return None
        remove_left_behind(base)
        root = base / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        try:
            root.mkdir()
        except OSError:
            return None
        if not (root / "cgroup.kill").exists():  # Linux 5.14
            with contextlib.suppress(OSError):
                root.rmdir()
            return None
        return cls(root, counts_tasks=_count_tasks(base) and _write(root / "cgroup.subtree_control", "+pids"))

    def make(self, name: str, max_tasks: int) -> Path | None:
        """Make the group of one guest; None where the kernel has no more to give."""
        group = self.root / name
        try:
            group.mkdir()
        except OSError:
            return None
        if self.counts_tasks:
            _write(group / "pids.max", str(max_tasks))
        return group

    @property
    def enforced(self) -> str:
        """What the kernel does with the groups, in words for the log."""
        return "cgroup.kill, pids.max" if self.counts_tasks else "cgroup.kill"


def end(group: Path) -> None:
    """Kill what is in a group and below it and remove them; waits for at most `END_SECONDS`."""
    kill(group)
    deadline = time.monotonic() + END_SECONDS
    while is_populated(group) and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
    remove(group)


def join(group: Path, pid: int) -> bool:
    """Move a process into a group; tell whether it is there. Takes about 10 ms, so not on a loop."""
    return _write(group / "cgroup.procs", str(pid))


def kill(group: Path) -> None:
    """Kill all that is in a group, also what is being forked."""
    _write(group / "cgroup.kill", "1")


def is_populated(group: Path) -> bool:
    """Whether a process is in a group or below it."""
    try:
        return "populated 1" in (group / "cgroup.events").read_text()
    except OSError:
        return False


def remove(group: Path) -> None:
    """Remove a group and those below it, as far as they are empty."""
    with contextlib.suppress(OSError):
        for below in group.iterdir():
            if below.is_dir():
                remove(below)
        group.rmdir()


def remove_left_behind(base: Path) -> None:
    """Remove the groups of nodes that have ended without doing so."""
    for root in base.glob(f"{_PREFIX}*"):
        owner = root.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdecimal() and not Path(f"/proc/{owner}").exists():
            remove(root)


def _count_tasks(base: Path) -> bool:
    """Have the kernel count tasks below `base`, which it only does where `base` itself has no process."""
    try:
        if "pids" not in (base / "cgroup.controllers").read_text().split():
            return False
        if "pids" in (base / "cgroup.subtree_control").read_text().split():
            return True
        members = (base / "cgroup.procs").read_text().split()
    except OSError:
        return False
    is_root = not (base / "cgroup.type").exists()
    if not is_root and members == [str(os.getpid())]:
        leaf = base / "node"
        with contextlib.suppress(OSError):
            leaf.mkdir(exist_ok=True)
        join(leaf, os.getpid())
    return _write(base / "cgroup.subtree_control", "+pids")


def _write(file: Path, text: str) -> bool:
    try:
        with file.open("w") as opened:
            opened.write(text)
    except OSError:
        return False
    return True

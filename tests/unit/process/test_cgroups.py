"""Control groups for guests: where they are, what is done where they cannot be had, what they end."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from runtime_node.tiers.process import cgroups
from runtime_node.tiers.process.cgroups import GuestGroups


@pytest.mark.parametrize(
    ("inside", "root", "group"),
    [
        ("/", "/", "/cg"),
        ("/system.slice/node.service", "/", "/cg/system.slice/node.service"),
        ("/box/inner", "/box", "/cg/inner"),
        ("/box", "/box", "/cg"),
        ("/boxes", "/box", None),
    ],
)
def test_the_own_group_is_found_below_its_mount(
    tmp_path: Path, inside: str, root: str, group: str | None
) -> None:
    (tmp_path / "cgroup").write_text(f"4:memory:/elsewhere\n0::{inside}\n")
    (tmp_path / "mountinfo").write_text(
        f"30 23 0:26 / /sys rw - sysfs sysfs rw\n31 23 0:27 {root} /cg rw,nosuid - cgroup2 cgroup2 rw\n"
    )
    assert cgroups.own_group(tmp_path) == (None if group is None else Path(group))


def test_without_groups_of_version_2_there_are_none(tmp_path: Path) -> None:
    assert cgroups.own_group(tmp_path) is None
    assert GuestGroups.open(None) is None
    assert GuestGroups.open(tmp_path / "missing") is None
    # A directory, but none that the kernel makes control files in.
    assert GuestGroups.open(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def controlled(base: Path, *, members: str, kind: bool) -> Path:
    """Return a directory that looks like a group with the `pids` controller."""
    (base / "cgroup.controllers").write_text("cpu pids\n")
    (base / "cgroup.subtree_control").write_text("")
    (base / "cgroup.procs").write_text(members)
    if kind:
        (base / "cgroup.type").write_text("domain\n")
    return base


def test_tasks_are_counted_where_the_node_is_alone_in_its_group(tmp_path: Path) -> None:
    base = controlled(tmp_path, members=f"{os.getpid()}\n", kind=True)
    assert cgroups._count_tasks(base)
    # A group with processes of its own may not hand its controllers on, so the node moves down.
    assert (base / "node" / "cgroup.procs").read_text() == str(os.getpid())
    assert (base / "cgroup.subtree_control").read_text() == "+pids"
    # What the kernel shows afterwards; the next zygote finds it done.
    (base / "cgroup.subtree_control").write_text("pids\n")
    (base / "cgroup.procs").write_text("")
    assert cgroups._count_tasks(base)


def test_nobody_is_moved_where_others_are_in_the_group(tmp_path: Path) -> None:
    cgroups._count_tasks(controlled(tmp_path, members=f"{os.getpid()}\n1\n", kind=True))
    assert not (tmp_path / "node").exists()


def test_the_bound_of_tasks_is_written_where_it_is_counted(tmp_path: Path) -> None:
    group = GuestGroups(tmp_path, counts_tasks=True).make("1", 1024)
    assert group is not None
    assert (group / "pids.max").read_text() == "1024"
    assert GuestGroups(tmp_path, counts_tasks=True).make("1", 1024) is None


def test_groups_of_nodes_that_are_gone_are_removed(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    left, living = tmp_path / f"appsupervisor-{gone.pid}-aa", tmp_path / f"appsupervisor-{os.getpid()}-bb"
    for group in (left / "1", living / "1"):
        group.mkdir(parents=True)
    cgroups.remove_left_behind(tmp_path)
    assert not left.exists()
    assert living.exists()


def test_the_kernel_ends_all_that_is_in_a_group_and_below_it() -> None:
    groups = GuestGroups.open(cgroups.own_group())
    if groups is None:
        pytest.skip("this process may make no control groups of version 2 with cgroup.kill")
    try:
        group = groups.make("1", 64)
        assert group is not None
        with subprocess.Popen(["sleep", "60"], start_new_session=True) as child:
            assert cgroups.join(group, child.pid)
            assert cgroups.is_populated(groups.root)
            cgroups.end(groups.root)
            assert child.wait(60) == -signal.SIGKILL
    finally:
        cgroups.end(groups.root)
    assert not groups.root.exists()

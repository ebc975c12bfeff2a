"""Handing a data directory to another app: one owner, and no link followed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec
from runtime_node.instances.databases import OWNER, Databases
from services.rpc.errors import SupervisorError

STEPS = ("open", "unlink", "rename", "fsync")
"""The calls between which a process may be killed."""


def spec(app: str, uid: str) -> InstanceSpec:
    return InstanceSpec(name=f"apps/{app}/instances/i", app_uid=uid, requires_existing_data=True)


@pytest.fixture
def databases(tmp_path: Path) -> Databases:
    """With what apps/shop, uid u1, has left."""
    made = Databases(tmp_path)
    first = spec("shop", "u1")
    first.requires_existing_data = False
    directory, _ = made.provide(first)
    (directory / "app.db").write_text("rows")
    return made


def owners(databases: Databases) -> list[str]:
    """Those that would start on the rows now."""
    found = []
    for app, uid in (("shop", "u1"), ("wiki", "u2")):
        try:
            directory, _ = databases.provide(spec(app, uid))
        except SupervisorError:
            continue
        if (directory / "app.db").read_text() == "rows":
            found.append(uid)
    return found


def reason(call: Callable[[], Any]) -> str:
    with pytest.raises(SupervisorError) as refused:
        call()
    return refused.value.reason


def killed_at(databases: Databases, number: int) -> bool:
    """Hand over in a process that is killed at its n-th step; return whether it came that far."""
    child = os.fork()
    if child == 0:
        left = number

        def counted(call: Any) -> Any:
            def step(*arguments: Any, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **options)

            return step

        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))
        databases.hand_over("shop", "u1", "wiki", "u2")
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_a_kill_at_any_step_leaves_one_owner_and_a_repeat_goes_on(tmp_path: Path) -> None:
    kills = 0
    while True:
        root = tmp_path / str(kills)
        databases = Databases(root)
        directory, _ = databases.provide(InstanceSpec(name="apps/shop/instances/i", app_uid="u1"))
        (directory / "app.db").write_text("rows")
        if not killed_at(databases, kills):
            break
        kills += 1
        mark = next((root / "apps").glob(f"*/{OWNER}")).read_text().strip()
        assert owners(databases) in ([], [mark]), f"killed at step {kills}"
        databases.hand_over("shop", "u1", "wiki", "u2")
        assert owners(databases) == ["u2"]
    assert kills > 5, "the steps were not counted"


def test_a_repeat_changes_nothing(databases: Databases) -> None:
    for _ in range(2):
        databases.hand_over("shop", "u1", "wiki", "u2")
        assert owners(databases) == ["u2"]


def test_an_app_may_be_given_what_another_of_its_own_name_has_left(databases: Databases) -> None:
    databases.hand_over("shop", "u1", "shop", "u3")
    assert (databases.directory("shop", "u3") / "app.db").read_text() == "rows"
    assert reason(lambda: databases.provide(spec("shop", "u1"))) == "DATA_MISSING"


def test_data_without_a_mark_is_that_of_its_directorys_name(databases: Databases) -> None:
    (databases.directory("shop", "u1") / OWNER).unlink()
    databases.hand_over("shop", "u1", "wiki", "u2")
    assert owners(databases) == ["u2"]


def test_what_is_not_there_is_missing(tmp_path: Path) -> None:
    assert reason(lambda: Databases(tmp_path).hand_over("shop", "u1", "wiki", "u2")) == "DATA_MISSING"


def by_link(directory: Path) -> None:
    directory.rename(directory.parent.parent / "elsewhere")
    directory.symlink_to(directory.parent.parent / "elsewhere")


def by_file(directory: Path) -> None:
    directory.rename(directory.parent.parent / "elsewhere")
    directory.write_text("")


def with_linked_mark(directory: Path) -> None:
    (directory / OWNER).rename(directory.parent.parent / "mark")
    (directory / OWNER).symlink_to(directory.parent.parent / "mark")


def of_a_third_app(directory: Path) -> None:
    (directory / OWNER).write_text("u9\n")


@pytest.mark.parametrize("trick", [by_link, by_file, with_linked_mark, of_a_third_app])
def test_nothing_but_the_apps_own_directory_is_handed_over(
    databases: Databases, trick: Callable[[Path], None]
) -> None:
    trick(databases.directory("shop", "u1"))
    assert reason(lambda: databases.hand_over("shop", "u1", "wiki", "u2")) == "DATABASE_UNAVAILABLE"
    assert not os.path.lexists(databases.directory("wiki", "u2"))


def test_a_link_in_the_place_of_the_new_directory_is_not_followed(
    databases: Databases, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / OWNER).write_text("u2\n")
    databases.directory("wiki", "u2").symlink_to(outside)
    assert reason(lambda: databases.hand_over("shop", "u1", "wiki", "u2")) == "DATABASE_UNAVAILABLE"
    assert (databases.directory("shop", "u1") / OWNER).read_text() == "u1\n"


def test_a_new_mark_that_a_kill_has_left_half_written_does_not_stand_in_the_way(databases: Databases) -> None:
    (databases.directory("shop", "u1") / f"{OWNER}.new").symlink_to("/nonexistent/elsewhere")
    databases.hand_over("shop", "u1", "wiki", "u2")
    assert owners(databases) == ["u2"]

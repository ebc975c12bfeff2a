"""The data directories of apps: marked, claimed, removed, and never left through a link."""

import os
from pathlib import Path
from typing import Any

import pytest

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from runtime_node.context import hidden_in
from runtime_node.instances.contexts import app_context
from runtime_node.instances.databases import OWNER, Databases
from runtime_node.removal import DOOMED, remove_directory
from services.rpc.errors import SupervisorError


def spec(**fields: Any) -> pb.InstanceSpec:
    return pb.InstanceSpec(name="apps/shop/instances/a1", app_uid="u1", **fields)


def refused(databases: Databases, given: pb.InstanceSpec) -> str:
    with pytest.raises(SupervisorError) as error:
        databases.provide(given)
    return error.value.reason


def test_the_first_start_marks_the_directory(tmp_path: Path) -> None:
    directory, url = Databases(tmp_path).provide(spec())
    assert directory == tmp_path / "apps" / "shop.u1"
    assert url == f"sqlite:///{directory / 'app.db'}"
    assert (directory / OWNER).read_text() == "u1\n"
    assert Databases(tmp_path).provide(spec(requires_existing_data=True)) == (directory, url)


@pytest.mark.parametrize("empty", [False, True])
def test_a_database_that_is_not_there_is_not_made_where_one_is_required(tmp_path: Path, empty: bool) -> None:
    directory = tmp_path / "apps" / "shop.u1"
    if empty:
        directory.mkdir(parents=True)
    assert refused(Databases(tmp_path), spec(requires_existing_data=True)) == "DATA_MISSING"
    assert directory.exists() == empty


def test_data_of_before_there_were_marks_is_the_apps(tmp_path: Path) -> None:
    directory = tmp_path / "apps" / "shop.u1"
    directory.mkdir(parents=True)
    (directory / "app.db").write_bytes(b"data")
    Databases(tmp_path).provide(spec(requires_existing_data=True))
    assert (directory / OWNER).read_text() == "u1\n"


@pytest.mark.parametrize("required", [False, True])
def test_data_of_another_app_is_nobodys_to_take(tmp_path: Path, required: bool) -> None:
    directory = tmp_path / "apps" / "shop.u1"
    directory.mkdir(parents=True)
    (directory / OWNER).write_text("u2\n")
    assert refused(Databases(tmp_path), spec(requires_existing_data=required)) == "DATABASE_UNAVAILABLE"


def test_a_mark_is_neither_read_nor_written_through_a_link(tmp_path: Path) -> None:
    directory = tmp_path / "apps" / "shop.u1"
    directory.mkdir(parents=True)
    (tmp_path / "victim").write_text("precious")
    (directory / OWNER).symlink_to(tmp_path / "victim")
    assert refused(Databases(tmp_path), spec()) == "DATABASE_UNAVAILABLE"
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_purge_follows_no_link_and_says_so(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "app.db").write_text("precious")
    (tmp_path / "apps").mkdir()
    link = tmp_path / "apps" / "shop.u1"
    link.symlink_to(outside)
    for _ in range(2):
        with pytest.raises(OSError, match="symbolic link"):
            Databases(tmp_path).purge("shop", "u1")
    assert (outside / "app.db").read_text() == "precious"
    assert link.is_symlink()


def test_a_link_that_leads_nowhere_is_no_absence(tmp_path: Path) -> None:
    (tmp_path / "apps").mkdir()
    (tmp_path / "apps" / "shop.u1").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError, match="symbolic link"):
        Databases(tmp_path).purge("shop", "u1")


def test_links_within_go_and_what_they_point_at_stays(tmp_path: Path) -> None:
    directory, _ = Databases(tmp_path).provide(spec())
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("precious")
    (directory / "link").symlink_to(outside)
    Databases(tmp_path).purge("shop", "u1")
    assert not directory.exists()
    assert (outside / "file").read_text() == "precious"


def test_what_an_app_has_made_read_only_goes_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, _ = Databases(tmp_path).provide(spec())
    inner = directory / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "file").write_text("x")
    inner.chmod(0o500)
    (directory / "a").chmod(0o500)
    if os.geteuid() == 0:
        # Root is not kept from anything: let the first attempt find what others would.
        removed = []

        def denied(path: Path) -> None:
            removed.append(path)
            monkeypatch.undo()
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr("runtime_node.removal.shutil.rmtree", denied)
    Databases(tmp_path).purge("shop", "u1")
    assert list((tmp_path / "apps").iterdir()) == []


def test_a_removal_that_was_cut_short_is_finished_by_a_repeat_and_at_the_next_start(tmp_path: Path) -> None:
    apps = tmp_path / "apps"
    for half in ("shop.u1", "blog.u2"):
        (apps / f"{DOOMED}{half}" / "sub").mkdir(parents=True)
    remove_directory(apps / "shop.u1")
    assert [path.name for path in apps.iterdir()] == [f"{DOOMED}blog.u2"]
    Databases(tmp_path).finish_purges()
    assert list(apps.iterdir()) == []


def test_an_app_on_a_database_server_gets_the_url_that_it_was_started_with(tmp_path: Path) -> None:
    url = "postgresql://as_shop_e1:0123456789abcdef@db/apps"
    given = spec(
        database=pb.Database(postgres=pb.Database.Postgres(server="databaseServers/d")),
        database_url=url, database_pool_size=4, requires_existing_data=True, secret_env={"KEY": "value"},
    )  # fmt: skip
    directory, provided = Databases(tmp_path).provide(given)
    assert provided == url
    context = app_context(given, directory, provided)
    assert context.database_pool == 4
    assert set(context.hidden) == set(hidden_in(given)) == {"value", url, "0123456789abcdef"}
    assert app_context(spec(), directory, None).database_pool is None
    assert url not in repr(context)

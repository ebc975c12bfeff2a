"""What is received is checked, and stands in its place only when all of it is there."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from appsupervisor.runtime.v1 import data_transfers_pb2 as pb
from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec
from runtime_node.instances.databases import ARRIVED, LEFT, OWNER, Databases
from runtime_node.travel.reader_process import BLOCK_BYTES
from runtime_node.travel.staging import Staging, clear
from runtime_node.travel.tickets import VALID_SECONDS, Tickets
from services.rpc.errors import SupervisorError

Entry = pb.ReadDataResponse.Entry
UID = "u1"


@pytest.fixture
def databases(tmp_path: Path) -> Databases:
    return Databases(tmp_path)


@pytest.fixture
def staging(databases: Databases) -> Staging:
    made = Staging(databases, "shop", UID)
    made.create()
    return made


def block(path: str, data: bytes, offset: int = 0) -> pb.ReadDataResponse.Block:
    digest = hashlib.blake2b(data, digest_size=16).digest()
    return pb.ReadDataResponse.Block(path=path, offset=offset, data=data, digest=digest)


def file(path: str, size: int = 4, mode: int = 0o600) -> Entry:
    return Entry(path=path, kind=Entry.FILE, size_bytes=size, mode=mode)


def spec(**fields: object) -> InstanceSpec:
    return InstanceSpec(name="apps/shop/instances/a1", app_uid=UID, requires_existing_data=True, **fields)  # type: ignore[arg-type]


def test_it_is_nowhere_until_it_is_finished_and_then_the_apps(databases: Databases, staging: Staging) -> None:
    staging.begin_pass()
    staging.take([Entry(path="d", kind=Entry.DIRECTORY, mode=0o500), file("d/f", mode=0o400)])
    staging.write(block("d/f", b"data"))
    staging.take([Entry(path="l", kind=Entry.LINK, link_target="d/f")])
    place = databases.directory("shop", UID)
    assert not place.exists()
    staging.finish("f1")
    assert (place / "d" / "f").read_bytes() == (place / "l").read_bytes() == b"data"
    assert ((place / "d").stat().st_mode & 0o777, (place / "d" / "f").stat().st_mode & 0o777) == (
        0o500,
        0o400,
    )
    assert ((place / OWNER).read_text().strip(), (place / ARRIVED).exists()) == (UID, True)
    databases.provide(spec())
    assert not (place / ARRIVED).exists(), "once it was started on it is as any other"
    (place / "d").chmod(0o700)


def test_the_second_pass_changes_shortens_and_removes(databases: Databases, staging: Staging) -> None:
    staging.take(
        [file("a", 8), file("gone"), Entry(path="old", kind=Entry.DIRECTORY, mode=0o700), file("old/f")]
    )
    for path in ("a", "gone", "old/f"):
        staging.write(block(path, b"12345678"[: 8 if path == "a" else 4]))
    staging.sync()
    staging.begin_pass()
    staging.take([file("a", 3), file("old", 2)])
    staging.write(block("a", b"abc"))
    staging.write(block("old", b"xy"))
    staging.finish("f1")
    place = databases.directory("shop", UID)
    kept = {it.name: it.read_bytes() for it in place.iterdir() if it.name not in (OWNER, ARRIVED)}
    assert kept == {"a": b"abc", "old": b"xy"}


@pytest.mark.parametrize("path", ["../out", "/etc/passwd", "a/../../b", "a//b", "", "."])
def test_no_path_leads_out_of_it(staging: Staging, tmp_path: Path, path: str) -> None:
    with pytest.raises(OSError, match="leads out"):
        staging.take([file(path)])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mark", [OWNER, f"{OWNER}.new", ARRIVED])
@pytest.mark.parametrize("kind", [Entry.FILE, Entry.DIRECTORY, Entry.LINK])
def test_no_source_makes_a_nodes_own_marks(staging: Staging, mark: str, kind: Any) -> None:
    with pytest.raises(OSError, match="own mark"):
        staging.take([Entry(path=mark, kind=kind, link_target="/etc/passwd", mode=0o600)])


def test_what_is_below_a_link_in_the_end_is_refused_and_nothing_outside_is_touched(
    databases: Databases, staging: Staging, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").touch(mode=0o600)
    staging.begin_pass()
    staging.take([Entry(path="d", kind=Entry.DIRECTORY, mode=0o700), file("d/f", 0, 0o777)])
    staging.take([Entry(path="d", kind=Entry.LINK, link_target=str(outside))])
    with pytest.raises(OSError, match="leads out"):
        staging.finish("f1")
    assert (outside / "f").stat().st_mode & 0o777 == 0o600
    assert not databases.directory("shop", UID).exists()


def test_a_link_to_no_possible_name_is_a_fault_of_the_disk_as_any_other(staging: Staging) -> None:
    staging.begin_pass()
    staging.take([Entry(path="l", kind=Entry.LINK, link_target="a\0b")])
    with pytest.raises(OSError, match="leads nowhere"):
        staging.finish("f1")


def test_what_is_not_written_of_a_large_file_takes_no_room(databases: Databases, staging: Staging) -> None:
    size = 64 * BLOCK_BYTES
    staging.begin_pass()
    staging.take([file("large", size)])
    for offset in range(0, size, BLOCK_BYTES):
        staging.write(block("large", b"\0" * BLOCK_BYTES if offset else b"x" * BLOCK_BYTES, offset))
    staging.write(block("large", b"\0" * BLOCK_BYTES, 0))
    staging.finish("f1")
    told = (databases.directory("shop", UID) / "large").stat()
    assert (told.st_size, told.st_blocks * 512 < 2 * BLOCK_BYTES) == (size, True)
    assert (databases.directory("shop", UID) / "large").read_bytes().count(0) == size


def test_a_damaged_block_and_one_without_an_entry_are_refused(staging: Staging) -> None:
    staging.take([file("a")])
    wrong = block("a", b"data")
    wrong.data = b"dara"
    with pytest.raises(OSError, match="damaged"):
        staging.write(wrong)
    with pytest.raises(OSError, match="without its entry"):
        staging.write(block("b", b"data"))


def test_what_the_app_has_here_is_never_removed_but_what_it_left(
    databases: Databases, tmp_path: Path
) -> None:
    place = databases.directory("shop", UID)
    databases.provide(InstanceSpec(name="apps/shop/instances/a1", app_uid=UID))
    (place / "app.db").write_text("own")
    Staging(databases, "shop", UID).create()
    assert not place.exists()
    (aside,) = (tmp_path / "aside").iterdir()
    assert (aside / "app.db").read_text() == "own"
    databases.provide(InstanceSpec(name="apps/shop/instances/a1", app_uid=UID))
    (place / "app.db").write_text("a copy")
    databases.leave("shop", UID)
    assert (place / OWNER).read_text().strip() == LEFT
    with pytest.raises(SupervisorError) as refused:
        databases.provide(spec())
    assert refused.value.reason == "DATA_MISSING"
    Staging(databases, "shop", UID).create()
    assert (place.exists(), len(list((tmp_path / "aside").iterdir()))) == (False, 1)


def test_what_was_being_received_when_the_node_ended_is_removed(
    databases: Databases, staging: Staging
) -> None:
    staging.take([file("a")])
    clear(databases)
    assert list(databases.staging.iterdir()) == []


def test_a_ticket_lets_one_in_once_and_only_for_a_while() -> None:
    now = 100.0
    tickets = Tickets(lambda: now)
    tickets.put("a", b"1" * 16)
    tickets.put("b", b"2" * 16)
    assert tickets.take(b"3" * 16) is None
    assert tickets.take(b"1" * 16) == "a"
    assert tickets.take(b"1" * 16) is None
    tickets.put("b", b"4" * 16)
    assert tickets.take(b"2" * 16) is None, "a newer one has taken its place"
    now += VALID_SECONDS
    assert tickets.take(b"4" * 16) is None

"""Which programs copy a database, and what comes of two that do not both succeed."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.control_plane.databases.contents import first_difference
from services.control_plane.databases.dump_stream import stream
from services.control_plane.databases.postgres_tools import PostgresTools, find_tools
from services.rpc.errors import SupervisorError

URL = "postgresql://as_shop:secret@127.0.0.1:1/apps"


def program(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return file


def tools(folder: Path, dump: str, restore: str) -> PostgresTools:
    return PostgresTools(program(folder, "pg_dump", dump), program(folder, "pg_restore", restore), 17)


async def test_only_programs_are_taken_that_know_both_servers(tmp_path: Path) -> None:
    for name in ("pg_dump", "pg_restore"):
        program(tmp_path, name, f'echo "{name} (PostgreSQL) 16.4 (Debian 16.4-1)"')
    for source, target in ((15, 16), (16, 16), (16, 18)):
        assert (await find_tools(str(tmp_path), source, target)).major == 16
    for source, target in ((17, 17), (15, 15)):
        with pytest.raises(SupervisorError, match=r"16 in .*--postgres-bin-dir") as refused:
            await find_tools(str(tmp_path), source, target)
        assert refused.value.reason == "DATABASE_NOT_MOVED"
    with pytest.raises(SupervisorError, match="there is none"):
        await find_tools(str(tmp_path / "missing"), 16, 16)


async def test_what_is_dumped_is_restored_and_counted_and_no_argument_has_a_password(tmp_path: Path) -> None:
    copied: list[int] = []
    both = tools(
        tmp_path,
        f'echo "$@ $PGPASSWORD" >{tmp_path}/told; grep -c secret "$PGSERVICEFILE" >&2; echo 12345',
        f"cat >{tmp_path}/restored",
    )
    assert await stream(both, URL, URL, "as_shop", copied.append) == 6
    assert copied == [6]
    assert (tmp_path / "restored").read_text() == "12345\n"
    told = (tmp_path / "told").read_text()
    assert "--schema=as_shop" in told
    assert "secret" not in told


@pytest.mark.parametrize(
    ("dump", "restore", "why"),
    [
        ("echo part; echo 'pg_dump: error: it broke off' >&2; exit 1", "cat >/dev/null", "it broke off"),
        ("exec cat /dev/zero", "echo 'pg_restore: error: no room' >&2; exit 1", "no room"),
        ("echo all", "cat >/dev/null; echo 'pg_restore: error: twice' >&2; exit 1", "twice"),
        ("kill -9 $$", "cat >/dev/null", "somebody ended it"),
        ("echo all", "kill -9 $$", "somebody ended it"),
    ],
)
async def test_a_copy_of_which_a_part_fails_has_failed(
    tmp_path: Path, dump: str, restore: str, why: str
) -> None:
    with pytest.raises(SupervisorError, match=why) as failed:
        await stream(tools(tmp_path, dump, restore), URL, URL, "", lambda _: None)
    assert failed.value.reason == "DATABASE_NOT_MOVED"


def test_the_first_difference_of_a_copy_is_told_in_words() -> None:
    there = {"rows of note": "2 rows, 17", "relation note": "r"}
    assert first_difference(there, dict(there)) == ""
    assert first_difference(there, {"relation note": "r"}) == "rows of note is not in the copy"
    assert first_difference({}, {"relation note": "r"}) == "relation note is in the copy alone"
    assert "1 rows, 3 in the copy" in first_difference(there, there | {"rows of note": "1 rows, 3"})

"""The processes that read data directories: used again, one directory at a time, and ended after a while."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from runtime_node.travel.reading import IDLE_SECONDS, STARTS, Readers, Reading
from services.rpc.errors import SupervisorError


async def paths(reading: Reading) -> list[str]:
    entries, _ = await reading.entries(begin=True, after="", changed=False)
    return [it["path"] for it in entries]


async def test_a_process_reads_one_directory_after_another_and_ends_when_none_comes(tmp_path: Path) -> None:
    now = 1000.0
    readers = Readers(lambda: now)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"of-{name}").write_bytes(b"data")
    first = await readers.open(tmp_path / "a")
    assert await paths(first) == ["of-a"]
    assert await first.block("of-a", 0, changed=False, live=True)
    beside = await readers.open(tmp_path / "b")
    assert beside._process is not first._process
    await first.close()
    second = await readers.open(tmp_path / "b")
    assert second._process is first._process
    assert await paths(second) == ["of-b"]
    assert await second.block("of-a", 0, changed=True, live=True) is None, "nothing of before is left"
    for reading in (beside, second):
        await reading.close()
    now += IDLE_SECONDS - 1
    await readers.end_idle()
    assert second._process.returncode is None
    now += 2
    await readers.end_idle()
    assert None not in {beside._process.returncode, second._process.returncode}


async def test_a_process_that_has_ended_is_not_used_again(tmp_path: Path) -> None:
    readers = Readers()
    first = await readers.open(tmp_path)
    first._process.kill()
    await first._process.wait()
    with pytest.raises(SupervisorError):
        await paths(first)
    await first.close()
    second = await readers.open(tmp_path)
    await second.close()
    second._process.kill()
    third = await readers.open(tmp_path)
    assert await paths(third) == []
    await third.close()
    await readers.end_idle(0)


@pytest.mark.parametrize("broken", [1, 2, 3])
async def test_a_process_that_ends_as_it_begins_is_followed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    begun = 0
    start = asyncio.create_subprocess_exec

    async def started(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        nonlocal begun
        begun += 1
        process = await start(*arguments, **options)
        if begun <= broken:

            def write(data: bytes) -> None:
                raise RuntimeError("unable to perform operation; the handler is closed")  # as uvloop says it

            monkeypatch.setattr(process.stdin, "write", write)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", started)
    readers = Readers()
    if broken == STARTS:
        with pytest.raises(SupervisorError) as refused:
            await readers.open(tmp_path)
        assert refused.value.reason == "DATABASE_UNAVAILABLE"
    else:
        reading = await readers.open(tmp_path)
        assert await paths(reading) == []
        await reading.close()
    assert begun == min(broken + 1, STARTS)
    await readers.end_idle(0)

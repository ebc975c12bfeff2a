"""Memory of zeros goes back to the system, and what was in it stays as it was."""

import asyncio
import sys
from pathlib import Path

import pytest
import uvloop

from runtime_node.memory import give_back_zeros
from tests.eventually import WITHIN


def resident() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, which only Linux has")
def test_a_loop_gives_back_most_of_its_memory() -> None:
    loops = [uvloop.new_event_loop() for _ in range(20)]
    before = resident()
    given = [give_back_zeros(loop) for loop in loops]
    assert min(given) > 200_000
    assert before - resident() > 20 * 200
    for loop in loops:
        loop.close()


def test_a_loop_works_as_ever() -> None:
    loop = uvloop.new_event_loop()
    give_back_zeros(loop)
    sent = bytes(range(250)) * 1200

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(300_000))
        writer.close()

    async def talk() -> bytes:
        async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(sent)
            try:
                return await reader.read()
            finally:
                writer.close()

    assert loop.run_until_complete(asyncio.wait_for(talk(), WITHIN)) == sent
    loop.close()


def test_a_small_object_is_left_alone() -> None:
    assert give_back_zeros(object()) == 0

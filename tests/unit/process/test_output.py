"""Reading a guest's output: whole lines, at a pace that leaves the loop to others."""

from __future__ import annotations

import asyncio
import os

from runtime_node.tiers.process import output
from runtime_node.tiers.process.output import LineReader
from runtime_node.tiers.process.zygote import pipe
from tests.eventually import WITHIN


async def test_a_flood_of_empty_lines_is_handed_over_a_few_at_a_time() -> None:
    loop = asyncio.get_running_loop()
    read, write = pipe()
    lines: list[str] = []
    reader = LineReader(loop, read, lines.append)
    os.write(write, b"\n" * output.CHUNK_BYTES)
    most = before = 0
    while len(lines) < 4 * output.LINES_PER_TURN:
        await asyncio.sleep(0)
        most, before = max(most, len(lines) - before), len(lines)
    assert most <= output.LINES_PER_TURN
    os.close(write)
    reader.close()


async def test_what_is_left_at_the_end_is_taken_up_to_a_bound_and_counted_beyond() -> None:
    loop = asyncio.get_running_loop()
    read, write = pipe()
    lines: list[str] = []
    reader = LineReader(loop, read, lines.append)
    os.write(write, b"a\n" * (output.LAST_LINES + 10))
    os.close(write)
    reader.close()
    reader.close()
    assert lines[:-1] == ["a"] * output.LAST_LINES
    assert lines[-1] == "[10 more lines of output were dropped at its end]"


async def test_lines_that_wait_keep_their_order() -> None:
    loop = asyncio.get_running_loop()
    read, write = pipe()
    lines: list[str] = []
    reader = LineReader(loop, read, lines.append)
    expected = [str(number) for number in range(3 * output.LINES_PER_TURN)]
    os.write(write, "\n".join(expected).encode())
    async with asyncio.timeout(WITHIN):
        while len(lines) < len(expected) - 1:  # noqa: ASYNC110  (the reader belongs to the loop alone)
            await asyncio.sleep(0)
    os.close(write)
    reader.close()
    assert lines == expected

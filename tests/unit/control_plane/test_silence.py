"""When a node's stream counts as silent, and that a control plane which stood still blames nobody for it."""

from __future__ import annotations

import asyncio
import time

import pytest

from services.control_plane.nodes.client import NodeClient
from services.control_plane.nodes.silence import STALL, Silence
from services.rpc.errors import SupervisorError
from tests.eventually import eventually
from tests.fakes.runtime_node import FakeNode
from tests.virtual_time import VirtualTimeLoop


def in_virtual_time(coroutine: object) -> None:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(coroutine)  # type: ignore[arg-type]


def test_a_stream_is_cut_once_nothing_has_come_for_so_long() -> None:
    async def check() -> None:
        cut: list[float] = []
        loop = asyncio.get_running_loop()
        began = loop.time()
        silence = Silence(2.5, lambda: cut.append(loop.time() - began))
        for _ in range(4):
            await asyncio.sleep(1.0)
            silence.heard()
        await asyncio.sleep(10.0)
        assert cut == [pytest.approx(6.5)]
        assert silence.is_over

    in_virtual_time(check())


def test_what_has_ended_is_not_cut() -> None:
    async def check() -> None:
        cut: list[None] = []
        silence = Silence(2.5, lambda: cut.append(None))
        silence.end()
        await asyncio.sleep(10.0)
        assert not cut

    in_virtual_time(check())


async def test_a_loop_that_stood_still_reads_first_what_has_come_meanwhile() -> None:
    node = FakeNode()
    await node.start()
    client = NodeClient(node.address)
    heartbeats = 0

    async def follow() -> None:
        nonlocal heartbeats
        async for message in client.watch(silence=1.0):
            heartbeats += message.type == message.HEARTBEAT

    following = asyncio.create_task(follow())
    try:
        await eventually(lambda: heartbeats)
        time.sleep(1.0 + 2 * STALL)  # noqa: ASYNC251 - nobody's loop runs on
        before = heartbeats
        await eventually(lambda: heartbeats > before + 2)
        assert not following.done()
        node.mute()
        with pytest.raises(SupervisorError, match="silent for 1 s"):
            await following
    finally:
        following.cancel()
        await client.close()
        await node.kill()

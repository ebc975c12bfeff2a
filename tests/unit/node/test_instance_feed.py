"""What watchers of a node see, without gRPC."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from appsupervisor.runtime.v1.runtime_environment_pb2 import (
    Instance,
    InstanceError,
    InstanceFigures,
    WatchInstancesResponse,
)
from runtime_node.instances.feed import MAX_FIGURES, InstanceFeed
from services.rpc.errors import SupervisorError
from tests.eventually import WITHIN

Kind = WatchInstancesResponse


def record(name: str, **status: Any) -> Any:
    def describe(node: str, incarnation: str, *, figures: bool) -> Instance:
        return Instance(name=name, node=node, incarnation=incarnation, **status)

    return SimpleNamespace(name=name, describe=describe)


async def take(feed: InstanceFeed, count: int, token: str = "", heartbeat: float = 60) -> list[Any]:
    messages = []
    async with asyncio.timeout(WITHIN):
        stream = feed.watch(token, heartbeat)
        async for message in stream:
            messages.append(message)
            if len(messages) == count:
                await stream.aclose()  # type: ignore[attr-defined]
                break
    return messages


async def test_half_a_snapshot_is_nothing_to_resume_after() -> None:
    feed = InstanceFeed("n", "i")
    feed.changed(record("a"))
    feed.changed(record("b"))
    messages = await take(feed, 3)
    assert [m.resume_token for m in messages] == ["", "", "i.2"]


async def test_a_position_that_the_log_no_longer_covers_has_expired() -> None:
    feed = InstanceFeed("n", "i", tombstones=2)
    for name in "abcd":
        feed.changed(record(name))
        feed.gone(record(name))
    with pytest.raises(SupervisorError) as expired:
        await take(feed, 1, "i.1")
    assert expired.value.reason == "RESUME_TOKEN_EXPIRED"
    assert expired.value.metadata["oldest_sequence"] == "4"
    assert [m.type for m in await take(feed, 1, "i.8")] == [Kind.SYNCED]


async def test_a_reader_that_falls_behind_in_mid_stream_is_told() -> None:
    feed = InstanceFeed("n", "i", tombstones=2)
    stream = feed.watch("", 60)
    assert (await anext(stream)).type == Kind.SYNCED
    for name in "abcd":
        feed.changed(record(name))
        feed.gone(record(name))
    with pytest.raises(SupervisorError, match="too old"):
        await anext(stream)


async def test_a_slow_reader_gets_the_newest_state_once() -> None:
    feed = InstanceFeed("n", "i")
    stream = feed.watch("", 60)
    await anext(stream)
    for count in range(100):
        feed.changed(record("a", restart_count=count))
    message = await anext(stream)
    assert (message.instance.restart_count, message.sequence) == (99, 100)


async def test_why_an_instance_is_gone_is_told_and_forgotten_when_it_comes_back() -> None:
    feed = InstanceFeed("n", "i")
    feed.gone(record("a"), InstanceError(reason="NODE_DRAINING"))
    assert (await take(feed, 1, "i.0"))[0].instance.last_error.reason == "NODE_DRAINING"
    feed.changed(record("a"))
    feed.gone(record("a"))
    assert not (await take(feed, 1, "i.0"))[0].instance.HasField("last_error")


async def test_heartbeats_carry_what_changed_since_the_last_and_no_more_than_fits() -> None:
    feed = InstanceFeed("n", "i")
    for number in range(MAX_FIGURES + 10):
        feed.measured(f"i{number}", InstanceFigures(request_count=number))
    stream = feed.watch("", 0.01)
    await anext(stream)
    first, second, third = [(await anext(stream)).figures for _ in range(3)]
    assert len(first) == MAX_FIGURES
    assert "i0" in first
    assert sorted(second) == sorted(f"i{MAX_FIGURES + n}" for n in range(10))
    assert len(third) == 0
    feed.measured("i3", InstanceFigures(request_count=1))
    feed.unmeasured("i4")
    feed.used(7)
    beat = await anext(stream)
    assert (list(beat.figures), beat.memory_bytes) == (["i3"], 7)
    await stream.aclose()  # type: ignore[attr-defined]


async def test_open_streams_are_counted_until_they_end() -> None:
    now = [10.0]
    feed = InstanceFeed("n", "i", clock=lambda: now[0])
    stream = feed.watch("", 60)
    await anext(stream)
    assert feed.streams == 1
    now[0] = 20.0
    await stream.aclose()  # type: ignore[attr-defined]
    assert (feed.streams, feed.last_stream_end) == (0, 20.0)


async def test_a_closed_feed_tells_all_that_happened_before_it_ends() -> None:
    feed = InstanceFeed("n", "i")
    stream = feed.watch("", 60)
    await anext(stream)
    feed.gone(record("a"))
    feed.close()
    assert (await anext(stream)).type == Kind.REMOVE
    with pytest.raises(SupervisorError) as ended:
        await anext(stream)
    assert ended.value.reason == "NODE_DRAINING"
    with pytest.raises(SupervisorError):
        await take(feed, 1)

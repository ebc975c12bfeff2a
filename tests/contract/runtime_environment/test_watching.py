"""What WatchInstances promises."""

import asyncio
from typing import Any

import grpc
import pytest

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from services.rpc.status import reason_of
from tests.fakes.node_client import DEADLINE, Refused, Subject

Message = pb.WatchInstancesResponse


async def until(stream: Any, wanted: Any) -> list[Message]:
    """Return the messages up to the first for which `wanted` holds."""
    seen = []
    async with asyncio.timeout(DEADLINE):
        async for message in stream:
            seen.append(message)
            if wanted(message):
                return seen
    raise AssertionError("the stream ended")


def is_type(kind: Any) -> Any:
    return lambda message: message.type == kind


async def test_a_stream_begins_with_every_instance_and_then_says_so(node: Subject) -> None:
    for app in ("a", "b", "c"):
        await node.start(name=f"apps/{app}/instances/x", app_uid=app, activation=pb.InstanceSpec.ON_REQUEST)
    seen = await until(node.watch(), is_type(Message.SYNCED))
    assert [m.instance.name for m in seen[:-1]] == [f"apps/{app}/instances/x" for app in "abc"]
    assert all(m.type == Message.UPSERT for m in seen[:-1])
    assert len({m.incarnation for m in seen}) == 1


async def test_a_stream_may_tell_of_many_instances_at_once(node: Subject) -> None:
    for app in ("a", "b", "c"):
        await node.start(name=f"apps/{app}/instances/x", app_uid=app, activation=pb.InstanceSpec.ON_REQUEST)
    stream = node.stub.WatchInstances(pb.WatchInstancesRequest(batched=True))
    seen = await until(stream, is_type(Message.SYNCED))
    assert [[one.name for one in m.instances] for m in seen] == [
        [f"apps/{app}/instances/x" for app in "abc"],
        [],
    ]
    assert not seen[0].HasField("instance")
    await node.stop("apps/b/instances/x")
    left = {one.name: one.state for one in seen[0].instances}
    async with asyncio.timeout(DEADLINE):
        async for message in stream:
            for one in message.instances or (message.instance,):
                left[one.name] = one.state
            if message.type == Message.REMOVE:
                break
    assert message.instance.name == "apps/b/instances/x"
    assert left["apps/a/instances/x"] == pb.Instance.IDLE


async def test_a_stream_of_an_empty_node_begins_with_synced(node: Subject) -> None:
    assert [m.type for m in await until(node.watch(), lambda _: True)] == [Message.SYNCED]


async def test_changes_follow_the_snapshot_in_order(node: Subject) -> None:
    stream = node.watch()
    await until(stream, is_type(Message.SYNCED))
    await node.start()
    seen = await until(stream, lambda m: m.instance.state == pb.Instance.RUNNING)
    await node.stop()
    seen += await until(stream, is_type(Message.REMOVE))
    states = [m.instance.state for m in seen if m.type == Message.UPSERT]
    assert states == sorted(
        states,
        key=[pb.Instance.PENDING, pb.Instance.STARTING, pb.Instance.RUNNING, pb.Instance.STOPPING].index,
    )
    assert states[-1] in {pb.Instance.RUNNING, pb.Instance.STOPPING}  # a state may be left out by a newer one
    assert seen[-1].instance.name == "apps/shop/instances/a1"
    assert not seen[-1].instance.HasField("last_error")
    sequences = [m.sequence for m in seen]
    assert sequences == sorted(sequences)


async def test_heartbeats_come_on_time_and_carry_a_rising_clock(node: Subject) -> None:
    stream = node.watch(heartbeat=0.1)
    seen = await until(stream, is_type(Message.HEARTBEAT))
    seen += await until(stream, is_type(Message.HEARTBEAT))
    first, second = [m.monotonic_time.ToNanoseconds() for m in seen if m.type == Message.HEARTBEAT]
    assert first < second
    assert (second - first) / 1e9 < DEADLINE / 2


async def test_heartbeats_come_between_changes_too(node: Subject) -> None:
    stream = node.watch(heartbeat=0.1)
    await until(stream, is_type(Message.SYNCED))
    await node.start()
    await node.reaches(pb.Instance.RUNNING)

    async def keep_changing() -> None:
        while True:
            await node.restart()
            await node.reaches(pb.Instance.RUNNING)

    changing = asyncio.create_task(keep_changing())
    try:
        await until(stream, is_type(Message.HEARTBEAT))
        await until(stream, is_type(Message.HEARTBEAT))
    finally:
        changing.cancel()


async def test_a_stream_resumes_exactly_after_its_token(node: Subject) -> None:
    await node.start(name="apps/old/instances/x", app_uid="old", activation=pb.InstanceSpec.ON_REQUEST)
    first = node.watch()
    token = (await until(first, is_type(Message.SYNCED)))[-1].resume_token
    first.cancel()
    await node.start(activation=pb.InstanceSpec.ON_REQUEST)
    await node.stop("apps/old/instances/x")
    await node.is_gone("apps/old/instances/x")
    seen = await until(node.watch(token), is_type(Message.SYNCED))
    assert [(m.type, m.instance.name) for m in seen[:-1]] == [
        (Message.UPSERT, "apps/shop/instances/a1"),
        (Message.REMOVE, "apps/old/instances/x"),
    ]


async def test_a_stream_resumed_where_nothing_happened_says_nothing(node: Subject) -> None:
    await node.start(activation=pb.InstanceSpec.ON_REQUEST)
    first = node.watch()
    token = (await until(first, is_type(Message.SYNCED)))[-1].resume_token
    first.cancel()
    seen = await until(node.watch(token), lambda _: True)
    assert seen[0].type == Message.SYNCED


async def test_a_token_of_another_life_has_expired(node: Subject) -> None:
    async with Refused(grpc.StatusCode.OUT_OF_RANGE, "RESUME_TOKEN_EXPIRED"):
        await until(node.watch("0123456789abcdef.1"), lambda _: True)


async def test_a_token_of_the_future_has_expired(node: Subject) -> None:
    synced = (await until(node.watch(), is_type(Message.SYNCED)))[-1]
    async with Refused(grpc.StatusCode.OUT_OF_RANGE, "RESUME_TOKEN_EXPIRED"):
        await until(node.watch(f"{synced.incarnation}.{synced.sequence + 1000}"), lambda _: True)


async def test_a_token_that_is_none_is_refused(node: Subject) -> None:
    async with Refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_RESUME_TOKEN"):
        await until(node.watch("garbage"), lambda _: True)


@pytest.mark.parametrize("interval", [0.01, 61])
async def test_a_heartbeat_interval_out_of_range_is_refused(node: Subject, interval: float) -> None:
    async with Refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"):
        await until(node.watch(heartbeat=interval), lambda _: True)


async def test_every_watcher_sees_every_instance(node: Subject) -> None:
    streams = [node.watch() for _ in range(5)]
    for stream in streams:
        await until(stream, is_type(Message.SYNCED))
    await node.start()
    for stream in streams:
        await until(stream, lambda m: m.instance.state == pb.Instance.RUNNING)


async def test_a_shutdown_ends_streams_after_telling_how_each_instance_ended(node: Subject) -> None:
    await node.start()
    await node.reaches(pb.Instance.RUNNING)
    stream = node.watch()
    await until(stream, is_type(Message.SYNCED))
    drained = asyncio.create_task(node.drain())
    deleted = (await until(stream, is_type(Message.REMOVE)))[-1]
    assert deleted.instance.last_error.reason == "NODE_DRAINING"
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await until(stream, lambda _: False)
    assert (ended.value.code(), reason_of(ended.value)) == (grpc.StatusCode.UNAVAILABLE, "NODE_DRAINING")
    await drained


async def test_a_node_that_shuts_down_takes_no_more_instances(node: Subject) -> None:
    spec = node.spec(entrypoint="behaviours:slow_to_stop")
    spec.config["stop_seconds"] = 1.5
    await node.start(spec)
    await node.reaches(pb.Instance.RUNNING)
    drained = asyncio.create_task(node.drain())
    await node.reaches(pb.Instance.STOPPING)
    async with Refused(grpc.StatusCode.FAILED_PRECONDITION, "NODE_DRAINING"):
        await node.start(name="apps/late/instances/x", app_uid="late")
    await drained

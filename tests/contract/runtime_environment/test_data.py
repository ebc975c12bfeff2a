"""An app's data on its node: whose it is, what is missing, what cannot be removed."""

import asyncio

import grpc

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from tests.contract.runtime_environment.conftest import Tried
from tests.fakes.node_client import DEADLINE, Refused

A1, A2 = "apps/shop/instances/a1", "apps/shop/instances/a2"


async def reports(node: Tried, reason: str, name: str = A1) -> pb.Instance:
    stream = node.watch()
    try:
        async with asyncio.timeout(DEADLINE):
            async for message in stream:
                if message.instance.name == name and message.instance.last_error.reason == reason:
                    return message.instance
    finally:
        stream.cancel()
    raise AssertionError("the stream ended")


async def test_an_app_that_has_served_before_is_not_started_on_an_empty_directory(node: Tried) -> None:
    await node.start(requires_existing_data=True)
    failed = await node.reaches(pb.Instance.FAILED)
    assert failed.last_error.reason == "DATA_MISSING"
    assert "accept_data_loss" in failed.last_error.message or "here" in failed.last_error.message
    await node.stop()
    await node.is_gone()
    # Somebody accepts the loss; from then on the new data is the app's.
    await node.start(name=A2, epoch=2)
    await node.reaches(pb.Instance.RUNNING, A2)
    await node.stop(A2, epoch=2)
    await node.is_gone(A2)
    await node.start(epoch=3, requires_existing_data=True)
    await node.reaches(pb.Instance.RUNNING)


async def test_a_database_elsewhere_is_nothing_that_the_node_could_miss(node: Tried) -> None:
    nothing = pb.Database(no_database=pb.Database.NoDatabase())
    await node.start(requires_existing_data=True, database=nothing)
    await node.reaches(pb.Instance.RUNNING)


async def test_data_that_was_purged_is_missing(node: Tried) -> None:
    await node.start()
    await node.reaches(pb.Instance.RUNNING)
    await node.stop(purge_data=True, app_uid="uid-1")
    await node.is_gone()
    await node.start(epoch=2, requires_existing_data=True)
    assert (await node.reaches(pb.Instance.FAILED)).last_error.reason == "DATA_MISSING"


async def test_whether_data_is_required_makes_no_other_spec(node: Tried) -> None:
    first = await node.start()
    again = await node.start(requires_existing_data=True)
    assert again.create_time == first.create_time


async def test_data_that_cannot_be_removed_keeps_its_instance_until_it_can(node: Tried) -> None:
    await node.start()
    await node.reaches(pb.Instance.RUNNING)
    node.protect("shop", "uid-1")
    await node.stop(purge_data=True, app_uid="uid-1")
    stays = await reports(node, "DATA_NOT_REMOVED")
    assert stays.state == pb.Instance.STOPPING
    again = await node.stop(purge_data=True, app_uid="uid-1")
    assert again.last_error.reason == "DATA_NOT_REMOVED"
    node.release("shop", "uid-1")
    assert await node.stop(purge_data=True, app_uid="uid-1") == pb.Instance()
    await node.is_gone()


async def test_data_of_an_instance_that_is_not_here_is_told_if_it_cannot_be_removed(node: Tried) -> None:
    await node.start()
    await node.reaches(pb.Instance.RUNNING)
    await node.stop()
    await node.is_gone()
    node.protect("shop", "uid-1")
    async with Refused(grpc.StatusCode.FAILED_PRECONDITION, "DATA_NOT_REMOVED"):
        await node.stop(purge_data=True, app_uid="uid-1")
    node.release("shop", "uid-1")
    assert await node.stop(purge_data=True, app_uid="uid-1") == pb.Instance()


async def test_a_node_that_ends_waits_for_no_data_that_cannot_be_removed(node: Tried) -> None:
    await node.start()
    await node.reaches(pb.Instance.RUNNING)
    node.protect("shop", "uid-1")
    await node.stop(purge_data=True, app_uid="uid-1")
    await reports(node, "DATA_NOT_REMOVED")
    async with asyncio.timeout(DEADLINE):
        await node.drain()


async def test_a_node_tells_its_identity(node: Tried) -> None:
    status = await node.stub.GetRuntimeStatus(pb.GetRuntimeStatusRequest())
    assert len(status.node_uid) == 36

"""Leases and leaders, as any node has to treat them."""

from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from tests.fakes.node_client import Refused, Subject, fields_of

UID, OTHER_UID = (f"{number}" * 8 + "-0000-4000-8000-000000000000" for number in (1, 2))
STALE = (grpc.StatusCode.FAILED_PRECONDITION, "STALE_TERM")


async def renewal(node: Subject, term: int = 5, **fields: Any) -> pb.RenewLeaseRequest:
    status = await node.stub.GetRuntimeStatus(pb.GetRuntimeStatusRequest())
    return pb.RenewLeaseRequest(
        **{
            "term": term,
            "incarnation": status.incarnation,
            "monotonic_time": status.monotonic_time,
            "lease_duration": Duration(seconds=6),
            **fields,
        }
    )


async def test_a_renewed_lease_is_held_under_its_leaders_term(node: Subject) -> None:
    first = (await node.stub.RenewLease(await renewal(node))).lease
    assert (first.term, first.held) == (5, True)
    second = (await node.stub.RenewLease(await renewal(node, term=6))).lease
    assert (second.term, second.held) == (6, True)
    status = await node.stub.GetRuntimeStatus(pb.GetRuntimeStatusRequest())
    assert (status.lease.term, status.lease.held) == (6, True)


async def test_a_lease_is_held_for_longer_with_each_message_until_one_is_refused(node: Subject) -> None:
    async def lease() -> pb.Lease:
        return (await node.stub.GetRuntimeStatus(pb.GetRuntimeStatusRequest())).lease

    fence = pb.RenewLeaseRequest.Fence(app_uid="uid-1", epoch=3)
    stream = node.stub.HoldLease()
    for term, fences in ((5, []), (6, [fence])):
        await stream.write(pb.HoldLeaseRequest(renewal=await renewal(node, term, fences=fences)))
    await stream.done_writing()
    assert ((await stream).lease.term, (await lease()).held) == (6, True)
    async with Refused(grpc.StatusCode.FAILED_PRECONDITION, "STALE_EPOCH"):
        await node.start(epoch=2)

    stream = node.stub.HoldLease()
    await stream.write(pb.HoldLeaseRequest(renewal=await renewal(node, term=5)))
    async with Refused(*STALE):
        await stream
    assert (await lease()).term == 6


async def test_nothing_is_done_for_a_leader_that_another_one_has_followed(node: Subject) -> None:
    await node.start()
    await node.stub.RenewLease(await renewal(node))
    name = "apps/shop/instances/a1"
    async with Refused(*STALE) as refused:
        await node.stub.RenewLease(await renewal(node, term=4))
    assert refused.error.details() == "The call is of term 4; this node knows term 5."
    async with Refused(*STALE):
        await node.stub.StartInstance(
            pb.StartInstanceRequest(spec=node.spec(epoch=2, name=f"{name}2"), term=4)
        )
    async with Refused(*STALE):
        await node.stub.StopInstance(pb.StopInstanceRequest(name=name, epoch=1, term=4))
    async with Refused(*STALE):
        await node.stub.RestartInstance(pb.RestartInstanceRequest(name=name, epoch=1, term=4))
    async with Refused(*STALE):
        await node.stub.ClaimDataDirectory(
            pb.ClaimDataDirectoryRequest(
                name=f"apps/shop/dataDirectories/{UID}", app="apps/shop2", app_uid=OTHER_UID, term=4
            )
        )
    async with Refused(*STALE):
        await node.stub.WatchInstances(pb.WatchInstancesRequest(term=4)).read()
    assert (await node.get()).restart_count == 0
    # Of nobody's term, as an operator's call is, it is done.
    assert (await node.restart()).restart_count == 1


async def test_a_node_is_alone_as_the_newest_renewal_says_and_no_late_one(node: Subject) -> None:
    early = await renewal(node)
    late = await renewal(node)
    assert (await node.stub.GetRuntimeStatus(pb.GetRuntimeStatusRequest())).lease.HasField("alone")

    async def told(request: pb.RenewLeaseRequest, term: int, *, alone: bool) -> bool:
        request.term, request.alone = term, alone
        return (await node.stub.RenewLease(request)).lease.alone

    assert await told(early, 5, alone=True)
    assert await told(early, 5, alone=True), "a repeat changes nothing"
    assert not await told(late, 5, alone=False)
    assert not await told(early, 5, alone=True), "it was sent before"
    assert await told(early, 6, alone=True), "another leader knows better"
    assert not await told(early, 6, alone=False), "of two words of one moment the careful one holds"
    assert not await told(early, 6, alone=True)


async def test_a_watch_tells_the_node_of_its_leader(node: Subject) -> None:
    stream = node.stub.WatchInstances(pb.WatchInstancesRequest(term=9))
    await stream.read()
    async with Refused(*STALE):
        await node.stub.RenewLease(await renewal(node, term=8))
    stream.cancel()


async def test_what_is_meant_for_another_life_of_the_node_is_refused(node: Subject) -> None:
    async with Refused(*STALE):
        await node.stub.RenewLease(await renewal(node, incarnation="before"))
    async with Refused(*STALE):
        request = pb.StartInstanceRequest(spec=node.spec(), incarnation="before")
        await node.stub.StartInstance(request)


async def test_what_a_renewal_gives_up_is_accepted_no_more(node: Subject) -> None:
    fence = pb.RenewLeaseRequest.Fence(app_uid="uid-1", epoch=3)
    await node.stub.RenewLease(await renewal(node, fences=[fence]))
    async with Refused(grpc.StatusCode.FAILED_PRECONDITION, "STALE_EPOCH") as refused:
        await node.start(epoch=2)
    assert "epoch 3" in str(refused.error.details())
    assert (await node.start(epoch=3)).epoch == 3


@pytest.mark.parametrize(
    ("wrong", "fields"),
    [
        ({"term": 0}, {"term"}),
        ({"incarnation": ""}, {"incarnation"}),
        ({"lease_duration": Duration(nanos=99_000_000)}, {"lease_duration"}),
        ({"lease_duration": Duration(seconds=61)}, {"lease_duration"}),
        ({"monotonic_time": Duration(seconds=2**40)}, {"monotonic_time"}),
        ({"monotonic_time": Duration(seconds=-1)}, {"monotonic_time"}),
        (
            {"fences": [pb.RenewLeaseRequest.Fence(app_uid="../x", epoch=0)], "term": -1},
            {"term", "fences[0].app_uid", "fences[0].epoch"},
        ),
    ],
)
async def test_a_renewal_that_breaks_a_rule_is_refused(
    node: Subject, wrong: dict[str, Any], fields: set[str]
) -> None:
    async with Refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as refused:
        await node.stub.RenewLease(await renewal(node, **wrong))
    assert fields_of(refused.error) == fields

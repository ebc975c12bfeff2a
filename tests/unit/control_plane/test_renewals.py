"""How a node is told that its lease lasts longer: by a message of a stream, or by a call that is answered."""

from __future__ import annotations

import pytest

from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1.runtime_environment_pb2 import Lease, RenewLeaseRequest, WatchInstancesResponse
from services.control_plane.leases import Fence, Grant, Leases
from services.control_plane.nodes.client import NodeClient
from services.control_plane.nodes.renewals import LeaseRenewals, request_of
from services.control_plane.tenure import Tenure
from services.rpc.errors import SupervisorError
from tests.eventually import eventually
from tests.fakes.runtime_node import FakeNode

FENCES = (Fence("uid-1", 3),)


def renewal(node: FakeNode, term: int = 1, fences: tuple[Fence, ...] = ()) -> RenewLeaseRequest:
    return request_of(Grant(term, node.incarnation, 0.5, 6.0, fences))


class Told:
    """A client that notes which renewals have to be answered."""

    def __init__(self) -> None:
        self.answered: list[bool] = []

    async def renew(self, request: RenewLeaseRequest, *, answered: bool = True) -> Lease | None:
        self.answered.append(answered)
        return Lease() if answered else None


async def test_what_has_to_be_known_from_the_answer_is_asked_for_one() -> None:
    now = 0.0
    leases, client = Leases(Tenure.endless(), lambda: now), Told()
    renewals = LeaseRenewals(Node(name="n", incarnation="a"), client, leases)  # type: ignore[arg-type]

    async def answer_a_heartbeat() -> None:
        nonlocal now
        now += leases.pace.renew
        heartbeat = WatchInstancesResponse()
        heartbeat.monotonic_time.FromNanoseconds(int(now * 1e9))  # each is newer than the word before
        renewals.answer(heartbeat)
        await eventually(lambda: len(client.answered), lambda count: count > before)

    leases.open("n", "a", FENCES)
    for stored, wanted in ((False, False), (False, False), (True, True), (True, False), (False, False)):
        leases.set_alone("n", stored=stored, wanted=wanted)
        before = len(client.answered)
        await answer_a_heartbeat()
        leases.parting_stored("n")
    assert client.answered == [True, False, True, True, False], "fences, alone, and alone no longer"


async def test_only_the_first_renewal_and_what_a_node_gives_up_are_calls_of_their_own(
    node: FakeNode, client: NodeClient
) -> None:
    for fences in ((), (), (), FENCES, (), ()):
        await client.renew(renewal(node, fences=fences), answered=bool(fences))
    await eventually(lambda: node.renewals, lambda taken: taken == 6)
    assert (node.answered_renewals, node.lease_streams) == (2, 1)


async def test_a_node_of_an_older_version_is_called_for_each(node: FakeNode, client: NodeClient) -> None:
    node.knows_lease_streams = False
    await client.renew(renewal(node), answered=False)
    await eventually(lambda: client.streams_renewals, lambda streams: not streams)
    for _ in range(3):
        await client.renew(renewal(node), answered=False)
    assert (node.renewals, node.answered_renewals, node.lease_streams) == (4, 4, 1)


async def test_a_refusal_ends_the_stream_and_is_told_with_the_next_renewal(
    node: FakeNode, client: NodeClient
) -> None:
    await client.renew(renewal(node), answered=False)
    node.lease.heed(2)
    await client.renew(renewal(node), answered=False)
    await eventually(lambda: client.streams_renewals, lambda streams: not streams)
    with pytest.raises(SupervisorError) as refused:
        await client.renew(renewal(node), answered=False)
    assert refused.value.reason == "STALE_TERM"
    await client.renew(renewal(node, term=2), answered=False)
    await client.renew(renewal(node, term=2), answered=False)
    await eventually(lambda: node.renewals, lambda taken: taken == 3)


async def test_the_stream_ends_with_that_of_what_the_node_tells(node: FakeNode, client: NodeClient) -> None:
    watching = client.watch(silence=5.0)
    await anext(watching)
    await client.renew(renewal(node), answered=False)
    assert client.streams_renewals
    await watching.aclose()  # type: ignore[attr-defined]
    assert not client.streams_renewals
    await client.renew(renewal(node), answered=False)
    await client.renew(renewal(node), answered=False)
    await eventually(lambda: node.renewals, lambda taken: taken == 3)

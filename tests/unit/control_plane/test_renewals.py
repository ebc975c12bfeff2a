"""How a node is told that its lease lasts longer: by a message of a stream, or by a call that is answered."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from appsupervisor.runtime.v1.runtime_environment_pb2 import RenewLeaseRequest
from services.control_plane.leases import Fence, Grant
from services.control_plane.nodes.client import NodeClient
from services.control_plane.nodes.renewals import request_of
from services.rpc.errors import SupervisorError
from tests.eventually import eventually
from tests.fakes.runtime_node import FakeNode

FENCES = (Fence("uid-1", 3),)


@pytest.fixture
async def node() -> AsyncIterator[FakeNode]:
    node = FakeNode()
    await node.start()
    yield node
    await node.kill()


@pytest.fixture
async def client(node: FakeNode) -> AsyncIterator[NodeClient]:
    client = NodeClient(node.address)
    yield client
    await client.close()


def renewal(node: FakeNode, term: int = 1, fences: tuple[Fence, ...] = ()) -> RenewLeaseRequest:
    return request_of(Grant(term, node.incarnation, 0.5, 6.0, fences))


async def test_only_the_first_renewal_and_what_a_node_gives_up_are_calls_of_their_own(
    node: FakeNode, client: NodeClient
) -> None:
    for fences in ((), (), (), FENCES, (), ()):
        await client.renew(renewal(node, fences=fences))
    await eventually(lambda: node.renewals, lambda taken: taken == 6)
    assert (node.answered_renewals, node.lease_streams) == (2, 1)


async def test_a_node_of_an_older_version_is_called_for_each(node: FakeNode, client: NodeClient) -> None:
    node.knows_lease_streams = False
    await client.renew(renewal(node))
    await eventually(lambda: client.streams_renewals, lambda streams: not streams)
    for _ in range(3):
        await client.renew(renewal(node))
    assert (node.renewals, node.answered_renewals, node.lease_streams) == (4, 4, 1)


async def test_a_refusal_ends_the_stream_and_is_told_with_the_next_renewal(
    node: FakeNode, client: NodeClient
) -> None:
    await client.renew(renewal(node))
    node.lease.heed(2)
    await client.renew(renewal(node))
    await eventually(lambda: client.streams_renewals, lambda streams: not streams)
    with pytest.raises(SupervisorError) as refused:
        await client.renew(renewal(node))
    assert refused.value.reason == "STALE_TERM"
    await client.renew(renewal(node, term=2))
    await client.renew(renewal(node, term=2))
    await eventually(lambda: node.renewals, lambda taken: taken == 3)


async def test_the_stream_ends_with_that_of_what_the_node_tells(node: FakeNode, client: NodeClient) -> None:
    watching = client.watch(silence=5.0)
    await anext(watching)
    await client.renew(renewal(node))
    assert client.streams_renewals
    await watching.aclose()  # type: ignore[attr-defined]
    assert not client.streams_renewals
    await client.renew(renewal(node))
    await client.renew(renewal(node))
    await eventually(lambda: node.renewals, lambda taken: taken == 3)

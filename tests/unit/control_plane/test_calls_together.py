"""Calls to a node that are wanted at the same moment: one call, each with its own outcome, nobody held up."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.control_plane.nodes.client import NodeClient
from services.control_plane.nodes.together import MOST, MOST_BYTES
from services.rpc.errors import SupervisorError
from tests.fakes.runtime_node import FakeNode

BATCH = "BatchStartInstances"


def start(app: str, **fields: object) -> rt.StartInstanceRequest:
    spec = {"entrypoint": "a:b", "generation": 1, "epoch": 1, "app_uid": f"uid-{app}", **fields}
    return rt.StartInstanceRequest(spec=rt.InstanceSpec(name=f"apps/{app}/instances/a1", **spec))  # type: ignore[arg-type]


def stop(app: str, epoch: int = 1) -> rt.StopInstanceRequest:
    return rt.StopInstanceRequest(name=f"apps/{app}/instances/a1", epoch=epoch)


def calls(node: FakeNode) -> Counter[str]:
    return Counter(method for method, _ in node.calls)


def batches(node: FakeNode) -> list[int]:
    """Return the sizes of the batches of starts that came."""
    return [len(request.requests) for method, request in node.calls if method == BATCH]


async def test_what_is_wanted_alone_goes_alone(node: FakeNode, client: NodeClient) -> None:
    assert (await client.start(start("shop"))).name == "apps/shop/instances/a1"
    assert (await client.stop(stop("shop"))) is not None
    assert calls(node) == {"StartInstance": 1, "StopInstance": 1}


async def test_what_is_wanted_together_goes_together_each_with_its_outcome(
    node: FakeNode, client: NodeClient
) -> None:
    await client.start(start("old", epoch=5))
    outcomes = await asyncio.gather(
        *(client.start(start(app)) for app in ("shop", "old", "blog")), return_exceptions=True
    )
    assert batches(node) == [3]
    first, refused, last = outcomes
    assert isinstance(first, rt.Instance)
    assert isinstance(last, rt.Instance)
    assert isinstance(refused, SupervisorError)
    assert (refused.reason, refused.metadata["known_epoch"]) == ("STALE_EPOCH", "5")
    gone = await asyncio.gather(client.stop(stop("nobody")), client.stop(stop("shop")))
    assert gone[0] is None
    assert gone[1] is not None
    assert calls(node)["BatchStopInstances"] == 1


async def test_a_batch_is_no_larger_than_a_node_takes(node: FakeNode, client: NodeClient) -> None:
    await asyncio.gather(*(client.start(start(f"app-{n}")) for n in range(MOST + 2)))
    assert sorted(batches(node)) == [2, MOST]
    node.calls.clear()
    large = {"env": {"A": "x" * (MOST_BYTES // 9)}}
    await asyncio.gather(*(client.start(start(f"large-{n}", **large)) for n in range(12)))
    assert sorted(batches(node)) == [4, 8]


async def test_a_node_of_an_older_version_is_asked_for_a_batch_once(
    node: FakeNode, client: NodeClient
) -> None:
    node.knows_batches = False
    for turn in range(2):
        await asyncio.gather(*(client.start(start(f"app-{turn}-{n}")) for n in range(3)))
    assert calls(node) == {BATCH: 1, "StartInstance": 6}
    await client.start(start("later"))
    assert len(node.instances()) == 7


async def test_who_gives_up_takes_nothing_from_the_others(node: FakeNode, client: NodeClient) -> None:
    given_up = asyncio.create_task(client.start(start("shop")))
    others = [asyncio.create_task(client.start(start(app))) for app in ("blog", "wiki")]
    await asyncio.sleep(0)
    given_up.cancel()
    for other in others:
        assert (await other).app_uid.startswith("uid-")
    with pytest.raises(asyncio.CancelledError):
        await given_up


async def test_what_all_have_given_up_is_not_asked_for(client: NodeClient, node: FakeNode) -> None:
    waiting = [asyncio.create_task(client.start(start(app))) for app in ("shop", "blog")]
    for _ in range(2):
        await asyncio.sleep(0)  # until the call is to be made
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await client.start(start("wiki"))
    assert calls(node) == {"StartInstance": 1}


async def test_a_node_that_is_gone_is_told_to_each(node: FakeNode, client: NodeClient) -> None:
    await node.kill()
    outcomes = await asyncio.gather(
        *(client.start(start(app)) for app in ("shop", "blog")), return_exceptions=True
    )
    assert [outcome.reason for outcome in outcomes if isinstance(outcome, SupervisorError)] == [
        "NODE_UNREACHABLE"
    ] * 2


@pytest.mark.parametrize("turns", [2, 3])
async def test_closing_ends_what_is_under_way(node: FakeNode, turns: int) -> None:
    await node.kill()
    client = NodeClient(node.address)
    waiting = [asyncio.create_task(client.start(start(app))) for app in ("shop", "blog")]
    for _ in range(turns):  # until the call is to be made, and until it is
        await asyncio.sleep(0)
    await client.close()
    for task in waiting:
        with pytest.raises(SupervisorError, match="not followed any more"):
            await task

"""What BatchStartInstances and BatchStopInstances promise: of each request what its own call would tell."""

import grpc
import pytest

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from services.rpc.status import info_in
from tests.fakes.node_client import Refused, Subject, fields_of

from .conftest import MAX_INSTANCES


def start(node: Subject, app: str, **fields: object) -> pb.StartInstanceRequest:
    name = f"apps/{app}/instances/a1"
    fields = {"app_uid": f"uid-{app}", "activation": pb.InstanceSpec.ON_REQUEST, **fields}
    return pb.StartInstanceRequest(spec=node.spec(name, **fields))


async def start_all(node: Subject, *requests: pb.StartInstanceRequest) -> list[pb.InstanceResult]:
    batch = pb.BatchStartInstancesRequest(requests=requests)
    return list((await node.stub.BatchStartInstances(batch)).results)


async def stop_all(node: Subject, *requests: pb.StopInstanceRequest) -> list[pb.InstanceResult]:
    batch = pb.BatchStopInstancesRequest(requests=requests)
    return list((await node.stub.BatchStopInstances(batch)).results)


def reasons(results: list[pb.InstanceResult]) -> list[str]:
    return [info_in(result.status)[0] for result in results]


async def test_each_start_of_a_batch_is_as_one_of_its_own(node: Subject) -> None:
    await node.start(name="apps/known/instances/a1", app_uid="uid-known", epoch=3)
    of_another_life = start(node, "late")
    of_another_life.incarnation = "another"
    results = await start_all(
        node,
        start(node, "shop"),
        start(node, "known", epoch=2),
        start(node, "Bad Name"),
        of_another_life,
        start(node, "blog", activation=pb.InstanceSpec.EAGER),
        start(node, "shop"),
    )
    assert reasons(results) == ["", "STALE_EPOCH", "INVALID_FIELD", "STALE_TERM", "", ""]
    assert info_in(results[1].status)[1]["known_epoch"] == "3"
    assert results[1].status.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    assert not results[1].HasField("instance")
    assert results[0].instance.state == pb.Instance.IDLE
    assert results[5].instance == results[0].instance, "a repeat returns the instance as it is"
    await node.reaches(pb.Instance.RUNNING, "apps/blog/instances/a1")


async def test_what_is_full_for_one_is_told_to_that_one(node: Subject) -> None:
    results = await start_all(node, *(start(node, f"app-{n}") for n in range(MAX_INSTANCES + 1)))
    assert reasons(results) == [""] * MAX_INSTANCES + ["NODE_FULL"]


async def test_each_stop_of_a_batch_is_as_one_of_its_own(node: Subject) -> None:
    await start_all(node, start(node, "shop"), start(node, "blog", epoch=4))
    results = await stop_all(
        node,
        pb.StopInstanceRequest(name="apps/shop/instances/a1", epoch=1),
        pb.StopInstanceRequest(name="apps/blog/instances/a1", epoch=3),
        pb.StopInstanceRequest(name="apps/nobody/instances/a1", epoch=1),
        pb.StopInstanceRequest(name="apps/nobody/instances/a1", epoch=1, purge_data=True),
    )
    assert reasons(results) == ["", "STALE_EPOCH", "", "INVALID_FIELD"]
    assert results[0].instance.state == pb.Instance.STOPPING
    assert not results[2].HasField("instance")
    await node.is_gone("apps/shop/instances/a1")
    assert (await node.get("apps/blog/instances/a1")).state == pb.Instance.IDLE


@pytest.mark.parametrize("size", [0, 101])
async def test_a_batch_has_as_many_requests_as_it_may(node: Subject, size: int) -> None:
    async with Refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as refused:
        await start_all(node, *[start(node, "shop")] * size)
    assert fields_of(refused.error) == {"requests"}
    async with Refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as refused:
        await stop_all(node, *[pb.StopInstanceRequest(name="apps/shop/instances/a1", epoch=1)] * size)
    assert fields_of(refused.error) == {"requests"}

"""Data directories of a node: listed, whether their app runs or is gone, and handed to another app."""

import grpc
import pytest

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from tests.contract.runtime_environment.conftest import Tried
from tests.fakes.node_client import Refused, fields_of

OLD = "apps/shop/dataDirectories/uid-1"
NEW = "apps/wiki/instances/a1"


async def left(node: Tried, app: str = "shop", uid: str = "uid-1") -> None:
    """Let an app run and end without its data being removed."""
    name = f"apps/{app}/instances/a1"
    await node.start(name=name, app_uid=uid)
    await node.reaches(pb.Instance.RUNNING, name)
    await node.stop(name)
    await node.is_gone(name)


async def listed(node: Tried, parent: str = "apps/-", **fields: object) -> list[pb.DataDirectory]:
    request = pb.ListDataDirectoriesRequest(parent=parent, **fields)  # type: ignore[arg-type]
    return list((await node.stub.ListDataDirectories(request)).data_directories)


async def claim(node: Tried, name: str = OLD, app: str = "apps/wiki", uid: str = "uid-2") -> pb.DataDirectory:
    request = pb.ClaimDataDirectoryRequest(name=name, app=app, app_uid=uid)
    found: pb.DataDirectory = await node.stub.ClaimDataDirectory(request)
    return found


async def test_directories_of_apps_that_run_and_of_those_that_are_gone_are_listed_page_by_page(
    node: Tried,
) -> None:
    assert await listed(node) == []
    await left(node)
    await node.start(name=NEW, app_uid="uid-2")
    await node.reaches(pb.Instance.RUNNING, NEW)
    first, second = await listed(node)
    assert (first.name, first.app_uid, first.hosted) == (OLD, "uid-1", False)
    assert first.size_bytes > 0
    assert (second.name, second.hosted) == ("apps/wiki/dataDirectories/uid-2", True)
    assert [one.name for one in await listed(node, "apps/shop")] == [OLD]
    request = pb.ListDataDirectoriesRequest(parent="apps/-", page_size=1)
    page = await node.stub.ListDataDirectories(request)
    request.page_token = page.next_page_token
    rest = await node.stub.ListDataDirectories(request)
    assert [one.name for one in (*page.data_directories, *rest.data_directories)] == [first.name, second.name]
    assert rest.next_page_token == ""


async def test_a_page_of_another_list_is_refused(node: Tried) -> None:
    async with Refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN"):
        await listed(node, page_token="nonsense")
    async with Refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"):
        await listed(node, page_size=-1)
    async with Refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"):
        await listed(node, "apps/..")


async def test_what_an_app_has_left_is_another_apps_once_it_is_claimed(node: Tried) -> None:
    await left(node)
    for _ in range(2):  # a repeat finds it done
        assert (await claim(node)).name == "apps/wiki/dataDirectories/uid-2"
        assert [one.app_uid for one in await listed(node)] == ["uid-2"]
    await node.start(name=NEW, app_uid="uid-2", requires_existing_data=True)
    await node.reaches(pb.Instance.RUNNING, NEW)
    await node.start(epoch=2, requires_existing_data=True)
    assert (await node.reaches(pb.Instance.FAILED)).last_error.reason == "DATA_MISSING"


async def test_what_is_not_there_cannot_be_claimed(node: Tried) -> None:
    async with Refused(grpc.StatusCode.FAILED_PRECONDITION, "DATA_MISSING"):
        await claim(node)


async def test_data_in_use_cannot_be_claimed(node: Tried) -> None:
    await node.start()
    await node.reaches(pb.Instance.RUNNING)
    async with Refused(grpc.StatusCode.ALREADY_EXISTS, "INSTANCE_EXISTS"):
        await claim(node)
    assert [one.app_uid for one in await listed(node)] == ["uid-1"]


async def test_an_app_that_has_data_of_its_own_gets_no_other(node: Tried) -> None:
    await left(node)
    await left(node, "wiki", "uid-2")
    async with Refused(grpc.StatusCode.FAILED_PRECONDITION, "DATABASE_UNAVAILABLE"):
        await claim(node)
    assert [one.app_uid for one in await listed(node)] == ["uid-1", "uid-2"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": "apps/shop/dataDirectories/../x"}, "name"),
        ({"name": "apps/shop/dataDirectories/.purged"}, "name"),
        ({"app": "apps/.."}, "app"),
        ({"uid": "../uid"}, "app_uid"),
        ({"uid": "uid-1"}, "app_uid"),
    ],
)
async def test_a_claim_names_what_is_wrong_with_it(node: Tried, fields: dict[str, str], field: str) -> None:
    async with Refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as refused:
        await claim(node, **fields)
    assert fields_of(refused.error) == {field}

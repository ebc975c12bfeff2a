"""Two real nodes, told what a control plane would tell them: an app freezes, is started again, and goes."""

from __future__ import annotations

import asyncio
import http.client
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from appsupervisor.runtime.v1 import data_transfers_pb2 as pb
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from appsupervisor.runtime.v1.data_transfers_pb2_grpc import DataTransfersStub
from appsupervisor.runtime.v1.runtime_environment_pb2_grpc import RuntimeEnvironmentStub
from runtime_node.server import Node
from tests.eventually import eventually
from tests.fakes.node_client import Refused, Subject, node_settings

TRAVEL = Path(__file__).resolve().parents[2] / "apps" / "travel"
OURS: dict[str, Any] = {"name": "apps/shop", "app_uid": "uid-1"}
OLD, NEW = "apps/shop/instances/a1", "apps/shop/instances/a2"
Told = pb.ReceiveDataResponse


class Site(Subject):
    """A node, its two services, and its front."""

    def __init__(self, node: Node, channel: grpc.aio.Channel) -> None:
        super().__init__(RuntimeEnvironmentStub(channel), lambda: None)
        self.node = node
        self.transfers = DataTransfersStub(channel)

    async def http(self, path: str = "/", method: str = "GET") -> tuple[int, str]:
        def ask() -> tuple[int, str]:
            connection = http.client.HTTPConnection("127.0.0.1", self.node.http.port, timeout=60)
            try:
                connection.request(method, path, headers={"Host": "shop.localhost"})
                answer = connection.getresponse()
                return answer.status, answer.read().decode()
            finally:
                connection.close()

        return await asyncio.to_thread(ask)


@pytest.fixture
async def sites(tmp_path: Path) -> AsyncIterator[tuple[Site, Site]]:
    async with AsyncExitStack() as stack:
        made = []
        for name in ("a", "b"):
            settings = node_settings(tmp_path / name, app_dir=str(TRAVEL), node=f"node-{name}")
            node = await stack.enter_async_context(Node(settings).serving())
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(str(node.listen)))
            made.append(Site(node, channel))
        yield made[0], made[1]


async def run(site: Site, name: str = OLD, epoch: int = 1) -> None:
    await site.start(
        name=name, epoch=epoch, entrypoint="numbered:create_app", requires_existing_data=epoch > 1,
        database=rt.Database(sqlite=rt.Database.Sqlite()),
    )  # fmt: skip
    await site.reaches(rt.Instance.RUNNING, name)


async def copied(source: Site, target: Site) -> str:
    ticket = secrets.token_bytes(16)
    offer = await source.transfers.OfferData(pb.OfferDataRequest(**OURS, ticket=ticket))
    request = pb.ReceiveDataRequest(
        **OURS, source_address=str(source.node.listen), ticket=ticket, session=offer.session, epoch=2
    )
    await target.transfers.ReceiveData(request)

    async def is_copied() -> bool:
        told = await target.transfers.ReceiveData(pb.ReceiveDataRequest(**OURS))
        assert told.state in (Told.COPYING, Told.COPIED), told
        return bool(told.state == Told.COPIED)

    await eventually(is_copied)
    return str(offer.session)


async def test_what_is_held_is_served_by_whoever_has_the_app_then(sites: tuple[Site, Site]) -> None:
    source, target = sites
    await run(source)
    assert await source.http("/?n=1", "POST") == (200, "1")
    session = await copied(source, target)
    # Frozen, and started again: nothing has gone.
    await source.transfers.FreezeData(pb.FreezeDataRequest(**OURS, ticket=secrets.token_bytes(16)))
    held = asyncio.create_task(source.http("/?n=2", "POST"))
    await eventually(lambda: waiting(source) == 1)
    await run(source)
    assert await held == (200, "2")
    # Frozen again, and gone.
    ticket = secrets.token_bytes(16)
    frozen = await source.transfers.FreezeData(pb.FreezeDataRequest(**OURS, ticket=ticket))
    held = asyncio.create_task(source.http("/?n=3", "POST"))
    await eventually(lambda: waiting(source) == 1)
    rest = pb.ReceiveDataRequest(
        **OURS, source_address=str(source.node.listen), ticket=ticket, session=session, epoch=2,
        freeze_id=frozen.freeze_id,
    )  # fmt: skip
    assert (await target.transfers.ReceiveData(rest)).state == Told.ARRIVED
    await run(target, NEW, 2)
    home = rt.StopInstanceRequest.NewHome(
        node="environments/default/nodes/node-b", http_address=str(target.node.http)
    )
    await source.stop(OLD, epoch=2, app_uid="uid-1", new_home=home)
    assert await held == (200, "3")
    released = await source.transfers.ReleaseData(pb.ReleaseDataRequest(**OURS, moved=True))
    assert (released.HasField("hold_duration"), released.held_count) == (True, 1)
    assert await target.http() == (200, "1,2,3")
    # A late purge is meant for what was here before; and the source does not start on what it has left.
    async with Refused(grpc.StatusCode.FAILED_PRECONDITION, "STALE_EPOCH"):
        await target.stop("apps/shop/instances/a9", epoch=1, app_uid="uid-1", purge_data=True)
    await source.start(
        name="apps/shop/instances/a3", epoch=3, entrypoint="numbered:create_app", requires_existing_data=True
    )
    failed = await source.reaches(rt.Instance.FAILED, "apps/shop/instances/a3")
    assert failed.last_error.reason == "DATA_MISSING"


async def test_what_breaks_a_rule_is_refused(sites: tuple[Site, Site]) -> None:
    source, target = sites
    ticket = secrets.token_bytes(16)
    async with Refused(grpc.StatusCode.FAILED_PRECONDITION, "DATA_MISSING"):
        await source.transfers.OfferData(pb.OfferDataRequest(**OURS, ticket=ticket))
    async with Refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"):
        await source.transfers.OfferData(pb.OfferDataRequest(name="apps/..", app_uid="../x", ticket=b"short"))
    async with Refused(grpc.StatusCode.FAILED_PRECONDITION, "TICKET_INVALID"):
        await source.transfers.FreezeData(pb.FreezeDataRequest(**OURS, ticket=ticket))
    async with Refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"):
        await target.transfers.ReceiveData(pb.ReceiveDataRequest(**OURS, ticket=ticket))
    async with Refused(grpc.StatusCode.FAILED_PRECONDITION, "TICKET_INVALID"):
        await source.transfers.ReadData(pb.ReadDataRequest(ticket=ticket)).read()
    await run(target)
    async with Refused(grpc.StatusCode.ALREADY_EXISTS, "INSTANCE_EXISTS"):
        await target.transfers.ReceiveData(
            pb.ReceiveDataRequest(**OURS, ticket=ticket, source_address="a:1", session="s", epoch=2)
        )
    async with Refused(grpc.StatusCode.ALREADY_EXISTS, "INSTANCE_EXISTS"):
        await target.transfers.ReleaseData(pb.ReleaseDataRequest(**OURS, moved=True))


def waiting(site: Site) -> int:
    gate = site.node.router.gate_of("shop")
    return gate.figures().queued if gate is not None else 0

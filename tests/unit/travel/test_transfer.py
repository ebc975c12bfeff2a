"""The two halves together, without a network: copies that break off, sessions that end, wrong tickets."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path

import pytest

from appsupervisor.runtime.v1 import data_transfers_pb2 as pb
from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec
from runtime_node.instances.databases import Databases
from runtime_node.instances.table import InstanceTable
from runtime_node.travel.offers import IDLE_SECONDS, Offers
from runtime_node.travel.receipts import Receipt, Receipts
from services.rpc.errors import SupervisorError
from tests.eventually import eventually

UID = "u1"


class Pair:
    """A node that offers and one that receives; the stream between them may break off after some blocks."""

    def __init__(self, root: Path) -> None:
        self.now = 1000.0
        self.source, self.target = Databases(root / "a"), Databases(root / "b")
        spec = InstanceSpec(name="apps/shop/instances/a1", app_uid=UID)
        self.directory, _ = self.source.provide(spec)
        self.offers = Offers(self.source, lambda: self.now)
        self.receipts = Receipts(
            self.target, InstanceTable(10), self.read, is_doomed=lambda *_: self.doomed,
            code_ahead=self.fetch,
        )  # fmt: skip
        self.code: list[str] = []
        """What was imported and is kept."""
        self.imported = asyncio.Event()
        self.imported.set()
        self.breaks_after = -1
        self.doomed = False
        self.requests: list[pb.ReadDataRequest] = []

    async def read(
        self, address: str, request: pb.ReadDataRequest, silence: float
    ) -> AsyncGenerator[pb.ReadDataResponse, None]:
        self.requests.append(request)
        async for message in self.offers.read(request):
            if message.HasField("block"):
                if self.breaks_after == 0:
                    self.breaks_after = -1
                    raise SupervisorError("NODE_UNREACHABLE", "It broke off.")
                self.breaks_after -= 1
            yield message

    async def fetch(self, entrypoint: str, isolation: object) -> Callable[[], None]:
        await self.imported.wait()
        if entrypoint == "missing:app":
            raise SupervisorError("ENTRYPOINT_MODULE_NOT_FOUND", "There is no module 'missing'.")
        self.code.append(entrypoint)
        return lambda: self.code.remove(entrypoint)

    async def offer(self) -> tuple[str, bytes]:
        ticket = secrets.token_bytes(16)
        return (await self.offers.open("shop", UID, ticket, may_be_missing=False)).session, ticket

    async def copy(self, entrypoint: str = "") -> Receipt:
        session, ticket = await self.offer()
        await self.receipts.begin("shop", UID, session, "a", ticket, 2, entrypoint=entrypoint)
        await eventually(self._is_over)
        return self.receipts.told(UID)

    async def _is_over(self) -> bool:
        return self.receipts.told(UID).state != Receipt.COPYING

    async def finish(self) -> Receipt:
        offer = self.offers.of(UID)
        assert offer is not None
        ticket, offer.freeze_id = secrets.token_bytes(16), secrets.token_hex(8)
        self.offers.admit(offer, ticket)
        return await self.receipts.finish("shop", UID, "a", ticket, offer.freeze_id)

    def arrived(self) -> dict[str, bytes]:
        place = self.target.directory("shop", UID)
        found = [it for it in place.rglob("*") if it.is_file()] if place.exists() else []
        return {
            str(it.relative_to(place)): it.read_bytes()
            for it in found
            if it.name not in (".owner", ".arrived")
        }


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    pair = Pair(tmp_path)
    (pair.directory / "a").write_bytes(b"a" * 700_000)
    (pair.directory / "b").write_bytes(b"b" * 700_000)
    yield pair
    await pair.receipts.close()
    await pair.offers.close_all()


def contents(pair: Pair) -> dict[str, bytes]:
    return {it.name: it.read_bytes() for it in pair.directory.iterdir() if it.name != ".owner"}


async def test_a_copy_that_breaks_off_is_gone_on_with_where_it_was(pair: Pair) -> None:
    pair.breaks_after = 4
    told = await pair.copy()
    assert (told.state, told.message) == (Receipt.INTERRUPTED, "It broke off.")
    got = told.received_bytes
    told = await pair.copy()
    assert (told.state, told.received_bytes) == (Receipt.COPIED, 1_400_000)
    assert (pair.requests[1].path, pair.requests[1].offset) == ("b", got - 700_000)
    (pair.directory / "a").write_bytes(b"x" * 100)
    told = await pair.finish()
    assert (told.state, told.rest_bytes) == (Receipt.ARRIVED, 100)
    assert pair.arrived() == contents(pair)


async def test_a_rest_that_breaks_off_leaves_nothing_in_its_place(pair: Pair) -> None:
    await pair.copy()
    (pair.directory / "a").write_bytes(b"y" * 100)
    pair.breaks_after = 0
    with pytest.raises(SupervisorError) as refused:
        await pair.finish()
    assert (refused.value.reason, pair.arrived()) == ("DATA_NOT_MOVED", {})
    assert pair.receipts.told(UID).state == Receipt.ABSENT, "what is here is of no moment at all"
    pair.offers.thaw(UID)
    await pair.copy()
    assert (await pair.finish()).state == Receipt.ARRIVED
    assert pair.arrived() == contents(pair)


async def test_what_runs_again_is_not_frozen_any_more(pair: Pair) -> None:
    await pair.copy()
    offer = pair.offers.of(UID)
    assert offer is not None
    ticket, offer.freeze_id = secrets.token_bytes(16), "f1"
    pair.offers.admit(offer, ticket)
    pair.offers.thaw(UID)
    with pytest.raises(SupervisorError) as refused:
        await pair.receipts.finish("shop", UID, "a", ticket, "f1")
    assert (refused.value.reason, pair.arrived()) == ("DATA_NOT_MOVED", {})


async def test_a_copy_of_another_session_is_begun_anew(pair: Pair) -> None:
    pair.breaks_after = 4
    await pair.copy()
    await pair.offers.close(UID)
    (pair.directory / "a").unlink()
    told = await pair.copy()
    assert (told.state, told.received_bytes) == (Receipt.COPIED, 700_000)
    assert pair.requests[1].path == ""
    await pair.finish()
    assert pair.arrived() == contents(pair)


async def test_what_has_arrived_of_a_freeze_that_did_not_hold_is_read_again(pair: Pair) -> None:
    await pair.copy()
    await pair.finish()
    pair.offers.thaw(UID)
    (pair.directory / "a").write_bytes(b"later")
    assert (await pair.copy()).state == Receipt.COPIED
    await pair.finish()
    assert pair.arrived() == contents(pair)
    assert not (pair.target.root.parent / "aside").exists()


async def test_without_its_ticket_nobody_reads(pair: Pair) -> None:
    _, ticket = await pair.offer()
    for wrong in (b"", b"0" * 16, ticket[:-1]):
        with pytest.raises(SupervisorError) as refused:
            await anext(pair.offers.read(pb.ReadDataRequest(ticket=wrong)))
        assert refused.value.reason == "TICKET_INVALID"
    reading = pair.offers.read(pb.ReadDataRequest(ticket=ticket))
    assert (await anext(reading)).total_bytes == 1_400_000
    with pytest.raises(SupervisorError):
        await anext(pair.offers.read(pb.ReadDataRequest(ticket=ticket)))
    # A later stream ends an earlier one, whose reader may be gone.
    _, ticket = await pair.offer()
    await anext(pair.offers.read(pb.ReadDataRequest(ticket=ticket)))
    with pytest.raises(SupervisorError):
        await anext(reading)


async def test_nothing_comes_while_former_data_is_being_removed(pair: Pair) -> None:
    pair.doomed = True
    with pytest.raises(SupervisorError) as refused:
        await pair.copy()
    assert (refused.value.reason, pair.receipts.epoch(UID)) == ("DATA_NOT_MOVED", 0)
    pair.doomed = False
    await pair.copy()
    assert pair.receipts.epoch(UID) == 2, "a purge that was told before that is refused"


async def test_the_code_is_here_before_the_copy_is_told_and_until_it_is_used(pair: Pair) -> None:
    pair.imported.clear()
    copying = asyncio.create_task(pair.copy("good:app"))
    await eventually(lambda: pair.receipts.told(UID).received_bytes == 1_400_000)
    assert (pair.receipts.told(UID).state, pair.code) == (Receipt.COPYING, [])
    pair.imported.set()
    assert ((await copying).state, pair.code) == (Receipt.COPIED, ["good:app"])
    await pair.copy("good:app")
    await pair.finish()
    assert pair.code == ["good:app"], "imported once, and kept for the start"
    assert pair.receipts.settle(UID)
    assert pair.code == []
    pair.offers.thaw(UID)
    await pair.copy("good:app")
    await pair.receipts.discard(UID)
    assert pair.code == [], "it does not come"


async def test_that_the_code_is_missing_is_told_with_the_copy(pair: Pair) -> None:
    told = await pair.copy("missing:app")
    assert (told.state, told.code_error.reason) == (Receipt.COPIED, "ENTRYPOINT_MODULE_NOT_FOUND")


async def test_an_offer_that_nobody_uses_is_closed(pair: Pair) -> None:
    await pair.copy()
    pair.now += IDLE_SECONDS + 1
    await pair.offers.close_idle()
    assert pair.offers.of(UID) is None
    with pytest.raises(SupervisorError) as refused:
        await pair.offers.open("wiki", "u2", b"1" * 16, may_be_missing=False)
    assert refused.value.reason == "DATA_MISSING"

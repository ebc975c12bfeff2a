"""The source's half: data that is offered to another node, and the stream that reads it.

What is offered is read by a process of its own, which an offer that nobody uses does not keep.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from appsupervisor.runtime.v1 import data_transfers_pb2 as pb
from runtime_node.instances.databases import Databases, owner_of
from runtime_node.travel.reader_process import BLOCK_BYTES
from runtime_node.travel.reading import Readers, Reading
from runtime_node.travel.tickets import Tickets
from services.rpc.errors import SupervisorError

log = logging.getLogger("runtime_node.travel")

IDLE_SECONDS = 30.0
"""An offer that nobody reads or renews for so long is closed: a database's log grows while it is open."""

CATCH_UPS = 3
"""Passes at most over what was written since the one before, as long as each brings much."""
CATCH_UP_BYTES = 8 * 1024 * 1024
"""So much is sent in less time than another pass takes."""

Entry = pb.ReadDataResponse.Entry

_KINDS = {"file": Entry.FILE, "directory": Entry.DIRECTORY, "link": Entry.LINK}


@dataclass(slots=True)
class Offer:
    """One app's data, as long as it is offered."""

    app: str
    uid: str
    session: str
    reading: Reading | None
    """None of an app that has no directory yet."""
    total_bytes: int = 0
    freeze_id: str = ""
    """Set while nothing of the app runs here."""
    stream: int = 0
    """Number of the newest stream: it ends the one before."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Whoever reads a block for a stream, or begins another."""
    open_streams: int = 0
    used: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class _Pass:
    """One way through a directory, from a place on; and what came of it."""

    path: str = ""
    offset: int = 0
    changed: bool = False
    """Only what is not as it was sent."""
    live: bool = True
    entries: int = 0
    skipped: int = 0
    sent: int = 0
    """Bytes."""


class Offers:
    """What is offered, by app uid. Belongs to the control loop."""

    def __init__(self, databases: Databases, clock: Callable[[], float] = time.monotonic) -> None:
        self._databases = databases
        self._clock = clock
        self._tickets = Tickets(clock)
        self._readers = Readers(clock)
        self._offers: dict[str, Offer] = {}
        self._turn = asyncio.Lock()

    def of(self, uid: str) -> Offer | None:
        """Return the offer of an app's data."""
        return self._offers.get(uid)

    async def open(self, app: str, uid: str, ticket: bytes, *, may_be_missing: bool) -> Offer:
        """Offer an app's data to who has the ticket; goes on with an offer that is open.

        Raises DATA_MISSING, unless it may be, and DATABASE_UNAVAILABLE.
        """
        async with self._turn:
            offer = self._offers.get(uid)
            if offer is None:
                offer = await self._begin(app, uid, may_be_missing=may_be_missing)
                self._offers[uid] = offer
        self.admit(offer, ticket)
        return offer

    def admit(self, offer: Offer, ticket: bytes) -> None:
        """Let who has a ticket read what is offered, once."""
        offer.used = self._clock()
        self._tickets.put(offer.uid, ticket)

    async def _begin(self, app: str, uid: str, *, may_be_missing: bool) -> Offer:
        directory = self._databases.directory(app, uid)
        session = secrets.token_hex(8)
        try:
            owner = await asyncio.to_thread(owner_of, directory)
        except FileNotFoundError:
            if may_be_missing:
                return Offer(app, uid, session, None)
            raise SupervisorError(
                "DATA_MISSING",
                f"The data of apps/{app} is not on this node.",
                resource=f"apps/{app}",
                metadata={"uid": uid},
            ) from None
        except OSError as fault:
            raise _unavailable(app, fault.strerror or str(fault)) from fault
        if owner not in (None, uid):
            raise _unavailable(app, "its mark names another owner")
        reading = await self._readers.open(directory)
        try:
            total, pinned = await reading.pin()
        except BaseException:
            await reading.close()
            raise
        log.info(
            "data offered",
            extra={"action": "travel.offered", "app": app, "uid": uid, "bytes": total,
                   "facts": {"databases_in_wal_mode": len(pinned)}},
        )  # fmt: skip
        return Offer(app, uid, session, reading, total)

    async def read(self, request: pb.ReadDataRequest) -> AsyncIterator[pb.ReadDataResponse]:
        """Stream what a ticket is good for; see ReadData for the rules and errors."""
        uid = self._tickets.take(request.ticket)
        offer = self._offers.get(uid) if uid is not None else None
        if offer is None:
            raise SupervisorError("TICKET_INVALID", "The ticket is unknown, used or too old.")
        async with offer.turn:
            offer.stream += 1
            number = offer.stream
        offer.open_streams += 1
        try:
            async with aclosing(self._messages(offer, request, number)) as messages:
                async for message in messages:
                    yield message
                    offer.used = self._clock()
        finally:
            offer.open_streams -= 1
            offer.used = self._clock()

    async def _messages(
        self, offer: Offer, request: pb.ReadDataRequest, number: int
    ) -> AsyncGenerator[pb.ReadDataResponse, None]:
        freeze_id = offer.freeze_id
        yield pb.ReadDataResponse(session=offer.session, total_bytes=offer.total_bytes)
        told = _Pass(request.path, request.offset, changed=bool(freeze_id), live=not freeze_id)
        async for message in self._pass(offer, number, told):
            yield message
        more = told.live
        for _ in range(CATCH_UPS if more else 0):
            # What was written meanwhile would be compared, and sent, while the app stands still.
            catch_up = _Pass(changed=True, live=True)
            async for message in self._pass(offer, number, catch_up):
                yield message
            if catch_up.sent < CATCH_UP_BYTES:
                break
        if freeze_id != offer.freeze_id:
            raise SupervisorError("DATA_NOT_MOVED", "The app was started again meanwhile.")
        end = pb.ReadDataResponse.End(
            freeze_id=freeze_id, entry_count=told.entries, skipped_count=told.skipped
        )
        yield pb.ReadDataResponse(end=end)

    async def _pass(
        self, offer: Offer, number: int, told: _Pass
    ) -> AsyncGenerator[pb.ReadDataResponse, None]:
        """Yield the entries of a directory, and what of its files is to be sent; count that."""
        reading, begin = offer.reading, True
        changed, live = told.changed, told.live
        while reading is not None:
            async with _newest(offer, number):
                found, told.skipped = await reading.entries(begin=begin, after=told.path, changed=changed)
            if not found:
                break
            begin = False
            told.entries += len(found)
            if changed and live:
                found = [it for it in found if not it.get("same")]
            yield pb.ReadDataResponse(entries=map(_entry, found))
            for entry in found:
                if entry["kind"] != "file" or entry.get("same"):
                    continue
                path, more = entry["path"], True
                offset = told.offset if path == told.path else 0
                while more:
                    # What was read for a stream that is not read any more would be taken for sent.
                    async with _newest(offer, number):
                        block = await reading.block(path, offset, changed=changed, live=live)
                    if block is None:
                        break
                    offset = block.offset + len(block.data)
                    more = len(block.data) == BLOCK_BYTES
                    told.sent += len(block.data)
                    message = pb.ReadDataResponse.Block(
                        path=path, offset=block.offset, data=block.data, digest=block.digest
                    )
                    yield pb.ReadDataResponse(block=message)

    def thaw(self, uid: str) -> None:
        """Note that an instance of an app is accepted here: its data is not frozen any more."""
        offer = self._offers.get(uid)
        if offer is not None:
            offer.freeze_id = ""

    async def close(self, uid: str) -> None:
        """End an offer; one that is not there is fine."""
        offer = self._offers.pop(uid, None)
        self._tickets.drop(uid)
        if offer is not None:
            async with offer.turn:
                offer.stream += 1
            offer.freeze_id = ""
            if offer.reading is not None:
                await offer.reading.close()

    async def close_idle(self) -> None:
        """End the offers that nobody uses, and processes that nothing is left to do for."""
        await self._readers.end_idle()
        for offer in list(self._offers.values()):
            if not offer.open_streams and self._clock() - offer.used > IDLE_SECONDS:
                told = {"action": "travel.offer_closed", "app": offer.app, "uid": offer.uid}
                log.info("an offer of data was not used", extra=told)
                await self.close(offer.uid)

    async def close_all(self) -> None:
        """End all offers: the node shuts down."""
        for uid in list(self._offers):
            await self.close(uid)
        await self._readers.end_idle(0)


@asynccontextmanager
async def _newest(offer: Offer, number: int) -> AsyncIterator[None]:
    async with offer.turn:
        if offer.stream != number:
            raise SupervisorError("TICKET_INVALID", "Another stream has taken this one's place.")
        yield


def _entry(found: dict[str, Any]) -> Entry:
    return Entry(
        path=found["path"],
        kind=_KINDS[found["kind"]],
        mode=found["mode"],
        size_bytes=found["size"],
        link_target=found["link"],
    )


def _unavailable(app: str, why: str) -> SupervisorError:
    return SupervisorError(
        "DATABASE_UNAVAILABLE",
        f"The data of apps/{app} cannot be offered: {why}.",
        resource=f"apps/{app}",
        metadata={"why": why},
    )

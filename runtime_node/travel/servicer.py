"""DataTransfers over gRPC: checks requests, calls the two halves, fills responses. Decides nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from appsupervisor.runtime.v1 import data_transfers_pb2 as pb
from appsupervisor.runtime.v1.data_transfers_pb2_grpc import DataTransfersServicer as Servicer
from runtime_node import rules
from runtime_node.lease import Lease
from runtime_node.travel.freezer import Freezer
from runtime_node.travel.offers import Offers
from runtime_node.travel.receipts import Receipts
from runtime_node.travel.tickets import TICKET_BYTES
from services.rpc.errors import Violation, invalid_fields


class DataTransfersServicer(Servicer):
    """Serves both halves of one node."""

    def __init__(self, offers: Offers, freezer: Freezer, receipts: Receipts, lease: Lease) -> None:
        self._offers = offers
        self._freezer = freezer
        self._receipts = receipts
        self._lease = lease

    async def OfferData(self, request: pb.OfferDataRequest, context: Any) -> pb.OfferDataResponse:
        """Offer an app's data."""
        self._lease.heed(request.term)
        app, uid = check_app(request.name, request.app_uid, ticket=request.ticket)
        missing = self._freezer.may_be_missing(app, uid)
        offer = await self._offers.open(app, uid, request.ticket, may_be_missing=missing)
        return pb.OfferDataResponse(session=offer.session)

    async def FreezeData(self, request: pb.FreezeDataRequest, context: Any) -> pb.FreezeDataResponse:
        """Stop the app, and hold its requests."""
        self._lease.heed(request.term)
        app, uid = check_app(request.name, request.app_uid, ticket=request.ticket)
        freeze_id, took = await self._freezer.freeze(app, uid, request.ticket)
        response = pb.FreezeDataResponse(freeze_id=freeze_id)
        response.stop_duration.FromMicroseconds(int(took * 1e6))
        return response

    async def ReleaseData(self, request: pb.ReleaseDataRequest, context: Any) -> pb.ReleaseDataResponse:
        """End an offer."""
        self._lease.heed(request.term)
        app, uid = check_app(request.name, request.app_uid)
        held, waited = await self._freezer.release(app, uid, moved=request.moved)
        response = pb.ReleaseDataResponse(held_count=waited)
        if held is not None:
            response.hold_duration.FromMicroseconds(int(held * 1e6))
        return response

    async def ReadData(self, request: pb.ReadDataRequest, context: Any) -> AsyncIterator[pb.ReadDataResponse]:
        """Stream what a ticket is good for."""
        async for message in self._offers.read(request):
            yield message

    async def ReceiveData(self, request: pb.ReceiveDataRequest, context: Any) -> pb.ReceiveDataResponse:
        """Receive an app's data."""
        self._lease.heed(request.term)
        if not request.ticket and not request.freeze_id:
            check_app(request.name, request.app_uid)
            return self._receipts.told(request.app_uid)
        app, uid = check_app(request.name, request.app_uid, ticket=request.ticket)
        address, session = request.source_address, request.session
        needed = (("source_address", address), ("session", session), ("epoch", max(0, request.epoch)))
        if missing := [name for name, value in needed if not value]:
            raise invalid_fields([Violation(name, "is required with a ticket") for name in missing])
        if request.freeze_id:
            return await self._receipts.finish(app, uid, address, request.ticket, request.freeze_id)
        return await self._receipts.begin(
            app, uid, session, address, request.ticket, request.epoch,
            entrypoint=request.entrypoint, isolation=request.isolation,
        )  # fmt: skip


def check_app(name: str, uid: str, *, ticket: bytes | None = None) -> tuple[str, str]:
    """Return an app's id and uid. Raises INVALID_FIELD with every field that breaks its rule."""
    found: list[Violation] = []
    app = name.removeprefix("apps/")
    if app == name or rules.directory_ids(f"{app}.uid") is None:
        found.append(Violation("name", "must be apps/{app}"))
    if rules.directory_ids(f"app.{uid}") is None:
        found.append(Violation("app_uid", rules.UID_RULE))
    if ticket is not None and len(ticket) != TICKET_BYTES:
        found.append(Violation("ticket", f"must be {TICKET_BYTES} bytes"))
    if found:
        raise invalid_fields(found)
    return app, uid

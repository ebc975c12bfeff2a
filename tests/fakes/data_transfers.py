"""DataTransfers of a node in memory: an app's data is a list of who ran on it, and that is what travels.

A node finds another by its address among those of this process.
"""

from __future__ import annotations

import asyncio
import secrets
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from appsupervisor.runtime.v1 import data_transfers_pb2 as pb
from appsupervisor.runtime.v1.data_transfers_pb2_grpc import DataTransfersServicer
from runtime_node.travel.servicer import check_app
from services.rpc.errors import SupervisorError

if TYPE_CHECKING:
    from tests.fakes.runtime_node import FakeNode

Told = pb.ReceiveDataResponse

_LIVES: weakref.WeakSet[FakeTransfers] = weakref.WeakSet()


@dataclass(eq=False)
class FakeTransfers:
    """Both halves of one life of a fake node."""

    node: FakeNode
    copy_seconds: float = 0.3
    breaks: list[str] = field(default_factory=list)
    """Steps that fail once each: `copy`, `freeze`, `rest`."""

    def __post_init__(self) -> None:
        self.sessions: dict[str, str] = {}
        self.frozen: dict[str, str] = {}
        self.tickets: dict[bytes, str] = {}
        self.came_under: dict[str, int] = {}
        self._receiving: dict[str, tuple[Told, float]] = {}
        _LIVES.add(self)

    def _hosted(self, uid: str) -> list[str]:
        return [name for name, it in self.node.instances().items() if it.app_uid == uid]

    async def offer(self, request: pb.OfferDataRequest) -> pb.OfferDataResponse:
        self.node.lease.heed(request.term)
        _, uid = check_app(request.name, request.app_uid, ticket=request.ticket)
        if uid not in self.node.disk.data and not self._hosted(uid):
            raise SupervisorError("DATA_MISSING", "Its data is not here.")
        self.tickets[request.ticket] = uid
        return pb.OfferDataResponse(session=self.sessions.setdefault(uid, secrets.token_hex(4)))

    async def freeze(self, request: pb.FreezeDataRequest) -> pb.FreezeDataResponse:
        self.node.lease.heed(request.term)
        _, uid = check_app(request.name, request.app_uid, ticket=request.ticket)
        if uid not in self.sessions:
            raise SupervisorError("TICKET_INVALID", "It is not offered.")
        self._may_break("freeze")
        await self.node.end_all(uid)
        if self._hosted(uid):
            raise SupervisorError("DATA_NOT_MOVED", "It was started again.")
        self.frozen[uid] = secrets.token_hex(4)
        self.tickets[request.ticket] = uid
        return pb.FreezeDataResponse(freeze_id=self.frozen[uid])

    async def release(self, request: pb.ReleaseDataRequest) -> pb.ReleaseDataResponse:
        self.node.lease.heed(request.term)
        _, uid = check_app(request.name, request.app_uid)
        if request.moved and self._hosted(uid):
            raise SupervisorError("INSTANCE_EXISTS", "An instance is here.")
        held = uid in self.frozen
        self.forget(uid)
        if request.moved and uid in self.node.disk.data:
            self.node.disk.data.discard(uid)
            self.node.disk.left.add(uid)
        response = pb.ReleaseDataResponse()
        if held:
            response.hold_duration.FromMilliseconds(1)
        return response

    async def receive(self, request: pb.ReceiveDataRequest) -> Told:
        self.node.lease.heed(request.term)
        now = asyncio.get_running_loop().time()
        told, ready = self._receiving.get(request.app_uid, (Told(state=Told.ABSENT), now))
        if told.state == Told.COPYING and ready <= now:
            told.state = Told.COPIED
        if not request.ticket:
            check_app(request.name, request.app_uid)
            return told
        _, uid = check_app(request.name, request.app_uid, ticket=request.ticket)
        if self._hosted(uid):
            raise SupervisorError("INSTANCE_EXISTS", "An instance is here.")
        self.came_under[uid] = max(request.epoch, self.came_under.get(uid, 0))
        there = (it for it in _LIVES if it.node.address == request.source_address and not it.node.killed)
        source = next(there, None)
        if source is None or source.tickets.pop(request.ticket, "") != uid:
            raise SupervisorError("TICKET_INVALID", "The ticket is unknown.")
        if request.freeze_id:
            return self._finish(uid, source, told, request)
        if told.state == Told.COPIED and told.session == request.session:
            return told
        self._may_break("copy")
        told = Told(state=Told.COPYING, session=request.session, total_bytes=4096, received_bytes=4096)
        self._receiving[uid] = told, now + self.copy_seconds
        behaviour = self.node.behaviours.get(request.entrypoint)
        if behaviour is not None and behaviour.fails is not None:
            reason, message = behaviour.fails
            if reason.startswith("ENTRYPOINT_"):
                told.code_error.reason, told.code_error.message = reason, message
        return told

    def _finish(self, uid: str, source: FakeTransfers, told: Told, request: pb.ReceiveDataRequest) -> Told:
        if told.state != Told.COPIED or told.session != source.sessions.get(uid):
            raise SupervisorError("DATA_NOT_MOVED", "What was to come before the rest is not here.")
        if source.frozen.get(uid) != request.freeze_id:
            raise SupervisorError("DATA_NOT_MOVED", "It is not frozen.")
        self._may_break("rest")
        told.state, told.freeze_id = Told.ARRIVED, request.freeze_id
        disk = self.node.disk
        disk.left.discard(uid)
        disk.data.add(uid)
        disk.apps[uid] = request.name.removeprefix("apps/")
        disk.ran[uid] = list(source.node.disk.ran.get(uid, ()))
        return told

    def accepted(self, uid: str) -> None:
        """An instance of an app is accepted here."""
        self.frozen.pop(uid, None)
        if uid in self._receiving and self._receiving[uid][0].state == Told.ARRIVED:
            del self._receiving[uid]

    def forget(self, uid: str) -> None:
        """Nothing of an app is to be here any more."""
        self.sessions.pop(uid, None)
        self.frozen.pop(uid, None)
        self.tickets = {ticket: known for ticket, known in self.tickets.items() if known != uid}

    def purge(self, uid: str) -> None:
        """Its data is removed."""
        self.forget(uid)
        self._receiving.pop(uid, None)
        self.node.disk.left.discard(uid)
        self.node.disk.ran.pop(uid, None)

    def _may_break(self, step: str) -> None:
        if step in self.breaks:
            self.breaks.remove(step)
            raise SupervisorError("DATA_NOT_MOVED", f"The {step} failed.")


class FakeTransfersServicer(DataTransfersServicer):
    """Passes calls on."""

    def __init__(self, transfers: FakeTransfers) -> None:
        self._transfers = transfers

    async def OfferData(self, request: pb.OfferDataRequest, context: Any) -> pb.OfferDataResponse:  # noqa: N802
        return await self._transfers.offer(request)

    async def FreezeData(self, request: pb.FreezeDataRequest, context: Any) -> pb.FreezeDataResponse:  # noqa: N802
        return await self._transfers.freeze(request)

    async def ReleaseData(self, request: pb.ReleaseDataRequest, context: Any) -> pb.ReleaseDataResponse:  # noqa: N802
        return await self._transfers.release(request)

    async def ReceiveData(self, request: pb.ReceiveDataRequest, context: Any) -> Told:  # noqa: N802
        return await self._transfers.receive(request)

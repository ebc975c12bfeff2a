"""Brings an app's data from node to node, a step in each pass: the copy, then the write stop with the rest.

Keeps nothing between passes: how far it is, the nodes tell. A step that fails leaves the owner as it was.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from appsupervisor.catalog.v1.app_catalog_pb2 import App, DataMove
from appsupervisor.runtime.v1 import data_transfers_pb2 as pb
from services.control_plane.nodes.link import NodeLink
from services.control_plane.nodes.links import NodeLinks
from services.control_plane.placement.assignment import spec_of
from services.control_plane.placement.data_travel import Travel
from services.control_plane.reconciler import data_moves
from services.control_plane.reconciler.result import Result
from services.control_plane.store.interface import CatalogStore, Transaction
from services.control_plane.store.records import AppRecord
from services.rpc.errors import SupervisorError

log = logging.getLogger("appsupervisor.reconciler")

LOOK_SECONDS = 0.2
"""Between two looks at a copy."""

FIRST_LOOK_SECONDS = 0.05
"""Until the first one: what most apps have is copied by then, and a drain waits for each."""

TELL_MICROSECONDS = 1_000_000
"""Between two writes of how far it is."""

AGAIN_SECONDS = 1.0
"""Before another try of what a node has refused, or could not be asked for."""

TICKET_BYTES = 16

FINAL = frozenset({"METHOD_NOT_FOUND", "DATA_MISSING", "INVALID_FIELD"})
"""Refusals that no retry changes; the first one is an older node's."""

Told = pb.ReceiveDataResponse


class DataTravels:
    """Makes the steps. Lives on one loop; a step may be cut off anywhere."""

    def __init__(
        self,
        store: CatalogStore,
        links: NodeLinks,
        write: Callable[[Callable[[Transaction], Any]], Future[Any]],
    ) -> None:
        self._store = store
        self._links = links
        self._store_write = write

    async def advance(self, app: AppRecord, travel: Travel) -> Result | None:
        """Make one step; None once the data is the target's, and the app to be looked at again at once."""
        source, target = self._heard(travel.source.node), self._heard(travel.target.node)
        if source is None or target is None:
            silent = travel.source.node if source is None else travel.target.node
            return await self._waits(app, travel, Told(), f"{silent} cannot be heard.")
        told = Told()
        try:
            told = await target.receive(_ask(app))
            if told.state == Told.COPYING:
                await self._tell(app, travel, told, "")
                given_up = await self._gives_up(app, travel, "")
                return Result() if given_up else Result(after=LOOK_SECONDS)
            ticket = secrets.token_bytes(TICKET_BYTES)
            offer = await source.offer(_offer(app, ticket))
            if told.state != Told.COPIED or told.session != offer.session:
                why = told.message if told.state == Told.INTERRUPTED else ""
                told = await target.receive(_copy_from(app, travel, source, ticket, offer.session))
                if why:
                    return await self._waits(app, travel, told, why)
                await self._tell(app, travel, told, "")
                return Result(after=FIRST_LOOK_SECONDS)
            await self._tell(app, travel, told, "")
            if told.HasField("code_error"):
                # Found out before the app was stopped: nothing of it was held for this.
                missing = SupervisorError(
                    told.code_error.reason, told.code_error.message, resource=app.name,
                    metadata=dict(told.code_error.metadata),
                )  # fmt: skip
                if await self._call_off(app, travel, missing):
                    return Result()
            return await self._switch(app, travel, source, target, told)
        except SupervisorError as refusal:
            if refusal.reason in FINAL and await self._call_off(app, travel, refusal):
                return Result()
            return await self._waits(app, travel, told, refusal.message)

    async def _switch(
        self, app: AppRecord, travel: Travel, source: NodeLink, target: NodeLink, told: Told
    ) -> Result | None:
        """Stop the app at its source, have the rest received, and store whose the data is then.

        Where anything fails the next pass starts the app at its source again; what is held goes there.
        """
        ticket = secrets.token_bytes(TICKET_BYTES)
        request = pb.FreezeDataRequest(name=app.name, app_uid=app.uid, ticket=ticket)
        try:
            frozen = await source.freeze(request, app.spec.limits.stop_timeout.ToMicroseconds() / 1e6)
            rest = _copy_from(app, travel, source, ticket, told.session)
            rest.freeze_id = frozen.freeze_id
            told = await target.receive(rest, rest=True)
            if told.state != Told.ARRIVED or told.freeze_id != frozen.freeze_id:
                raise SupervisorError("DATA_NOT_MOVED", "The target does not have it all.")
            command = partial(data_moves.arrived, name=app.name, uid=app.uid, travel=travel, told=told)
            if await self._write(command):
                return None
        except SupervisorError as refusal:
            log.warning(
                "data not moved: %s: %s", app.name, refusal.message,
                extra={"action": "travel.not_moved", "app": app.name, "reason": refusal.reason},
            )  # fmt: skip
            # Not tried again by itself: each try is a stop of the app.
            why = SupervisorError("DATA_NOT_MOVED", refusal.message, resource=app.name)
            if not await self._call_off(app, travel, why):
                return Result(failure=refusal)
        return Result(again=True)

    async def let_go(self, app: AppRecord) -> None:
        """Have the source mark its copy as left, and let go what it holds: the target is to start."""
        name = app.status.data_move.source_node
        source = self._heard(name)
        held: float | None = None
        if source is not None:
            try:
                request = pb.ReleaseDataRequest(name=app.name, app_uid=app.uid, moved=True)
                released = await source.release(request)
            except SupervisorError as refusal:
                log.warning("not released: %s: %s", app.name, refusal.message,
                            extra={"action": "travel.not_released", "app": app.name})  # fmt: skip
                return
            if released.HasField("hold_duration"):
                held = released.hold_duration.ToMicroseconds() / 1e6
        elif self._links.get(name) is not None:
            return  # it lets go by itself, soon enough
        command = partial(data_moves.released, name=app.name, uid=app.uid, held_seconds=held)
        await self._write(command)

    async def _waits(self, app: AppRecord, travel: Travel, told: Told, why: str) -> Result:
        """Note what keeps data from going on; call the move off once that has lasted too long."""
        await self._tell(app, travel, told, why)
        if await self._gives_up(app, travel, why):
            return Result()
        return Result(after=AGAIN_SECONDS)

    async def _gives_up(self, app: AppRecord, travel: Travel, why: str) -> bool:
        """Call a move off whose copy has brought nothing for too long; tell whether it is."""
        record = self._store.mirror.apps.get(app.name)
        if record is None or not record.status.data_move.HasField("progress_time"):
            return False
        since = record.status.data_move.progress_time.ToMicroseconds()
        if self._store.now() - since < data_moves.STALL:
            return False
        node, why = travel.target.node, why or "The copy stands still."
        failure = SupervisorError(
            "DATA_NOT_MOVED",
            f"Its data could not be brought to {node}. {why}",
            resource=app.name,
            metadata={"node": node, "why": why},
        )
        return await self._call_off(app, travel, failure)

    async def _call_off(self, app: AppRecord, travel: Travel, why: SupervisorError) -> bool:
        return bool(
            await self._write(
                partial(data_moves.called_off, name=app.name, uid=app.uid, travel=travel, why=why)
            )
        )

    async def _tell(self, app: AppRecord, travel: Travel, told: Told, message: str) -> None:
        """Store how far it is, if that is news."""
        record = self._store.mirror.apps.get(app.name)
        move = record.status.data_move if record is not None else DataMove()
        known = (move.state, move.source_node, move.target_node, move.message)
        news = known != (DataMove.COPYING, travel.source.node, travel.target.node, message)
        age = self._store.now() - move.progress_time.ToMicroseconds()
        more = told.received_bytes > move.copied_bytes or (told.total_bytes and not move.total_bytes)
        if news or (more and (age >= TELL_MICROSECONDS or told.state == Told.COPIED)):
            command = partial(
                data_moves.progressed, name=app.name, uid=app.uid, travel=travel, told=told, message=message
            )
            await self._write(command)

    def _heard(self, node: str) -> NodeLink | None:
        link = self._links.get(node)
        return link if link is not None and link.synced else None

    async def _write(self, command: Callable[[Transaction], Any]) -> Any:
        return await asyncio.wrap_future(self._store_write(command))


def _ask(app: AppRecord) -> pb.ReceiveDataRequest:
    return pb.ReceiveDataRequest(name=app.name, app_uid=app.uid)


def _offer(app: AppRecord, ticket: bytes) -> pb.OfferDataRequest:
    return pb.OfferDataRequest(name=app.name, app_uid=app.uid, ticket=ticket)


def _copy_from(
    app: AppRecord, travel: Travel, source: NodeLink, ticket: bytes, session: str
) -> pb.ReceiveDataRequest:
    spec = spec_of(travel.target)
    starts = app.spec.desired_state != App.STOPPED
    return pb.ReceiveDataRequest(
        name=app.name,
        app_uid=app.uid,
        source_address=source.node.address,
        ticket=ticket,
        session=session,
        # What was to be removed there before this began was told under an epoch below it.
        epoch=max(app.target.epoch, travel.target.epoch),
        entrypoint=spec.entrypoint if starts else "",
        isolation=spec.isolation,
    )

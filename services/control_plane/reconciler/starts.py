"""Has nodes start what a plan says: not too often, with its database, and again under a new epoch if need be.

What a refusal means is decided here: to be tried again, to be shown as the app's failure, or outdated.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance, StartInstanceRequest
from services.control_plane.nodes.link import PASSING, PASSING_SECONDS
from services.control_plane.nodes.links import NodeLinks
from services.control_plane.placement.assignment import Assignment
from services.control_plane.placement.scale import is_several
from services.control_plane.reconciler import transactions
from services.control_plane.reconciler.database_access import DatabaseAccess
from services.control_plane.reconciler.pace import Pace
from services.control_plane.reconciler.plan import Start
from services.control_plane.reconciler.result import Result
from services.control_plane.store.interface import Transaction
from services.control_plane.store.records import AppRecord, PlacementRecord, Version
from services.rpc.errors import SupervisorError

FINAL_REFUSALS = frozenset({"INVALID_FIELD", "ENTRYPOINT_MALFORMED", "ISOLATION_UNSUPPORTED", "DATA_MISSING"})
"""Refusals of a start that no retry changes: they are shown as the app's failure."""

OUTDATED = frozenset({"STALE_EPOCH", "INSTANCE_EXISTS"})
"""Refusals of a start that a new epoch resolves."""


class Starts:
    """Carries out starts; keeps how often each app was started of late. Lives on one loop."""

    def __init__(
        self,
        links: NodeLinks,
        write: Callable[[Callable[[Transaction], Any]], Awaitable[Any]],
        databases: DatabaseAccess,
        pace: Pace,
    ) -> None:
        self._links = links
        self._write = write
        self._databases = databases
        self._pace = pace

    def pause(self, app: AppRecord, placement: PlacementRecord) -> float:
        """Return the seconds until a placement may be started; 0 for now."""
        link = self._links.get(placement.node)
        return self._pace.wait(*_paced(app, placement), link.node.incarnation) if link is not None else 0.0

    async def carry_out(self, app: AppRecord, assigned: Assignment, starts: Sequence[Start]) -> Result:
        """Carry out starts; return the last failure, and when to look at what came of them."""
        again, after, failure = False, 0.0, None
        for start in starts:
            try:
                pause = await self._start(app, assigned, start)
                again, after = again or not pause, max(after, pause)
            except SupervisorError as refusal:
                failure = refusal
        return Result(again, after, failure)

    async def _start(self, app: AppRecord, assigned: Assignment, start: Start) -> float:
        """Have an instance started; return in how many seconds its node will have told more of it, 0 if it
        has told all."""
        link = self._links.get(start.placement.node)
        if link is None:
            return PASSING_SECONDS
        try:
            if app.database_server:
                await self._databases.grant(app, assigned, start)
            instance = await link.start(start.request)
        except SupervisorError as refusal:
            if refusal.reason in OUTDATED:
                self._pace.started(*_paced(app, start.placement), link.node.incarnation)
                await self._renew(app, start, refusal)
                return PASSING_SECONDS
            if refusal.reason not in FINAL_REFUSALS:
                link.hinder(app.name, refusal.reason, refusal.message)
                raise
            link.refuse(app.name, _refused(start.request, refusal))
            return PASSING_SECONDS
        self._pace.started(*_paced(app, start.placement), link.node.incarnation)
        link.accepted(app.name, instance)
        return link.passing_seconds if instance.state in PASSING else 0.0

    async def _renew(self, app: AppRecord, start: Start, refusal: SupervisorError) -> None:
        """Move a placement above the epoch that its node knows; the change has the app looked at again."""
        told = refusal.metadata.get("known_epoch", "")
        known = max(start.placement.epoch, int(told) if told.isdecimal() else 0)
        renew = partial(
            transactions.renewed, name=app.name, uid=app.uid, placement=start.placement, known=known
        )
        renewed: tuple[AppRecord, PlacementRecord] | None = await self._write(renew)
        if renewed is not None:
            self._pace.renewed(*_paced(*renewed))


def _paced(app: AppRecord, placement: PlacementRecord) -> tuple[str, Version]:
    """Return under which name a placement's starts are paced, and what makes another row of them."""
    if not is_several(app):
        return app.name, app.target
    return f"{app.name} replica {placement.replica}", placement.version


def _refused(start: StartInstanceRequest, refusal: SupervisorError) -> Instance:
    instance = Instance(
        name=start.spec.name,
        app_uid=start.spec.app_uid,
        generation=start.spec.generation,
        epoch=start.spec.epoch,
        state=Instance.FAILED,
    )
    instance.last_error.reason = refusal.reason
    instance.last_error.message = refusal.message
    instance.last_error.occur_time.GetCurrentTime()
    return instance

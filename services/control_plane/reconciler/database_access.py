"""Gives an app's start its own database, and takes it from what has ended.

What that takes on the server is `databases.app_databases`'; the app's condition tells what came of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from appsupervisor.catalog.v1.app_catalog_pb2 import DeleteAppRequest
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition
from services.control_plane.placement.assignment import Assignment
from services.control_plane.reconciler import transactions
from services.control_plane.reconciler.plan import Start
from services.control_plane.rules.conditions import DATABASE_PROVIDED, DATABASE_READY, get_condition
from services.control_plane.store.interface import Transaction
from services.control_plane.store.records import AppRecord, PlacementRecord
from services.rpc.errors import SupervisorError

if TYPE_CHECKING:
    from services.control_plane.databases.app_databases import AppDatabases


class DatabaseAccess:
    """Grants and revokes; keeps nothing of its own. Only for apps with a database."""

    def __init__(
        self,
        databases: Callable[[], AppDatabases],
        write: Callable[[Callable[[Transaction], Any]], Awaitable[Any]],
    ) -> None:
        self._databases = databases
        self._write = write

    async def grant(self, app: AppRecord, assigned: Assignment, start: Start) -> None:
        """Put the app's own database, which no other epoch can write then, into a start.

        Raises SupervisorError, also told by the app's condition.
        """
        provided = get_condition(app.status.conditions, DATABASE_PROVIDED)
        # What was given up with its node may run there still, and must not write any more.
        keep = [it.epoch for it in assigned.staying]
        told = partial(transactions.database_told, name=app.name, uid=app.uid)
        try:
            database = await self._databases().prepare(
                app, start.placement.epoch, keep, must_exist=_is_met(provided)
            )
        except SupervisorError as failure:
            await self._write(partial(told, failure=failure))
            raise
        if not _is_met(provided) or not _is_met(get_condition(app.status.conditions, DATABASE_READY)):
            await self._write(partial(told, failure=None, made=True))
        start.request.spec.database_url = database.url
        start.request.spec.database_pool_size = database.pool

    async def revoke(
        self, app: AppRecord, assigned: Assignment, over: list[PlacementRecord], *, ends: bool
    ) -> None:
        """Shut out logins whose instances are gone; drop or keep what was an app's that `ends`.

        Raises SupervisorError, also told by the app's condition: then nothing is forgotten yet.
        """
        keep = [it.epoch for it in assigned.staying if it not in over]
        told = partial(transactions.database_told, name=app.name, uid=app.uid)
        provided = get_condition(app.status.conditions, DATABASE_PROVIDED)
        if not ends and (provided is None or self._databases().is_settled(app, keep)):
            return
        try:
            if ends:
                if left := app.status.database_move.leftover_server:
                    await self._databases().end(app, drop=True, at=left)
                await self._databases().end(app, drop=app.deleting == DeleteAppRequest.DROP)
                return
            await self._databases().settle(app, keep)
        except SupervisorError as failure:
            await self._write(partial(told, failure=failure))
            raise
        if not _is_met(get_condition(app.status.conditions, DATABASE_READY)):
            await self._write(partial(told, failure=None))


def _is_met(condition: Condition | None) -> bool:
    return condition is not None and condition.status == Condition.MET

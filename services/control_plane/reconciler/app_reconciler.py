"""Looks at one app once: assigns, observes, stores what came of both, acts. That is one pass.

It looks at the newest of the catalog and of the nodes, and may be cut off anywhere: the next pass begins
again. Which app has its pass when, and what failed again when, is the controller's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from appsupervisor.catalog.v1.app_catalog_pb2 import DataMove
from services.control_plane.nodes.links import NodeLinks
from services.control_plane.placement.assignment import Assignment, assign
from services.control_plane.placement.data_travel import Travel, travel_of
from services.control_plane.placement.snapshot import Snapshot
from services.control_plane.reconciler import transactions
from services.control_plane.reconciler.data_reconciler import DataReconciler
from services.control_plane.reconciler.data_travels import DataTravels
from services.control_plane.reconciler.database_access import DatabaseAccess
from services.control_plane.reconciler.database_travels import DatabaseTravels, MoveSettings
from services.control_plane.reconciler.former_homes import FormerHomes
from services.control_plane.reconciler.homes import present_home
from services.control_plane.reconciler.observation import observe
from services.control_plane.reconciler.pace import Pace
from services.control_plane.reconciler.plan import plan
from services.control_plane.reconciler.result import Result
from services.control_plane.reconciler.room import Room
from services.control_plane.reconciler.settling import are_same, awaits_start, leaves_nothing
from services.control_plane.reconciler.snapshots import Snapshots
from services.control_plane.reconciler.starts import Starts
from services.control_plane.reconciler.stops import Stops
from services.control_plane.store.interface import CatalogStore, Transaction
from services.control_plane.store.records import AppRecord
from services.rpc.errors import SupervisorError

if TYPE_CHECKING:
    from services.control_plane.databases.app_databases import AppDatabases

T = TypeVar("T")
Command = Callable[[Transaction], Any]


class AppReconciler:
    """Makes passes over apps; keeps only what one pass must know of another. Lives on one loop."""

    def __init__(
        self,
        store: CatalogStore,
        links: NodeLinks,
        write: Callable[[Command], Future[Any]],
        data: DataReconciler,
        clock: Callable[[], float],
        databases: Callable[[], AppDatabases],
        moves: MoveSettings,
    ) -> None:
        """`write` stores what a pass decides; `clock` gives seconds, monotonic; `databases` makes apps' own.

        It is called for apps that have one alone.
        """
        self._store = store
        self._mirror = store.mirror
        self._store_write = write
        self._data = data
        self._snapshots = Snapshots(store.mirror, links)
        self.former_homes = FormerHomes(clock)
        """Also told by the controller what the nodes forward."""
        self._stops = Stops(store.mirror, links, self.former_homes, Pace(clock))
        self._database_access = DatabaseAccess(databases, self._write)
        self._starts = Starts(links, self._write, self._database_access, Pace(clock))
        self._travels = DataTravels(store, links, write)
        self._database_travels = DatabaseTravels(store, links, write, databases, moves)

    def room(self) -> Room:
        """Return the room that there is now for apps that wait for a node."""
        return Room(self._mirror, self._snapshots)

    async def close(self) -> None:
        """End what runs in the background."""
        await self._database_travels.close()

    async def reconcile(self, app: str) -> Result:
        """Make one pass over an app, which may not exist any more."""
        try:
            record = self._mirror.apps.get(app)
            result = await self._look_at(record) if record is not None else Result()
            await self._stops.stop_orphans(app)
        except SupervisorError as failure:
            return Result(failure=failure)
        return result

    async def _look_at(self, app: AppRecord) -> Result:
        """See how an app is, decide what is to become of it, store that, and act on it."""
        if app.status.retained_data and await self._data.take_over(app):
            return Result()  # what came of it is stored, and has the app looked at again
        placements = self._mirror.placements_of(app.name)
        seen = self._snapshots.of(app, placements)
        if placements and not any(self._snapshots.is_clear(it.node) for it in placements):
            return Result()  # nothing can be said or done yet
        now = self._store.now()
        assigned = assign(app, placements, seen, now)
        stays = are_same(assigned.placements, placements)
        if stays and awaits_start(app, assigned, seen):
            # Apps are to serve first of all: what came of the start is stored in the pass that this asks for.
            # So all apps of a returning node are started before any of it, and none is told as gone.
            result = await self._act(app, assigned, seen)
            return result if result.failure or result.after else Result(again=True)
        observed = observe(app, assigned, seen, now)
        # A move ends also when its old node falls silent.
        moving = self._mirror.open_operations(app.name, ("move",))
        if observed is app and stays and not moving:
            return await self._act(app, assigned, seen)
        stored = await self._decide(transactions.Foreseen(app, placements, assigned, observed), seen)
        if stored is None:
            return Result()
        # What has just been placed on a node is started there at once, not by the pass after this.
        seen = self._snapshots.beside(seen, stored.app, stored.assigned.placements)
        result = await self._act(stored.app, stored.assigned, seen)
        if stored.as_foreseen and not moving and leaves_nothing(result, app, placements, assigned):
            return replace(result, settled=stored.app.revision)
        return result

    async def _decide(self, foreseen: transactions.Foreseen, seen: Snapshot) -> transactions.Decided | None:
        """Store what was worked out, anew if something has changed since; None of an app that is gone."""
        app = foreseen.app
        new = {it.node for it in foreseen.assigned.placements} - {it.node for it in foreseen.placements}
        with self._snapshots.placing(new):
            return await self._write(
                partial(transactions.decided, name=app.name, uid=app.uid, seen=seen, foreseen=foreseen)
            )

    async def _act(self, app: AppRecord, assigned: Assignment, seen: Snapshot) -> Result:
        """Have stopped and started what is to be, and store what is over; bring its data a step further."""
        todo = plan(app, assigned, seen, self._store.now())
        if app.deleting and (pause := self._stops.pause(app)):
            return Result(after=pause)
        pauses = [self._starts.pause(app, it.placement) for it in todo.starts]
        starts = [it for it, pause in zip(todo.starts, pauses, strict=True) if not pause]
        if pauses and not starts:  # nor is anything stopped: what takes the app away would run then
            return Result(after=min(pauses))
        if self.former_homes.knows(app.name) and (home := present_home(app, assigned, seen)) is not None:
            # Before anything ends: what forwards to there would be forwarded twice.
            await self._stops.redirect(app, assigned, home)
        if app.database_server:
            await self._database_travels.leave(app)
            todo = await self._database_travels.hold(app, todo)
        over, failure = await self._stops.carry_out(app, todo.stop)
        # A stop that fails holds up no start, nor one start another: an app is to serve first of all.
        started = await self._starts.carry_out(app, assigned, starts)
        failure = started.failure or failure
        if app.database_server:
            ends = todo.remove or (app.deleting and len(over) == len(assigned.placements))
            await self._database_access.revoke(app, assigned, over, ends=bool(ends))
            if not app.deleting:
                failure = await self._database_travels.advance(app) or failure
        if over or todo.remove:
            await self._write(
                partial(transactions.ended, name=app.name, uid=app.uid, placements=over, policy=app.deleting)
            )
        travel = None if app.deleting else travel_of(assigned.placements)
        if travel is not None and not todo.starts and failure is None:
            brought = await self._bring_data(app, travel)
            return replace(brought, again=True) if over or started.again else brought
        if travel is None and failure is None and app.status.data_move.state == DataMove.ARRIVED:
            await self._stops.redirect_source(app, assigned)
            await self._travels.let_go(app)
        after = min(filter(None, [todo.after, started.after, *pauses]), default=0.0)
        # That a placement is over changes no app by itself, and so asks for no pass.
        began = bool(started.after) and not over
        return Result(failure=failure, again=bool(over) or started.again, after=after, began=began)

    async def _bring_data(self, app: AppRecord, travel: Travel) -> Result:
        """Make a step of the way that the app's data goes; once it is there the app is started at once."""
        result = await self._travels.advance(app, travel)
        if result is not None:
            return result
        moved = self._mirror.apps.get(app.name)
        return await self._look_at(moved) if moved is not None else Result()

    async def _write(self, command: Callable[[Transaction], T]) -> T:
        return await asyncio.wrap_future(self._store_write(command))

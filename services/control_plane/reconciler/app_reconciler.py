"""Looks at one app once: assigns, observes, stores what came of both, acts. That is one pass.

It looks at the newest of the catalog and of the nodes, and may be cut off anywhere: the next pass begins
again. Which app has its pass when, and what failed again when, is the controller's.
"""

from __future__ import annotations

import asyncio
import logging
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from appsupervisor.catalog.v1.app_catalog_pb2 import App, DataMove, DeleteAppRequest
from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1.runtime_environment_pb2 import (
    Condition,
    Instance,
    RuntimeStatus,
    StartInstanceRequest,
    StopInstanceRequest,
)
from services.control_plane.catalog.candidates import neighbours_of
from services.control_plane.nodes.link import PASSING, PASSING_SECONDS
from services.control_plane.nodes.links import NodeLinks
from services.control_plane.operations.database_moves import is_stopped_for
from services.control_plane.placement.assignment import ENDING, Assignment, assign
from services.control_plane.placement.choice import Candidates
from services.control_plane.placement.data_travel import Travel, travel_of
from services.control_plane.placement.scale import is_several, wanted_replicas
from services.control_plane.placement.snapshot import NodeView, Sight, Snapshot
from services.control_plane.reconciler import transactions
from services.control_plane.reconciler.data_reconciler import DataReconciler
from services.control_plane.reconciler.data_travels import DataTravels
from services.control_plane.reconciler.database_travels import DatabaseTravels, MoveSettings
from services.control_plane.reconciler.former_homes import FormerHomes
from services.control_plane.reconciler.observation import observe
from services.control_plane.reconciler.pace import Pace
from services.control_plane.reconciler.plan import Plan, Start, new_home, plan, present_home, stop_orphan
from services.control_plane.reconciler.result import Result
from services.control_plane.rules.conditions import DATABASE_PROVIDED, DATABASE_READY, get_condition
from services.control_plane.store.interface import CatalogStore, Transaction
from services.control_plane.store.records import AppRecord, PlacementRecord, Role, Version
from services.rpc.errors import SupervisorError

if TYPE_CHECKING:
    from services.control_plane.databases.app_databases import AppDatabases

log = logging.getLogger("appsupervisor.reconciler")

FINAL_REFUSALS = frozenset({"INVALID_FIELD", "ENTRYPOINT_MALFORMED", "ISOLATION_UNSUPPORTED", "DATA_MISSING"})
"""Refusals of a start that no retry changes: they are shown as the app's failure."""

OUTDATED = frozenset({"STALE_EPOCH", "INSTANCE_EXISTS"})
"""Refusals of a start that a new epoch resolves."""

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
        self._links = links
        self._store_write = write
        self._data = data
        self._pace = Pace(clock)
        self._databases = databases
        self._database_travels = DatabaseTravels(store, links, write, databases, moves)
        self._travels = DataTravels(store, links, write)
        self._placing: Counter[str] = Counter()
        self._candidates = Candidates()
        self._former_homes = FormerHomes(clock)

    async def close(self) -> None:
        """End what runs in the background."""
        await self._database_travels.close()

    async def reconcile(self, app: str) -> Result:
        """Make one pass over an app, which may not exist any more."""
        try:
            record = self._mirror.apps.get(app)
            result = await self._look_at(record) if record is not None else Result()
            await self._stop_orphans(app)
        except SupervisorError as failure:
            return Result(failure=failure)
        return result

    async def _look_at(self, app: AppRecord) -> Result:
        if app.status.retained_data and await self._data.take_over(app):
            return Result()  # what came of it is stored, and has the app looked at again
        placements = self._mirror.placements_of(app.name)
        seen = self._see(app, placements)
        if placements and not any(self._is_clear(it.node) for it in placements):
            return Result()  # nothing can be said or done yet
        now = self._store.now()
        assigned = assign(app, placements, seen, now)
        stays = _are_same(assigned.placements, placements)
        if stays and _awaits_start(app, assigned, seen):
            # Apps are to serve first of all: what came of the start is stored in the pass that this asks for.
            # So all apps of a returning node are started before any of it, and none is told as gone.
            result = await self._act(app, assigned, seen)
            return result if result.failure or result.after else Result(again=True)
        observed = observe(app, assigned, seen, now)
        moving = self._mirror.open_operations(
            app.name, ("move",)
        )  # it ends also when its old node falls silent
        if observed is not app or not stays or moving:
            foreseen = transactions.Foreseen(app, placements, assigned, observed)
            stored = await self._decide(foreseen, seen)
            if stored is None:
                return Result()
            result = await self._act(stored.app, stored.assigned, seen)
            if stored.as_foreseen and not moving and not result.again and settles(app, placements, assigned):
                return replace(result, settled=stored.app.revision)
            return result
        return await self._act(app, assigned, seen)

    def _is_clear(self, node: str) -> bool:
        """Tell whether something can be said of what is on a node."""
        return self._links.is_clear(node) or self._mirror.nodes.get(node) is None

    def _see(self, app: AppRecord, placements: tuple[PlacementRecord, ...]) -> Snapshot:
        nodes = {}
        homes = {placement.node for placement in placements}
        gone = frozenset(name for name in homes if self._mirror.nodes.get(name) is None)
        for name in homes - gone:
            heard = self._links.is_heard(name)
            told = {} if heard else {it.name: it for it in app.status.instances if it.node == name}
            view = self._links.view(name, app.name, told)
            if view is not None:
                nodes[name] = self._with_loss(view)
        lost = {name for name, view in nodes.items() if view.sight is Sight.LOST}
        over = ENDING if is_several(app) else (Role.LOST,)
        staying = {it.replica for it in placements if it.role not in over and it.node not in gone | lost}
        if len(staying) >= wanted_replicas(app) or app.deleting or app.spec.desired_state == App.STOPPED:
            return Snapshot(nodes, gone=gone)
        environment = self._mirror.environments.get(app.spec.environment)
        links = self._links.of(app.spec.environment)
        candidates = self._candidates.of(
            ((link.name, link.node, link.synced) for link in links),
            self._mirror.loads,
            neighbours_of(self._mirror, app.spec, app.name),
            +self._placing,
        )
        return Snapshot(
            nodes,
            tuple(candidates),
            gone,
            environment is not None and environment.environment.cordoned,
        )

    def _with_loss(self, view: NodeView) -> NodeView:
        """Tell a lost node from one that is only silent: the catalog says which."""
        record = self._mirror.nodes.get(view.node.name)
        lost = record is not None and record.node.lease_state == Node.EXPIRED
        return replace(view, sight=Sight.LOST) if lost and view.sight is Sight.SILENT else view

    async def _decide(self, foreseen: transactions.Foreseen, seen: Snapshot) -> transactions.Decided | None:
        app = foreseen.app
        new = {it.node for it in foreseen.assigned.placements} - {it.node for it in foreseen.placements}
        # Until it is stored the mirror doesn't count it; others that are placed meanwhile must.
        self._placing.update(new)
        try:
            return await self._write(
                partial(transactions.decided, name=app.name, uid=app.uid, seen=seen, foreseen=foreseen)
            )
        finally:
            self._placing.subtract(new)

    async def _act(self, app: AppRecord, assigned: Assignment, seen: Snapshot) -> Result:
        todo = plan(app, assigned, seen, self._store.now())
        if app.deleting and (pause := self._pace.wait(_removal(app), app.target, "")):
            return Result(after=pause)
        pauses = [self._pause(app, it.placement) for it in todo.starts]
        starts = [it for it, pause in zip(todo.starts, pauses, strict=True) if not pause]
        if pauses and not starts:  # nor is anything stopped: what takes the app away would run then
            return Result(after=min(pauses))
        if self._former_homes.knows(app.name) and (home := present_home(app, assigned, seen)) is not None:
            # Before anything ends: what forwards to there would be forwarded twice.
            await self._tell_former_homes(app, home)
        if app.database_server:
            await self._database_travels.leave(app)
            todo = await self._database_travels.hold(app, todo)
        over, failure = await self._stop_all(app, todo)
        # A stop that fails holds up no start, nor one start another: an app is to serve first of all.
        started = await self._start_all(app, assigned, starts)
        failure = started.failure or failure
        if app.database_server:
            ends = todo.remove or (app.deleting and len(over) == len(assigned.placements))
            await self._guard_database(app, assigned, over, ends=bool(ends))
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
            await self._leave(app, assigned)
        after = min(filter(None, [todo.after, started.after, *pauses]), default=0.0)
        # That a placement is over changes no app by itself, and so asks for no pass.
        return Result(failure=failure, again=bool(over) or started.again, after=after)

    async def _leave(self, app: AppRecord, assigned: Assignment) -> None:
        """Have the node that an app's data has left forward what it holds: it is started elsewhere."""
        move, wanted = app.status.data_move, assigned.wanted
        source, target = self._links.get(move.source_node), self._links.get(move.target_node)
        left = (it for it in assigned.placements if it.node == move.source_node and not it.has_data)
        before = next(left, None)
        runs = wanted is not None and wanted.node == move.target_node
        if runs and before is not None and source is not None and source.synced and target is not None:
            stop = StopInstanceRequest(name=before.instance, epoch=app.target.epoch, app_uid=app.uid)
            home = new_home(app, target.node)
            if home is not None:
                stop.new_home.CopyFrom(home)
                await self._tell_former_homes(app, home)
                await source.stop(stop)
                self._former_homes.told(app.name, source.node.name, stop)
        await self._travels.let_go(app)

    async def _bring_data(self, app: AppRecord, travel: Travel) -> Result:
        """Make a step of the way that the app's data goes; once it is there the app is started at once."""
        result = await self._travels.advance(app, travel)
        if result is not None:
            return result
        moved = self._mirror.apps.get(app.name)
        return await self._look_at(moved) if moved is not None else Result()

    async def _stop_all(
        self, app: AppRecord, todo: Plan
    ) -> tuple[list[PlacementRecord], SupervisorError | None]:
        """Carry out a plan's stops; return the placements that are over, and the last failure."""
        over: list[PlacementRecord] = []
        failure: SupervisorError | None = None
        for stop in todo.stop:
            try:
                gone = await self._stop(app.name, stop.node, stop.request)
            except SupervisorError as refusal:
                failure = refusal
                if app.deleting:
                    self._links.hinder(stop.node, app.name, refusal)
                    self._pace.started(_removal(app), app.target, "")
                continue
            if stop.request.HasField("new_home"):
                self._former_homes.told(app.name, stop.node, stop.request)
            if gone and stop.ends is not None:
                over.append(stop.ends)
        return over, failure

    def learn(self, node: str, status: RuntimeStatus) -> list[str]:
        """Note which apps a node forwards, told by a leader before; return those to be looked at for it."""
        return self._former_homes.learn(node, status.forwarding)

    async def _tell_former_homes(self, app: AppRecord, home: StopInstanceRequest.NewHome) -> None:
        """Have nodes that forward an app's requests forward them to where it is now, if they can be told."""
        for node, request in self._former_homes.to_tell(app.name, app.uid, app.target.epoch, home):
            link = self._links.get(node)
            if link is None or not link.synced:
                continue
            try:
                await link.stop(request)
            except SupervisorError as refusal:
                log.info(
                    "not told where %s is: %s", app.name, node,
                    extra={"action": "node.not_redirected", "app": app.name, "node": node,
                           "reason": refusal.reason},
                )  # fmt: skip
            else:
                self._former_homes.told(app.name, node, request)

    async def _stop(self, app: str, node: str, request: StopInstanceRequest) -> bool:
        """Stop an instance; tell whether it is gone, and its data if that was to go."""
        link = self._links.get(node)
        if link is None:
            return False
        instance = await link.stop(request)
        if instance is None:
            link.forget(app, request.name)
            return True
        if instance.last_error.reason == "DATA_NOT_REMOVED":
            raise SupervisorError("DATA_NOT_REMOVED", instance.last_error.message, resource=app)
        return False

    async def _stop_orphans(self, app: str) -> None:
        """Stop the app's instances on nodes that it has no placement on; of a removed app, all of them.

        An app that this catalog never knew is left alone: the catalog may be the wrong one, or an old copy.
        """
        if self._mirror.apps.get(app) is None and not self._mirror.apps.was_deleted(app):
            return
        placements = self._mirror.placements_of(app)
        placed = {placement.node for placement in placements}
        for link in self._links.hosting(app):
            if link.node.name in placed or not link.synced:
                continue
            for instance in list(link.instances(app).values()):
                if instance.state == Instance.STOPPING:
                    continue
                log.warning(
                    "orphan stopped: %s on %s", instance.name, link.node.name,
                    extra={"action": "instance.orphan_stopped", "instance": instance.name,
                           "node": link.node.name},
                )  # fmt: skip
                home = self._home_of(instance, placements)
                await self._stop(app, link.node.name, stop_orphan(instance, home))

    def _home_of(
        self, instance: Instance, placements: tuple[PlacementRecord, ...]
    ) -> StopInstanceRequest.NewHome | None:
        """Return where the app of an instance that is nobody's is now, if it is anywhere."""
        app = self._mirror.apps.get(instance.name.rpartition("/instances/")[0])
        current = next((it for it in placements if it.role is Role.CURRENT), None)
        link = self._links.get(current.node) if current is not None else None
        if app is None or link is None or app.uid != instance.app_uid or app.deleting:
            return None
        return new_home(app, link.node)

    def _pause(self, app: AppRecord, placement: PlacementRecord) -> float:
        link = self._links.get(placement.node)
        return self._pace.wait(*_paced(app, placement), link.node.incarnation) if link is not None else 0.0

    async def _guard_database(
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

    async def _provide(self, app: AppRecord, assigned: Assignment, start: Start) -> None:
        """Put the app's own database, which no other epoch can write then, into a start."""
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
        if not _is_met(get_condition(app.status.conditions, DATABASE_READY)):
            await self._write(partial(told, failure=None))
        start.request.spec.database_url = database.url
        start.request.spec.database_pool_size = database.pool

    async def _start_all(self, app: AppRecord, assigned: Assignment, starts: Sequence[Start]) -> Result:
        """Carry out starts; return the last failure, and when to look at what came of them."""
        again, after, failure = False, 0.0, None
        for start in starts:
            try:
                if await self._start(app, assigned, start):
                    after = PASSING_SECONDS
                else:
                    again = True
            except SupervisorError as refusal:
                failure = refusal
        return Result(again, after, failure)

    async def _start(self, app: AppRecord, assigned: Assignment, start: Start) -> bool:
        """Have an instance started; tell whether its node will tell more of it in a moment."""
        link = self._links.get(start.placement.node)
        if link is None:
            return True
        try:
            if app.database_server:
                await self._provide(app, assigned, start)
            instance = await link.start(start.request)
        except SupervisorError as refusal:
            if refusal.reason in OUTDATED:
                self._pace.started(*_paced(app, start.placement), link.node.incarnation)
                await self._renew(app, start, refusal)
                return True
            if refusal.reason not in FINAL_REFUSALS:
                link.hinder(app.name, refusal.reason, refusal.message)
                raise
            link.refuse(app.name, _refused(start.request, refusal))
            return True
        self._pace.started(*_paced(app, start.placement), link.node.incarnation)
        link.accepted(app.name, instance)
        return instance.state in PASSING

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

    async def _write(self, command: Callable[[Transaction], T]) -> T:
        return await asyncio.wrap_future(self._store_write(command))


def _paced(app: AppRecord, placement: PlacementRecord) -> tuple[str, Version]:
    """Return under which name a placement's starts are paced, and what makes another row of them."""
    if not is_several(app):
        return app.name, app.target
    return f"{app.name} replica {placement.replica}", placement.version


def _are_same(placements: Sequence[PlacementRecord], others: Sequence[PlacementRecord]) -> bool:
    """Tell whether two lists have the same placements, in whatever order."""
    # Nearly always each is the very same record, which is told without a look at what is in it.
    if len(placements) == len(others) and all(map(operator.is_, placements, others)):
        return True
    return set(placements) == set(others)


def settles(app: AppRecord, placements: Sequence[PlacementRecord], assigned: Assignment) -> bool:
    """Tell whether another look at what has been decided would find the same, as long as nothing is told.

    So it does where no placement has changed, or what is wanted serves and nothing comes in.
    """
    if app.deleting or app.spec.desired_state == App.STOPPED or is_several(app) or app.database_server:
        return False
    if assigned.target is not None or assigned.failed != app.failed:
        return False
    current = assigned.current
    if current is None or current.version != app.target or assigned.incoming is not None:
        return _are_same(assigned.placements, placements)
    return any(it.name == current.name and it.role not in ENDING for it in placements)


def _awaits_start(app: AppRecord, assigned: Assignment, seen: Snapshot) -> bool:
    """Tell whether an app that is to run has nothing on its node, for all that is known yet."""
    wanted = assigned.wanted
    if is_several(app):
        return False  # one of them may be in its place already
    if wanted is None or app.deleting or app.spec.desired_state == App.STOPPED or assigned.failed is not None:
        return False
    if is_stopped_for(app):
        return False
    view = seen.heard(wanted.node)
    return view is not None and not view.instances and view.hindrance is None


def _is_met(condition: Condition | None) -> bool:
    return condition is not None and condition.status == Condition.MET


def _removal(app: AppRecord) -> str:
    """Return the name under which the tries to remove an app's data are paced: each is news of its own."""
    return f"{app.name} removal"


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

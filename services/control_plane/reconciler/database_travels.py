"""Brings an app's database to another server: looks whether it can, stops the app, copies, and begins there.

Keeps between passes only what runs in the background; how far it is, is stored. Cut off anywhere, the next
leader copies anew, and until what was copied is stored to be the app's the source has it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from appsupervisor.catalog.v1.app_catalog_pb2 import App, DatabaseMove
from appsupervisor.runtime.v1 import data_transfers_pb2 as transfers
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance
from services.control_plane.nodes.links import NodeLinks
from services.control_plane.operations.database_moves import UNDER_WAY, is_stopped_for, is_unfinished
from services.control_plane.placement.snapshot import READY
from services.control_plane.reconciler import database_moves
from services.control_plane.reconciler.database_moves import Way
from services.control_plane.reconciler.plan import Plan
from services.control_plane.store.interface import CatalogStore, Transaction
from services.control_plane.store.records import AppRecord, Role
from services.rpc.background import background
from services.rpc.errors import SupervisorError

if TYPE_CHECKING:
    from services.control_plane.databases.app_databases import AppDatabases

log = logging.getLogger("appsupervisor.reconciler")

TELL_SECONDS = 1.0
"""Between two writes of how far a copy is."""

TICKET_BYTES = 16

STOP_GRACE = 5_000_000
"""Beyond an app's own limit for its stop, µs: then its sessions are ended all the same."""


@dataclass(frozen=True, slots=True)
class MoveSettings:
    """How databases are moved."""

    bin_dir: str = ""
    """Where pg_dump and pg_restore are; empty for the usual places."""
    stop_seconds: float = 600.0
    """The longest write stop; then the app begins again where it was."""


class DatabaseTravels:
    """Makes the steps. Lives on one loop."""

    def __init__(
        self,
        store: CatalogStore,
        links: NodeLinks,
        write: Callable[[Callable[[Transaction], Any]], Future[Any]],
        databases: Callable[[], AppDatabases],
        settings: MoveSettings,
    ) -> None:
        self._store = store
        self._links = links
        self._store_write = write
        self._databases = databases
        self._settings = settings
        self._tasks: dict[str, tuple[Way, asyncio.Task[None]]] = {}
        """By an app's uid, what is under way for it."""

    async def hold(self, app: AppRecord, todo: Plan) -> Plan:
        """Stop an app whose database is to be copied, and have its nodes hold its requests; return the rest.

        A node that cannot hold them stops it as any other app.
        """
        if not is_stopped_for(app) or app.deleting:
            return todo
        held = set()
        seconds = app.spec.limits.stop_timeout.ToMicroseconds() / 1e6
        for node in dict.fromkeys(it.node for it in todo.stop):
            link = self._links.get(node)
            if link is None or not link.synced:
                continue
            states = {it.state for it in link.instances(app.name).values() if it.app_uid == app.uid}
            if not states & READY or Instance.STOPPING in states:
                continue
            ticket = secrets.token_bytes(TICKET_BYTES)
            try:
                offer = transfers.OfferDataRequest(name=app.name, app_uid=app.uid, ticket=ticket)
                await link.offer(offer)
                freeze = transfers.FreezeDataRequest(name=app.name, app_uid=app.uid, ticket=ticket)
                await link.freeze(freeze, seconds)
            except SupervisorError as refusal:
                log.info("requests not held: %s: %s", app.name, refusal.message,
                         extra={"action": "databases.not_held", "app": app.name})  # fmt: skip
            else:
                held.add(node)
        return replace(todo, stop=tuple(it for it in todo.stop if it.node not in held)) if held else todo

    async def leave(self, app: AppRecord) -> None:
        """End what is under way for an app that is in another stage by now, or is being deleted."""
        known = self._tasks.get(app.uid)
        if known is not None and (app.deleting or known[0] != Way.of(app)):
            known[1].cancel()
            await asyncio.gather(known[1], return_exceptions=True)
            self._tasks.pop(app.uid, None)

    async def advance(self, app: AppRecord) -> SupervisorError | None:
        """Make a step, and return what is worth another try."""
        if not is_unfinished(app.status):
            return None
        way, move = Way.of(app), app.status.database_move
        if way.state in UNDER_WAY:
            if app.uid not in self._tasks and not self._is_ending(app, way):
                work = self._check(app, way) if way.state == DatabaseMove.CHECKING else self._copy(app, way)
                self._spawn(app, way, work)
            return None
        if way.state == DatabaseMove.ARRIVED:
            if self._has_begun(app):
                await self._write(partial(database_moves.confirmed, name=app.name, uid=app.uid, way=way))
            return None
        return await self.drop(app, move.leftover_server)

    async def drop(self, app: AppRecord, server: str) -> SupervisorError | None:
        """Drop what a move has left on a server; return why it is there still."""
        try:
            await self._databases().end(app, drop=True, at=server)
        except SupervisorError as failure:
            told = partial(database_moves.not_dropped, server=server, why=failure)
            await self._write(partial(told, name=app.name, uid=app.uid))
            return failure
        await self._write(partial(database_moves.dropped, name=app.name, uid=app.uid, server=server))
        return None

    async def close(self) -> None:
        """End what is under way, in the middle of it: who leads next begins it again."""
        tasks = [task for _, task in self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _is_ending(self, app: AppRecord, way: Way) -> bool:
        """Tell whether an app that is to be stopped is left the time that it has for that."""
        limit = app.spec.limits.stop_timeout.ToMicroseconds() + STOP_GRACE
        if way.state != DatabaseMove.COPYING or self._store.now() - way.stop_time > limit:
            return False
        return any(
            it.app_uid == app.uid
            for link in self._links.hosting(app.name)
            for it in link.instances(app.name).values()
        )

    def _has_begun(self, app: AppRecord) -> bool:
        """Tell whether an app serves from where its database is now, or is not to run."""
        if app.spec.desired_state == App.STOPPED:
            return bool(app.status.state == Instance.STOPPED)
        placements = self._store.mirror.placements_of(app.name)
        # Begun under epochs of its own when its database arrived: what ran before is none of them.
        current = {it.instance for it in placements if it.role is Role.CURRENT}
        return any(it.name in current and it.state in READY for it in app.status.instances)

    def _spawn(self, app: AppRecord, way: Way, work: Coroutine[Any, Any, None]) -> None:
        task = background(self._guarded(app, way, work), f"move the database of {app.name}")
        self._tasks[app.uid] = way, task

    async def _guarded(self, app: AppRecord, way: Way, work: Coroutine[Any, Any, None]) -> None:
        """Call a move off that fails, whatever fails."""
        try:
            await work
        except SupervisorError as failure:
            await self._call_off(app, way, failure)
        except Exception:
            log.exception("database not moved: %s", app.name, extra={"action": "databases.move_fault"})
            text = "A fault of ours, told in the control plane's log."
            await self._call_off(
                app, way, SupervisorError("DATABASE_NOT_MOVED", text, metadata={"why": text})
            )
        finally:
            known = self._tasks.get(app.uid)
            if known is not None and known[1] is asyncio.current_task():
                del self._tasks[app.uid]

    async def _call_off(self, app: AppRecord, way: Way, why: SupervisorError) -> None:
        log.warning("database not moved: %s: %s", app.name, why.message,
                    extra={"action": "databases.not_moved", "app": app.name})  # fmt: skip
        try:
            await self._write(
                partial(database_moves.called_off, name=app.name, uid=app.uid, way=way, why=why)
            )
        except SupervisorError as failure:  # the next pass begins again
            log.warning("not stored: %s", failure.message, extra={"action": "databases.not_stored"})

    async def _check(self, app: AppRecord, way: Way) -> None:
        _, size = await self._databases().relocation(app, way.target).check(self._settings.bin_dir)
        told = partial(database_moves.checked, name=app.name, uid=app.uid, way=way, total_bytes=size)
        await self._write(told)

    async def _copy(self, app: AppRecord, way: Way) -> None:
        left = self._settings.stop_seconds - (self._store.now() - way.stop_time) / 1e6
        told = _Progress(self._write, app, way)
        try:
            async with asyncio.timeout(max(0.0, left)):
                # Whatever runs still, where no node is heard: from here on it can write nothing.
                await self._databases().settle(app, ())
                relocation = self._databases().relocation(app, way.target)
                tools, _ = await relocation.check(self._settings.bin_dir)
                copied = await relocation.copy(tools, told.copied)
        except TimeoutError:
            text = f"It was not copied within {self._settings.stop_seconds:g} s (--database-move-timeout)."
            raise SupervisorError("DATABASE_NOT_MOVED", text, metadata={"why": text}) from None
        finally:
            await told.close()
        arrived = partial(database_moves.arrived, name=app.name, uid=app.uid, way=way)
        if await self._write(partial(arrived, copied_bytes=copied)):
            log.info("database moved: %s", app.name,
                     extra={"action": "databases.moved", "app": app.name, "server": way.target})  # fmt: skip
            return
        text = f"{way.target} does not exist any more."
        raise SupervisorError("DATABASE_NOT_MOVED", text, metadata={"why": text})

    async def _write(self, command: Callable[[Transaction], Any]) -> Any:
        return await asyncio.wrap_future(self._store_write(command))


class _Progress:
    """Stores how far one copy is, now and then; what is not stored is told by the next time."""

    def __init__(self, write: Callable[..., Coroutine[Any, Any, Any]], app: AppRecord, way: Way) -> None:
        self._write = write
        self._told = partial(database_moves.progressed, name=app.name, uid=app.uid, way=way)
        self._clock = asyncio.get_running_loop().time
        self._next = self._clock() + TELL_SECONDS
        self._task: asyncio.Task[Any] | None = None

    def copied(self, total: int) -> None:
        """Note the bytes so far."""
        if self._clock() >= self._next and (self._task is None or self._task.done()):
            self._next = self._clock() + TELL_SECONDS
            self._task = background(self._tell(total), "tell a copy's progress")

    async def _tell(self, total: int) -> None:
        try:
            await self._write(partial(self._told, copied_bytes=total))
        except SupervisorError as failure:
            log.info("progress not stored: %s", failure.message, extra={"action": "databases.not_stored"})

    async def close(self) -> None:
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

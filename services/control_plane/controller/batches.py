"""Carries out batch operations, a few apps of each at a time, from where they stood.

Only who leads does. How far it is, is stored with what came of it; what was begun beyond that is begun again
under the same request ids, and so only looked at.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from google.longrunning.operations_pb2 import Operation, WaitOperationRequest

from appsupervisor.catalog.v1.app_catalog_pb2 import AppResult
from services.control_plane.catalog import batches
from services.control_plane.catalog.batches import KINDS, Kind
from services.control_plane.catalog.commands import AppCommands
from services.control_plane.controller.following import follow
from services.control_plane.operations.service import LONGEST_WAIT, OperationService
from services.control_plane.store.interface import CatalogStore
from services.control_plane.store.records import BatchRecord, OperationRecord
from services.rpc.errors import SupervisorError
from services.rpc.pipeline.call import Caller
from services.rpc.status import to_status

log = logging.getLogger("appsupervisor.batches")

WIDTH = 32
"""Apps of one batch that are under way at once: half of what one node is told at a time."""
STORE_SECONDS = 0.5
"""How often it is stored how far a batch is, and looked whether it is cancelled."""
CALL_SECONDS = 30.0
"""How long a command on one app may wait for the store."""
PAUSE = 1.0
"""Seconds before what the store refused is tried again."""
AGAIN = frozenset({"SERVER_BUSY", "STORE_UNAVAILABLE", "OPERATION_DEADLINE_EXCEEDED"})
"""Refusals of a command that say nothing about its app."""
OVER = frozenset({"LEADERSHIP_LOST", "SHUTTING_DOWN"})
"""Refusals after which another carries the batches on."""


class BatchRunner:
    """Follows the batches of a store, whose writes carry the leader's term. Lives on one loop."""

    def __init__(self, store: CatalogStore, commands: AppCommands, *, width: int = WIDTH) -> None:
        """`commands` write to the same store."""
        self._store = store
        self._width = width
        self._commands = commands
        self._operations = OperationService(store)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._follower: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Go on with what there is, and begin what comes."""
        await self._operations.start()
        position = self._store.mirror.batches.revision
        for record in self._store.mirror.batches.values(""):
            self._begin(record.name)
        self._follower = asyncio.create_task(self._follow(position), name="follow batches")

    async def close(self) -> None:
        """Leave every batch where it is stored to be."""
        tasks = [*self._tasks.values(), *([self._follower] if self._follower is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._operations.close()

    async def _follow(self, position: int) -> None:
        async for name, record in follow(self._store.mirror.batches, position):
            if record is not None:
                self._begin(name)

    def _begin(self, name: str) -> None:
        if name not in self._tasks:
            task = self._tasks[name] = asyncio.create_task(self._carry_out(name), name=f"batch {name}")
            task.add_done_callback(lambda _: self._tasks.pop(name, None))

    async def _carry_out(self, name: str) -> None:
        while (record := self._store.mirror.batches.get(name)) is not None:
            try:
                await self._go_on(record)
            except SupervisorError as refusal:
                if refusal.reason in OVER:
                    return
                log.warning("batch put off: %s", refusal.message,
                            extra={"action": "batch.put_off", "operation": name})  # fmt: skip
            except Exception:
                log.exception("batch put off", extra={"action": "batch.fault", "operation": name})
            else:
                return
            await asyncio.sleep(PAUSE)

    async def _go_on(self, record: BatchRecord) -> None:
        operation = self._store.mirror.operations.get(record.name)
        if operation is not None:
            await _Run(self._store, self._width, record, operation, self._one).finish()
        await asyncio.wrap_future(self._store.write(partial(batches.end, name=record.name)))

    async def _one(self, kind: Kind, request: Any, actor: str) -> AppResult:
        """Deal with one app, and return what came of it."""
        result = AppResult(app=kind.app_of(request))
        try:
            operation = await self._begun(kind, request, actor)
            result.operation = operation.name
            while not operation.done:
                wait = WaitOperationRequest(name=operation.name)
                operation = await self._operations.wait(wait, Caller(actor, LONGEST_WAIT))
        except SupervisorError as refusal:
            if refusal.reason in OVER:
                raise
            if refusal.reason != "OPERATION_NOT_FOUND":  # what has ended and is forgotten has ended
                result.status.CopyFrom(to_status(refusal))
            return result
        if operation.HasField("error"):
            result.status.CopyFrom(operation.error)
        return result

    async def _begun(self, kind: Kind, request: Any, actor: str) -> Operation:
        while True:
            try:
                return await kind.carry_out(self._commands, request, Caller(actor, CALL_SECONDS))
            except SupervisorError as refusal:
                if refusal.reason not in AGAIN:
                    raise
            await asyncio.sleep(PAUSE)


class _Run:
    """One batch under way: what is running, what has ended, and how far it is stored to be."""

    def __init__(
        self,
        store: CatalogStore,
        width: int,
        record: BatchRecord,
        operation: OperationRecord,
        one: Callable[[Kind, Any, str], Coroutine[Any, Any, AppResult]],
    ) -> None:
        self._store = store
        self._width = width
        self._name = record.name
        self._actor = operation.metadata.actor
        self._kind = KINDS[operation.verb]
        self._requests = self._kind.request.FromString(record.requests).requests
        self._one = one
        self._next = self._stored = record.finished
        self._running: dict[asyncio.Task[AppResult], int] = {}
        self._ended: dict[int, AppResult] = {}

    async def finish(self) -> None:
        """Deal with all apps that are left, or with those that are begun once it is cancelled."""
        look = time.monotonic() + STORE_SECONDS
        goes_on = True
        try:
            while goes_on and self._begin_more():
                done, _ = await asyncio.wait(
                    self._running, timeout=STORE_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    self._ended[self._running.pop(task)] = task.result()
                if time.monotonic() >= look:
                    goes_on = await self._store_results()
                    look = time.monotonic() + STORE_SECONDS
            if goes_on:
                await self._store_results()
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    def _begin_more(self) -> bool:
        """Begin as many as there is room for; return whether anything is running."""
        operation = self._store.mirror.operations.get(self._name)
        if operation is None or operation.done or operation.metadata.cancel_requested:
            return bool(self._running)
        while len(self._running) < self._width and self._next < len(self._requests):
            request = self._kind.one()
            request.CopyFrom(self._requests[self._next])
            request.validate_only, request.request_id = False, f"{self._name}/{self._next}"
            task = asyncio.create_task(self._one(self._kind, request, self._actor))
            self._running[task] = self._next
            self._next += 1
        return bool(self._running)

    async def _store_results(self) -> bool:
        """Store what came of the apps up to the first that is under way; return whether it goes on."""
        results: list[AppResult] = []
        while (result := self._ended.pop(self._stored + len(results), None)) is not None:
            results.append(result)
        if not results:
            return True
        self._stored += len(results)
        command = partial(batches.advance, name=self._name, results=results)
        return await asyncio.wrap_future(self._store.write(command))

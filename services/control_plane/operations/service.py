"""The questions about operations, and the commands on them: wait, cancel, delete.

Waiting costs a future per caller; one task follows the change log for all of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from google.longrunning import operations_pb2 as pb
from google.protobuf.empty_pb2 import Empty

from appsupervisor.catalog.v1.app_catalog_pb2 import Canary
from services.control_plane.catalog.changes import take_back
from services.control_plane.catalog.idempotency import execute
from services.control_plane.catalog.pages import page_end, page_start, request_digest
from services.control_plane.catalog.scans import Scans
from services.control_plane.operations import canaries, database_moves, moves, operations
from services.control_plane.placement.canary import Verdict
from services.control_plane.rules.names import operation_name, parse_operation_name
from services.control_plane.store.interface import CatalogStore, Transaction
from services.control_plane.store.records import FLEET_VERBS, MOVE_DATABASE, OperationRecord
from services.rpc.background import kept_running
from services.rpc.errors import SupervisorError, Violation, invalid_field
from services.rpc.feed import Entry
from services.rpc.pipeline.call import Caller

LONGEST_WAIT = 600.0
"""Seconds that one WaitOperation may take, whatever it asks for."""

_MAX_FILTER = 4096
"""Characters, as of other filters."""

_CANCELLABLE = frozenset(
    {"create", "update", "start", "restart", "recover", "move", "attach", MOVE_DATABASE, *FLEET_VERBS}
)


class OperationService:
    """Answers what is asked about operations."""

    def __init__(self, store: CatalogStore) -> None:
        self._store = store
        self._feed = store.mirror.operations
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._follower: asyncio.Task[None] | None = None
        self._closed = False
        self._scans = Scans()

    async def start(self) -> None:
        """Begin to wake those who wait."""
        self._follower = kept_running(self._follow, "follow operations")

    async def close(self) -> None:
        """Stop waking; callers that wait, and later ones, get the operation as it is."""
        self._closed = True
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)
        for waiters in list(self._waiting.values()):
            _wake(waiters)

    def get(self, name: str) -> pb.Operation:
        """Carry out GetOperation."""
        return operations.present(self._record(name))

    async def list(self, request: pb.ListOperationsRequest, caller: Caller) -> pb.ListOperationsResponse:
        """Carry out ListOperations, oldest first; `filter` as in `_compile`."""
        test = _compile(request.filter)
        digest = request_digest("operations", request.filter)
        count, after = page_start(request.page_size, request.page_token, digest)
        deadline = time.monotonic() + caller.timeout
        found = await self._scans.find(self._feed.values(after), test, count + 1, deadline)
        shown = [operations.present(record) for record in found]
        page, token = page_end(shown, count, lambda operation: operation.name, pb.Operation.ByteSize, digest)
        return pb.ListOperationsResponse(operations=page, next_page_token=token)

    async def wait(self, request: pb.WaitOperationRequest, caller: Caller) -> pb.Operation:
        """Carry out WaitOperation: the operation when it is done, or as it is when the time is up.

        The time is the request's `timeout`, else the call's own, at most LONGEST_WAIT.
        """
        limit = min(caller.timeout, LONGEST_WAIT)
        if request.HasField("timeout"):
            asked = request.timeout.ToMicroseconds() / 1e6
            if asked < 0:
                raise invalid_field("timeout", "must not be negative")
            limit = min(limit, asked)
        record = self._record(request.name)
        if not record.done and limit > 0 and not self._closed:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiters = self._waiting.setdefault(record.name, set())
            waiters.add(future)
            try:
                # It may have ended between the look and the registration.
                if not self._record(record.name).done:
                    await asyncio.wait([future], timeout=limit)
            finally:
                waiters.discard(future)
                if not waiters:
                    self._waiting.pop(record.name, None)
        return operations.present(self._record(record.name))

    async def cancel(self, request: pb.CancelOperationRequest, caller: Caller) -> None:
        """Carry out CancelOperation.

        A create or start is taken back by stopping the app, as StopApp does; a move by ending what was to
        take over, while it has not, nor has the data, or, of a database that has not arrived, by starting the
        app where that is; an update of which the new version is tried first by giving that up. Another
        update or a restart that has begun stands, as the moves of many do, and only the operation ends. A
        stop or a delete can't be taken back. A batch begins no more apps, and ends when those that are begun
        have come to their end.
        """

        def run(tx: Transaction) -> Empty:
            record = _found(tx.operation(operation_name(parse_operation_name(request.name))), request.name)
            if not record.done and record.verb.startswith("batch_"):
                _give_up(tx, record)
                return Empty()
            too_far = moves.gone_too_far(tx, record) if record.verb == "move" and not record.done else ""
            if record.done or record.verb not in _CANCELLABLE or too_far:
                what = "is done" if record.done else f"is a {record.verb}, which can't be taken back"
                what = too_far or what
                raise SupervisorError(
                    "OPERATION_NOT_CANCELLABLE",
                    f"{record.name} {what}.",
                    resource=record.name,
                    metadata={"verb": record.verb, "what": what},
                )
            metadata = operations.copied(record.metadata)
            metadata.cancel_requested = True
            cancelled = SupervisorError(
                "OPERATION_CANCELLED",
                f"Cancelled by {caller.actor}.",
                resource=record.app,
                metadata={"actor": caller.actor},
            )
            operations.end(tx, replace(record, metadata=metadata), cancelled, step="cancelled")
            if record.verb == "move":
                why = f"A move of it was cancelled by {caller.actor}; it goes on where it serves."
                moves.take_back(tx, record, "OPERATION_CANCELLED", why)
            if record.verb == MOVE_DATABASE:
                why = f"It was cancelled by {caller.actor}."
                database_moves.take_back(tx, record, "OPERATION_CANCELLED", why)
            if record.verb == "update":
                why = f"The update was cancelled by {caller.actor}."
                verdict = Verdict(Canary.REVERTED, "OPERATION_CANCELLED", why)
                canaries.judged(tx, record.app, record.app_uid, record.goal, verdict, caller.actor)
            app = tx.app(record.app)
            same = app is not None and app.uid == record.app_uid
            if app is not None and same and record.verb in ("create", "start", "recover", "attach"):
                take_back(tx, app, caller.actor, record.name)
            return Empty()

        await execute(self._store, caller, request, Empty, run)

    async def delete(self, request: pb.DeleteOperationRequest, caller: Caller) -> None:
        """Carry out DeleteOperation: forgets one that is done."""

        def run(tx: Transaction) -> Empty:
            record = _found(tx.operation(operation_name(parse_operation_name(request.name))), request.name)
            if not record.done:
                raise SupervisorError(
                    "OPERATION_NOT_DONE", f"{record.name} goes on; cancel it.", resource=record.name
                )
            tx.delete_operation(record.name)
            return Empty()

        await execute(self._store, caller, request, Empty, run)

    def _record(self, name: str) -> OperationRecord:
        return _found(self._feed.get(operation_name(parse_operation_name(name))), name)

    async def _follow(self) -> None:
        while True:
            try:
                async for item in self._feed.watch(self._feed.revision, LONGEST_WAIT):
                    if isinstance(item, Entry) and (item.value is None or item.value.done):
                        _wake(self._waiting.get(item.key, ()))
            except SupervisorError:  # it fell behind the log: let everyone look again
                for waiters in list(self._waiting.values()):
                    _wake(waiters)
                if self._feed.closed:
                    return


def _give_up(tx: Transaction, record: OperationRecord) -> None:
    """Have no more of a batch begun; it ends when what is begun has ended."""
    metadata = operations.copied(record.metadata)
    metadata.cancel_requested, metadata.step = True, "cancelling"
    tx.put_operation(replace(record, metadata=metadata))


def _wake(waiters: Iterable[asyncio.Future[None]]) -> None:
    for future in waiters:
        if not future.done():
            future.set_result(None)


def _found(record: OperationRecord | None, name: str) -> OperationRecord:
    if record is None:
        raise SupervisorError("OPERATION_NOT_FOUND", f"{name} does not exist, or has expired.", resource=name)
    return record


def _compile(text: str) -> Callable[[OperationRecord], bool]:
    """Return the test of a filter: `done=true`, `done=false`, `metadata.target="apps/x"`, ANDed."""
    if len(text) > _MAX_FILTER:
        # Each record is tested by all of it.
        rule = f"must be at most {_MAX_FILTER:,} characters"
        raise SupervisorError("INVALID_FILTER", f"filter: {rule}.", violations=(Violation("filter", rule),))
    tests = [_test(*(piece.strip() for piece in part.partition("="))) for part in _parts(text)]
    return lambda record: all(test(record) for test in tests)


def _parts(text: str) -> list[str]:
    return text.split(" AND ") if text.strip() else []


def _test(field: str, _: str, value: str) -> Callable[[OperationRecord], bool]:
    value = value.strip('"')
    if field == "done" and value in ("true", "false"):
        return lambda record: record.done is (value == "true")
    if field == "metadata.target" and value:
        return lambda record: record.metadata.target == value
    if field == "metadata.verb" and value:
        return lambda record: record.verb == value
    rule = (
        f"{field!r} is not understood; use done=true, done=false, "
        'metadata.target="apps/x" or metadata.verb="create", joined by AND'
    )
    raise SupervisorError("INVALID_FILTER", f"filter: {rule}.", violations=(Violation("filter", rule),))

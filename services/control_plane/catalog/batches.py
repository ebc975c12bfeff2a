"""Commands on many apps: the list is pinned and stored as one operation; who leads carries it out.

Each app is dealt with as by its own method, under a request id of its own: however often a batch is begun
again after a restart, nothing is done twice.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from google.longrunning.operations_pb2 import Operation

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from services.control_plane.catalog.commands import AppCommands
from services.control_plane.catalog.idempotency import execute
from services.control_plane.catalog.moves import parsed_node
from services.control_plane.catalog.scans import Scans
from services.control_plane.operations import operations
from services.control_plane.rules.filters import compile_filter
from services.control_plane.rules.names import app_name
from services.control_plane.rules.sentences import counted
from services.control_plane.store.interface import CatalogStore, Transaction
from services.control_plane.store.records import AppRecord, BatchRecord, OperationRecord
from services.rpc.errors import SupervisorError, Violation, invalid_field, invalid_fields
from services.rpc.pipeline.call import Caller
from services.rpc.status import to_status

BatchRequest: TypeAlias = (
    pb.BatchCreateAppsRequest
    | pb.BatchUpdateAppsRequest
    | pb.BatchDeleteAppsRequest
    | pb.BatchStartAppsRequest
    | pb.BatchStopAppsRequest
    | pb.BatchRestartAppsRequest
    | pb.BatchMoveAppsRequest
)

MAX_REQUESTS = 1_000
"""Apps that one request may list, and results that an operation keeps."""
MAX_FAILURES = 20
"""Failures that the metadata of an operation tells."""

VALIDATED_AT_ONCE = 64
"""Apps that are validated together: they share a look at the store."""

UNDECIDED = frozenset({"OPERATION_DEADLINE_EXCEEDED", "STORE_UNAVAILABLE", "SERVER_BUSY", "SHUTTING_DOWN"})
"""Refusals that say nothing about the app that was asked for."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of batch. What it asks for each app is a request of the app's own method."""

    verb: str
    request: type[Any]
    one: type[Any]
    app_of: Callable[[Any], str]
    """Returns the name of the app that a request is about."""
    carry_out: Callable[[AppCommands, Any, Caller], Awaitable[Operation]]
    for_all: tuple[str, ...] = ()
    """Fields of the batch that are those of each app's request, where the apps are chosen by a filter."""


def _name(request: Any) -> str:
    return str(request.name)


KINDS = {
    kind.verb: kind
    for kind in (
        Kind(
            "batch_create", pb.BatchCreateAppsRequest, pb.CreateAppRequest, lambda it: app_name(it.app_id),
            AppCommands.create,
        ),
        Kind(
            "batch_update", pb.BatchUpdateAppsRequest, pb.UpdateAppRequest, lambda it: str(it.app.name),
            AppCommands.update,
        ),
        Kind(
            "batch_delete", pb.BatchDeleteAppsRequest, pb.DeleteAppRequest, _name, AppCommands.delete,
            ("data_policy",),
        ),
        Kind("batch_start", pb.BatchStartAppsRequest, pb.StartAppRequest, _name, AppCommands.start),
        Kind("batch_stop", pb.BatchStopAppsRequest, pb.StopAppRequest, _name, AppCommands.stop),
        Kind("batch_restart", pb.BatchRestartAppsRequest, pb.RestartAppRequest, _name, AppCommands.restart),
        Kind(
            "batch_move", pb.BatchMoveAppsRequest, pb.MoveAppRequest, _name, AppCommands.move,
            ("node", "source_node"),
        ),
    )
}  # fmt: skip


class BatchCommands:
    """Begins batches, or only validates them."""

    def __init__(self, store: CatalogStore, commands: AppCommands) -> None:
        """`commands` checks what is only validated."""
        self._store = store
        self._commands = commands
        self._scans = Scans()

    async def begin(self, request: BatchRequest, caller: Caller) -> Operation:
        """Carry out one of the batch methods."""
        kind = next(kind for kind in KINDS.values() if kind.request is type(request))
        deadline = time.monotonic() + caller.timeout
        pinned = kind.request(requests=await self._pinned(kind, request, deadline))
        count = len(pinned.requests)
        results: list[pb.AppResult] = []
        if request.validate_only:
            for start in range(0, count, VALIDATED_AT_ONCE):
                left = Caller(caller.actor, max(0.0, deadline - time.monotonic()))
                part = pinned.requests[start : start + VALIDATED_AT_ONCE]
                results += await asyncio.gather(*(self._validated(kind, one, left) for one in part))

        def run(tx: Transaction) -> Operation:
            operation = pin(tx, kind.verb, pinned, caller.actor)
            if len(results) == count:
                advance(tx, operation.name, results)
                end(tx, operation.name)
            stored = tx.operation(operation.name)
            assert stored is not None, "it has just been put"
            return operations.present(stored)

        return await execute(
            self._store,
            caller,
            request,
            Operation,
            run,
            request_id=request.request_id,
            validate_only=request.validate_only,
        )

    async def _pinned(self, kind: Kind, request: BatchRequest, deadline: float) -> Sequence[Any]:
        """Return one request for each app. Raises SupervisorError INVALID_FIELD, INVALID_FILTER."""
        if isinstance(request, pb.BatchCreateAppsRequest | pb.BatchUpdateAppsRequest) or not request.filter:
            _check_list(kind, request)
            given = [
                Violation(name, "must not be set with requests; each has its own")
                for name in kind.for_all
                if getattr(request, name)
            ]
            if given:
                raise invalid_fields(given)
            return request.requests
        if request.requests:
            raise invalid_field("filter", "must not be set with requests")
        policies = pb.DeleteAppRequest.DataPolicy.values()
        if isinstance(request, pb.BatchDeleteAppsRequest) and request.data_policy not in policies:
            raise invalid_field("data_policy", "must be DROP or RETAIN")
        if isinstance(request, pb.BatchMoveAppsRequest):
            parsed_node(request.node, "node")
            parsed_node(request.source_node, "source_node")
        asked = {name: getattr(request, name) for name in kind.for_all}
        matches = compile_filter(request.filter)
        pinned: list[Any] = []

        def pin_matching(record: AppRecord) -> bool:
            if matches(record.public):
                pinned.append(kind.one(name=record.name, **asked))
            return False  # not kept: a whole record takes 8 KB, and a filter may match a million

        await self._scans.find(self._store.mirror.apps.values(""), pin_matching, None, deadline)
        return pinned

    async def _validated(self, kind: Kind, request: Any, caller: Caller) -> pb.AppResult:
        copy = kind.one()
        copy.CopyFrom(request)
        copy.validate_only, copy.request_id = True, ""
        result = pb.AppResult(app=kind.app_of(request))
        try:
            await kind.carry_out(self._commands, copy, caller)
        except SupervisorError as refusal:
            if refusal.reason in UNDECIDED:
                raise
            result.status.CopyFrom(to_status(refusal))
        return result


def _check_list(kind: Kind, request: BatchRequest) -> None:
    if not request.requests:
        raise invalid_field(
            "requests", "is required, or a filter" if hasattr(request, "filter") else "is required"
        )
    if len(request.requests) > MAX_REQUESTS:
        raise invalid_field("requests", f"must be at most {MAX_REQUESTS:,}")
    apps = [kind.app_of(one) for one in request.requests]
    count = Counter(apps)
    repeated = [
        Violation(f"requests[{index}]", f"{app} is named more than once")
        for index, app in enumerate(apps)
        if count[app] > 1
    ]
    if repeated:
        raise invalid_fields(repeated)


def pin(tx: Transaction, verb: str, request: BatchRequest, actor: str) -> OperationRecord:
    """Store a new batch of a request that lists its apps, and return its operation."""
    operation = operations.begin_batch(tx, verb, len(request.requests), actor)
    tx.put_batch(BatchRecord(operation.name, request.SerializeToString()))
    return operation


def advance(tx: Transaction, name: str, results: Iterable[pb.AppResult]) -> bool:
    """Store what came of the next apps of a batch; return whether it goes on."""
    batch, operation = tx.batch(name), tx.operation(name)
    if batch is None or operation is None or operation.done:
        tx.delete_batch(name)
        return False
    results = list(results)
    assert isinstance(operation.metadata, pb.OperationMetadata)
    metadata = operations.copied(operation.metadata)
    progress = metadata.batch
    failed = [result for result in results if result.HasField("status")]
    room = max(0, MAX_REQUESTS - progress.failed_count)
    kept = results if progress.total_count <= MAX_REQUESTS else failed[:room]
    progress.done_count += len(results) - len(failed)
    progress.failed_count += len(failed)
    progress.failures.extend(failed[: MAX_FAILURES - len(progress.failures)])
    finished = batch.finished + len(results)
    metadata.progress_percent = 100 * finished // max(progress.total_count, 1)
    if not metadata.cancel_requested:
        metadata.step = f"{finished:,} of {progress.total_count:,}"
    tx.put_operation(replace(operation, metadata=metadata))
    # The encodings of a repeated field, one after the other, are that of all together.
    told = batch.results + pb.BatchResponse(results=kept).SerializeToString()
    tx.put_batch(replace(batch, finished=finished, results=told))
    return True


def end(tx: Transaction, name: str) -> None:
    """End a batch of which nothing more is to be begun."""
    batch, operation = tx.batch(name), tx.operation(name)
    tx.delete_batch(name)
    if batch is None or operation is None or operation.done:
        return
    assert isinstance(operation.metadata, pb.OperationMetadata)
    left = operation.metadata.batch.total_count - batch.finished
    if not left:
        operations.end(tx, operation, None, response=pb.BatchResponse.FromString(batch.results))
        return
    cancelled = SupervisorError(
        "OPERATION_CANCELLED",
        f"Cancelled: {counted(left, 'app')} not begun.",
        resource=name,
        metadata={"finished": str(batch.finished), "left": str(left)},
    )
    operations.end(tx, operation, cancelled, step="cancelled")

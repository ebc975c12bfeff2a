"""Operations inside transactions: begun by a command, ended by what is observed of the app.

The rules: an operation waits for its app to serve (or to stop, or to be gone); the last command on an
app wins; every operation has a deadline, after which what is wanted of the app still stands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from google.longrunning.operations_pb2 import Operation
from google.protobuf.message import Message

from appsupervisor.catalog.v1.app_catalog_pb2 import (
    App,
    BatchResponse,
    Canary,
    DatabaseMove,
    DataMove,
    OperationMetadata,
)
from appsupervisor.catalog.v1.retained_data_pb2 import RetainedData
from appsupervisor.fleet.v1.fleet_pb2 import (
    DrainNodeMetadata,
    Node,
    PlannedMove,
    RebalanceEnvironmentMetadata,
    RebalanceEnvironmentResponse,
)
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition, Instance
from services.control_plane.operations import database_moves
from services.control_plane.operations.moves import Stage, stage_of, take_back, was_lost
from services.control_plane.operations.traces import add_trace
from services.control_plane.operations.verdicts import (
    BRINGS_UP,
    READY,
    error_of,
    failed,
    failure_there,
    fulfilled,
    is_only_told,
    traceback_of,
)
from services.control_plane.placement.scale import most_replicas, served_version
from services.control_plane.rules.sentences import counted, sentences
from services.control_plane.store.interface import Transaction
from services.control_plane.store.random_ids import new_suffix
from services.control_plane.store.records import (
    DRAIN,
    MOVE_DATABASE,
    REBALANCE,
    AppRecord,
    OperationRecord,
    RetainedDataRecord,
    Version,
)
from services.rpc.errors import CODES, SupervisorError
from services.rpc.status import to_status

KEPT = 24 * 3600 * 1_000_000
"""How long a done operation can be read, µs."""

SLACK = 60_000_000
"""Added to the app's own start and stop limits for an operation's deadline, µs."""

PURGE_LIMIT = 120_000_000
"""Time after which an operation that removes data is given up, µs; the data is removed all the same."""

DATABASE_LIMIT = 2 * 3600 * 1_000_000
"""Time that a move to another database server is given besides, µs: its write stop has a limit of its own."""

BATCH_LIMIT = 24 * 3600 * 1_000_000
"""Time after which a batch is given up, µs: its apps' own requests are remembered as long."""

Command = Callable[[Transaction], OperationRecord]
"""Stores what is wanted, and returns the operation that waits for it."""

_ENDED_BY = {
    "stop": BRINGS_UP | {"move"},
    "delete": BRINGS_UP | {"stop", "move", MOVE_DATABASE},
    "start": frozenset({"stop"}),
    "restart": frozenset({"stop"}),
    "recover": frozenset({"stop"}),
    "move": frozenset({"move"}),
}

M = TypeVar("M", bound=Message)


def supersede(tx: Transaction, app: str, verb: str, effect: str) -> None:
    """End the app's operations that a later command takes back; `effect` is the verb it amounts to."""
    for other in tx.open_operations(app, _ENDED_BY.get(effect, ())):
        replaced = SupervisorError(
            "OPERATION_SUPERSEDED",
            f"A later {verb} of {app} replaced this operation.",
            resource=app,
            metadata={"verb": verb},
        )
        end(tx, other, replaced, step="superseded")


def begin(
    tx: Transaction,
    verb: str,
    record: AppRecord,
    actor: str,
    *,
    effect: str = "",
    move: tuple[str, Version] | None = None,
) -> OperationRecord:
    """Store a new operation on an app, ending those it supersedes, and return it.

    `effect` is the verb it amounts to when that is another one, as of an update that stops the app; `move`
    the node and the version of a move. An operation that what is already observed fulfils is done at once.
    """
    supersede(tx, record.name, verb, effect or verb)
    allowed = allowance(record)
    if verb == MOVE_DATABASE:
        allowed += DATABASE_LIMIT
    metadata = OperationMetadata(
        target=record.name, verb=verb, step="accepted", generation=record.generation, actor=actor,
        retained_data=record.status.retained_data,
    )  # fmt: skip
    metadata.create_time.FromMicroseconds(tx.now)
    metadata.deadline_time.FromMicroseconds(tx.now + allowed)
    if verb == MOVE_DATABASE:
        metadata.database_move.CopyFrom(record.status.database_move)
    goal = record.target
    if move is not None:
        metadata.node, goal = move
    served = _served(tx, record)
    if verb == "start" and served is not None and record.status.state in READY:
        goal = served  # it serves, if only an older version after a failed update
    operation = OperationRecord(
        name=new_name(tx),
        app=record.name,
        app_uid=record.uid,
        verb=verb,
        goal=goal,
        metadata=metadata,
        create_time=tx.now,
        deadline=tx.now + allowed,
    )
    return _settle_one(tx, operation, record)


def allowance(record: AppRecord) -> int:
    """Return the time that an operation on an app has, µs."""
    limits = record.spec.limits
    once = limits.start_timeout.ToMicroseconds() + 2 * limits.stop_timeout.ToMicroseconds()
    # Replicas are replaced one after the other.
    each = once + record.spec.rollout.min_ready_duration.ToMicroseconds()
    tried = record.spec.rollout.canary.timeout.ToMicroseconds()
    return most_replicas(record) * each + tried + SLACK


def begin_purge(tx: Transaction, record: RetainedDataRecord, actor: str) -> OperationRecord:
    """Store a new operation that ends when retained data is removed, and return it."""
    metadata = OperationMetadata(
        target=record.data.app, verb="purge", step="removing data", actor=actor, retained_data=record.name
    )
    metadata.create_time.FromMicroseconds(tx.now)
    metadata.deadline_time.FromMicroseconds(tx.now + PURGE_LIMIT)
    operation = OperationRecord(
        name=new_name(tx),
        app=record.name,
        app_uid=record.data.app_uid,
        verb="purge",
        goal=Version(0, 0),
        metadata=metadata,
        create_time=tx.now,
        deadline=tx.now + PURGE_LIMIT,
    )
    tx.put_operation(operation)
    return operation


def begin_batch(tx: Transaction, verb: str, count: int, actor: str) -> OperationRecord:
    """Store a new operation on so many apps, and return it."""
    metadata = OperationMetadata(verb=verb, step="accepted", actor=actor)
    metadata.batch.total_count = count
    metadata.create_time.FromMicroseconds(tx.now)
    metadata.deadline_time.FromMicroseconds(tx.now + BATCH_LIMIT)
    operation = OperationRecord(
        name=new_name(tx),
        app="",
        app_uid="",
        verb=verb,
        goal=Version(0, 0),
        metadata=metadata,
        create_time=tx.now,
        deadline=tx.now + BATCH_LIMIT,
    )
    tx.put_operation(operation)
    return operation


def new_name(tx: Transaction) -> str:
    """Return a name for a new operation: they sort by time."""
    return f"operations/{tx.now:016x}{new_suffix()}"


def with_notice(tx: Transaction, operation: OperationRecord, condition: Condition) -> OperationRecord:
    """Have an operation tell a condition of its app that the catalog does not keep, and return it."""
    assert isinstance(operation.metadata, OperationMetadata)
    metadata = copied(operation.metadata)
    metadata.notice = condition.message
    response = operation.response
    if response is not None:
        response = App.FromString(response.SerializeToString())
        response.conditions.append(condition)
    noticed = replace(operation, metadata=metadata, response=response)
    tx.put_operation(noticed)
    return noticed


def settle(tx: Transaction, record: AppRecord) -> None:
    """End or update the app's open operations by what has just been observed of it."""
    for operation in tx.open_operations(record.name):
        _settle_one(tx, operation, record)


def settle_removed(tx: Transaction, record: AppRecord) -> None:
    """End the operations of an app that has just been removed."""
    for operation in tx.open_operations(record.name):
        end(tx, operation, None, app=record)


def expire(tx: Transaction, name: str) -> None:
    """End an operation whose deadline has passed."""
    operation = tx.operation(name)
    if operation is None or operation.done or operation.deadline > tx.now:
        return
    if operation.verb == "move":
        take_back(tx, operation, "OPERATION_DEADLINE_EXCEEDED", "A move of it was not done in time.")
    if operation.verb == MOVE_DATABASE:
        database_moves.take_back(tx, operation, "OPERATION_DEADLINE_EXCEEDED", "It was not done in time.")
    app = tx.app(operation.app)
    why = f"It is {Instance.State.Name(app.status.state)}" if app else ""
    for condition in app.status.conditions if app else ():
        if condition.type == "Ready" and condition.message:
            why = condition.message
    if isinstance(operation.metadata, OperationMetadata):
        data = tx.retained(operation.metadata.retained_data)
        if data is not None and data.data.state_reason:
            why = data.data.state_reason
    stands = _STANDS.get(operation.verb, "what is wanted of it stands")
    if isinstance(operation.metadata, DrainNodeMetadata):
        left = operation.metadata.left_count
        told = "; ".join(_told(it) for it in operation.metadata.app_results[:3])
        why = f"Still on it: {counted(left, 'app')}; {told}"
    if isinstance(operation.metadata, RebalanceEnvironmentMetadata):
        ahead = (PlannedMove.PLANNED, PlannedMove.MOVING)
        left = sum(it.state in ahead for it in operation.metadata.moves)
        why = f"Still to be made: {counted(left, 'move')}"
    end(
        tx,
        operation,
        SupervisorError(
            "OPERATION_DEADLINE_EXCEEDED",
            sentences(f"{operation.app} did not get there in time; {stands}", why),
            resource=operation.app,
            metadata={"why": why},
        ),
        step="failed",
    )


_STANDS = {
    "move": "it goes on where it serves",
    MOVE_DATABASE: "its database is where the app names it",
    DRAIN: "it stays cordoned",
    REBALANCE: "what was moved stays where it is",
}


def _told(result: DrainNodeMetadata.AppResult) -> str:
    return f"{result.app}: {result.message or DrainNodeMetadata.AppResult.State.Name(result.state)}".rstrip(
        "."
    )


def copied(metadata: M) -> M:
    """Return a copy of an operation's metadata that may be changed."""
    copy = type(metadata)()
    copy.CopyFrom(metadata)
    return copy


def end(
    tx: Transaction,
    operation: OperationRecord,
    error: SupervisorError | None,
    *,
    step: str = "done",
    app: AppRecord | None = None,
    node: Node | None = None,
    response: RetainedData | BatchResponse | RebalanceEnvironmentResponse | None = None,
    traceback: str = "",
) -> OperationRecord:
    """End an operation, with the app, or node, or another response, or an error, and return it.

    The error carries the end of `traceback`, that of the app's exception.
    """
    metadata = copied(operation.metadata)
    metadata.end_time.FromMicroseconds(tx.now)
    metadata.step = step
    if error is None:
        metadata.progress_percent = 100
    status = None if error is None else to_status(error)
    if status is not None:
        add_trace(status, traceback, operation.app)
    ended = replace(
        operation,
        metadata=metadata,
        done=True,
        error=status,
        response=app.public if app else node or response,
        expire_time=tx.now + KEPT,
    )
    tx.put_operation(ended)
    return ended


def _settle_one(tx: Transaction, operation: OperationRecord, record: AppRecord) -> OperationRecord:
    if operation.verb == "move":
        return _settle_move(tx, operation, record)
    if operation.verb == MOVE_DATABASE:
        return _settle_database_move(tx, operation, record)
    if fulfilled(operation.verb, operation.goal, record, _served(tx, record)):
        return end(tx, operation, None, app=record)
    if is_only_told(operation, record):
        return end(tx, operation, None, app=record)
    if failure := failed(operation.verb, operation.goal, record):
        return end(tx, operation, failure, step="failed", traceback=traceback_of(record))
    return _put_progress(tx, operation, _progress(operation.metadata, record))


def _settle_move(tx: Transaction, operation: OperationRecord, record: AppRecord) -> OperationRecord:
    stage = stage_of(tx, operation, record)
    if stage is Stage.DONE:
        return end(tx, operation, None, app=record)
    progress = _progress(operation.metadata, record)
    if stage is Stage.DRAINING:
        progress.step, progress.progress_percent = "draining", 80
        return _put_progress(tx, operation, progress)
    if stage is Stage.CALLED_OFF and (failure := failure_there(operation, record)):
        return end(tx, operation, failure, step="failed", traceback=traceback_of(record))
    if stage is Stage.CALLED_OFF and was_lost(tx, operation):
        lost = SupervisorError(
            "NODE_UNREACHABLE",
            f"{progress.node} was lost before {record.name} had moved there.",
            resource=record.name,
            metadata={"node": progress.node},
        )
        return end(tx, operation, lost, step="failed")
    move = record.status.data_move
    if stage is Stage.COMING and move.state == DataMove.COPYING and move.target_node == progress.node:
        share = move.copied_bytes / move.total_bytes if move.total_bytes else 0.0
        progress.step, progress.progress_percent = "copying data", 10 + int(40 * min(1.0, share))
        progress.data_move.CopyFrom(move)
    given_up = record.failed is not None and record.failed.epoch == record.target.epoch
    if stage is Stage.CALLED_OFF and given_up and record.target.epoch >= operation.goal.epoch:
        return end(tx, operation, error_of(record, "Updated"), step="failed", traceback=traceback_of(record))
    if stage is Stage.CALLED_OFF:
        replaced = SupervisorError(
            "OPERATION_SUPERSEDED",
            f"A later command on {record.name} replaced this move.",
            resource=record.name,
        )
        return end(tx, operation, replaced, step="superseded")
    if record.status.state == Instance.FAILED and _served(tx, record) is None:
        return end(tx, operation, error_of(record, "Ready"), step="failed", traceback=traceback_of(record))
    return _put_progress(tx, operation, progress)


def _settle_database_move(tx: Transaction, operation: OperationRecord, record: AppRecord) -> OperationRecord:
    move = record.status.database_move
    progress = _progress(operation.metadata, record)
    if move.target_server != progress.database_move.target_server:
        text = f"A later command on {record.name} replaced this move."
        replaced = SupervisorError("OPERATION_SUPERSEDED", text, resource=record.name)
        return end(tx, operation, replaced, step="superseded")
    if move.state == DatabaseMove.DONE:
        return end(tx, operation, None, app=record)
    if move.state == DatabaseMove.CALLED_OFF:
        reason = move.reason if move.reason in CODES else "DATABASE_NOT_MOVED"
        refusal = SupervisorError(reason, move.message, resource=record.name, metadata={"why": move.message})
        return end(tx, operation, refusal, step="failed")
    wanted = record.spec.desired_state != App.STOPPED
    if move.state == DatabaseMove.ARRIVED and wanted and record.status.state == Instance.FAILED:
        return end(tx, operation, error_of(record, "Ready"), step="failed", traceback=traceback_of(record))
    progress.step, progress.progress_percent = database_moves.step_of(move)
    progress.database_move.CopyFrom(move)
    return _put_progress(tx, operation, progress)


def _put_progress(
    tx: Transaction, operation: OperationRecord, metadata: OperationMetadata
) -> OperationRecord:
    updated = replace(operation, metadata=metadata)
    if operation.revision == 0 or updated.metadata != operation.metadata:
        tx.put_operation(updated)
    return updated


def _served(tx: Transaction, record: AppRecord) -> Version | None:
    """Return the version that serves, or did last; of several replicas, that which all have reached."""
    return served_version(record, tx.placements_of(record.name))


_STEPS = {
    Instance.PENDING: ("placing", 10),
    Instance.STARTING: ("starting", 50),
    Instance.RUNNING: ("starting", 50),
    Instance.STOPPING: ("draining", 50),
    Instance.DELETING: ("draining", 50),
}


def _progress(
    metadata: OperationMetadata | DrainNodeMetadata | RebalanceEnvironmentMetadata, record: AppRecord
) -> OperationMetadata:
    assert isinstance(metadata, OperationMetadata)
    current = copied(metadata)
    current.step, current.progress_percent = _STEPS.get(record.status.state, ("accepted", 0))
    if current.verb == "update" and record.status.canary.state == Canary.ANALYZING:
        current.step, current.progress_percent = "canary", 60
    del current.node_results[:]
    for instance in record.status.instances:
        current.node_results.add(
            node=instance.node,
            instance=instance.name,
            state=instance.state,
            message=instance.last_error.message,
        )
    return current


def present(operation: OperationRecord) -> Operation:
    """Return the operation as the API shows it."""
    shown = Operation(name=operation.name, done=operation.done)
    shown.metadata.Pack(operation.metadata)
    if operation.error is not None:
        shown.error.CopyFrom(operation.error)
    elif operation.done and operation.response is not None:
        shown.response.Pack(operation.response)
    return shown

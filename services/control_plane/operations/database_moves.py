"""A move of an app's database to another server inside transactions: begun, told how far, and called off.

Whose the database is the app's spec says at every moment; nothing here changes that.
"""

from __future__ import annotations

from dataclasses import replace

from appsupervisor.catalog.v1.app_catalog_pb2 import App, AppEvent, DatabaseMove
from services.control_plane.store.interface import Transaction
from services.control_plane.store.records import AppRecord, OperationRecord
from services.rpc.errors import SupervisorError

UNDER_WAY = frozenset({DatabaseMove.CHECKING, DatabaseMove.COPYING})
"""States in which the database has not arrived, and it may be called off."""


def is_stopped_for(record: AppRecord) -> bool:
    """Tell whether nothing of an app is to run, for its database is being copied."""
    return bool(record.status.database_move.state == DatabaseMove.COPYING)


def is_on_way(status: App) -> bool:
    """Tell whether a move has neither been called off nor been confirmed by the app on the new server."""
    return status.database_move.state in UNDER_WAY or status.database_move.state == DatabaseMove.ARRIVED


def is_unfinished(status: App) -> bool:
    """Tell whether there is more to do of a move: also if it is to drop what it has left."""
    return is_on_way(status) or bool(status.database_move.leftover_server)


def begun(record: AppRecord, target: str) -> AppRecord:
    """Return an app whose database is to go to another server, or goes there already.

    Raises DATABASE_NOT_MOVED while it goes elsewhere, or another server has a copy that is not dropped yet.
    """
    move = record.status.database_move
    if move.state in UNDER_WAY and move.target_server == target:
        return record
    if move.state in UNDER_WAY:
        raise _busy(record, target, f"it moves to {move.target_server}; cancel that, or wait for it")
    if move.leftover_server not in ("", target):
        raise _busy(record, target, f"what it has left on {move.leftover_server} is not dropped yet")
    status = App()
    status.CopyFrom(record.status)
    status.database_move.Clear()
    status.database_move.state = DatabaseMove.CHECKING
    status.database_move.source_server = record.database_server
    status.database_move.target_server = target
    status.database_move.leftover_server = move.leftover_server
    status.reconciling = True
    return replace(record, status=status)


def take_back(tx: Transaction, operation: OperationRecord, reason: str, why: str) -> None:
    """Have an app's database stay where it is, unless it has arrived; `why` is one sentence."""
    record = tx.app(operation.app)
    if record is None or record.uid != operation.app_uid:
        return
    target = getattr(operation.metadata, "database_move", DatabaseMove()).target_server
    if record.status.database_move.target_server == target:
        call_off(tx, record, reason, why)


def call_off(tx: Transaction, record: AppRecord, reason: str, why: str) -> AppRecord | None:
    """Store that a move is called off, and return the app; None if there is nothing to call off."""
    if record.status.database_move.state not in UNDER_WAY:
        return None
    status = App()
    status.CopyFrom(record.status)
    move = status.database_move
    move.state, move.reason, move.message = DatabaseMove.CALLED_OFF, reason, why
    if move.HasField("stop_time"):
        move.stop_duration.FromMicroseconds(max(0, tx.now - move.stop_time.ToMicroseconds()))
    status.reconciling = True
    record = tx.put_app(replace(record, status=status))
    event = AppEvent(
        type="DatabaseMoveFailed", reason=reason, message=why, actor="system",
        generation=record.generation, app_uid=record.uid,
    )  # fmt: skip
    tx.add_event(record.name, event)
    return record


def step_of(move: DatabaseMove) -> tuple[str, int]:
    """Return the name of what is being done, and about how many percent are."""
    if move.state == DatabaseMove.COPYING:
        share = move.copied_bytes / move.total_bytes if move.total_bytes else 0.0
        return "copying database", 10 + int(70 * min(1.0, share))
    return ("starting", 90) if move.state == DatabaseMove.ARRIVED else ("checking", 5)


def _busy(record: AppRecord, target: str, why: str) -> SupervisorError:
    text = f"The database of {record.name} cannot go to {target} now: {why}."
    return SupervisorError(
        "DATABASE_NOT_MOVED", text, resource=record.name, metadata={"why": why, "server": target}
    )

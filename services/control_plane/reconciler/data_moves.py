"""What comes of data that goes from node to node, stored: how far it is, whose it is, that it was called off.

Each looks at the app again inside the transaction, and does nothing if it is not on that way any more.
"""

from __future__ import annotations

from dataclasses import replace

from appsupervisor.catalog.v1.app_catalog_pb2 import App, DataMove, OperationMetadata
from appsupervisor.runtime.v1.data_transfers_pb2 import ReceiveDataResponse
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition
from services.control_plane.catalog.changes import add_event
from services.control_plane.catalog.idempotency import SYSTEM
from services.control_plane.operations import operations
from services.control_plane.placement.data_travel import Travel, travel_of, with_new_owner
from services.control_plane.rules.conditions import set_condition
from services.control_plane.store.interface import Transaction
from services.control_plane.store.records import AppRecord, Role
from services.rpc.errors import SupervisorError

STALL = 60_000_000
"""A copy that brings nothing for so long is given up, µs."""


def progressed(
    tx: Transaction, name: str, uid: str, travel: Travel, told: ReceiveDataResponse, message: str
) -> None:
    """Store how far the copy is, and what keeps it from going on; with progress a move gets more time."""
    record = _on_its_way(tx, name, uid, travel)
    if record is None:
        return
    status = _copy(record.status)
    move = status.data_move
    places = (travel.source.node, travel.target.node)
    if move.state != DataMove.COPYING or (move.source_node, move.target_node) != places:
        move.Clear()
        move.state, move.source_node, move.target_node = DataMove.COPYING, *places
        move.progress_time.FromMicroseconds(tx.now)
    if told.received_bytes > move.copied_bytes or (told.total_bytes and not move.total_bytes):
        move.progress_time.FromMicroseconds(tx.now)
        _extend(tx, record)
    if told.state:
        move.total_bytes, move.copied_bytes = told.total_bytes, told.received_bytes
        move.copy_duration.CopyFrom(told.copy_duration)
    move.message = message
    if status != record.status:
        record = tx.put_app(replace(record, status=status))
        operations.settle(tx, record)


def called_off(tx: Transaction, name: str, uid: str, travel: Travel, why: SupervisorError) -> bool:
    """Leave an app where its data is; False where it has to go to it, or is not on that way any more."""
    record = _on_its_way(tx, name, uid, travel)
    if record is None or travel.target.role is not Role.INCOMING:
        return False
    coming = next(it for it in tx.placements_of(name) if it.name == travel.target.name)
    tx.put_placement(replace(coming, role=Role.OUTGOING, why=why.message, since=tx.now))
    status = _copy(record.status)
    set_condition(status.conditions, "Updated", Condition.UNMET, why.reason, why.message, tx.now)
    status.data_move.state, status.data_move.message = DataMove.CALLED_OFF, why.message
    record = tx.put_app(replace(record, failed=record.target, status=status))
    add_event(tx, record, "MoveFailed", actor=SYSTEM, reason=why.reason, message=why.message)
    operations.settle(tx, record)
    return True


def arrived(tx: Transaction, name: str, uid: str, travel: Travel, told: ReceiveDataResponse) -> bool:
    """Have the target own the data from now on, and the source no more; False where that is not wanted.

    All of it has to be on the target's disk, and nothing may have run at the source since it was read.
    """
    record = _on_its_way(tx, name, uid, travel)
    if record is None or record.deleting:
        return False
    known = tx.placements_of(name)
    for before, after in zip(known, with_new_owner(known, travel), strict=True):
        if before != after:
            tx.put_placement(after)
    status = _copy(record.status)
    move = status.data_move
    move.state, move.message, move.rest_bytes = DataMove.ARRIVED, "", told.rest_bytes
    move.source_node, move.target_node = travel.source.node, travel.target.node
    move.total_bytes, move.copied_bytes = told.total_bytes, told.received_bytes
    move.copy_duration.CopyFrom(told.copy_duration)
    move.progress_time.FromMicroseconds(tx.now)
    record = tx.put_app(replace(record, status=status))
    _tell_operations(tx, record)
    return True


def released(tx: Transaction, name: str, uid: str, held_seconds: float | None) -> None:
    """Store that the app's requests are let go, and tell in its timeline how its data went."""
    record = tx.app(name)
    if record is None or record.uid != uid or record.status.data_move.state != DataMove.ARRIVED:
        return
    status = _copy(record.status)
    move = status.data_move
    move.state = DataMove.DONE
    if held_seconds is not None:
        move.hold_duration.FromMicroseconds(int(held_seconds * 1e6))
    record = tx.put_app(replace(record, status=status))
    _tell_operations(tx, record)
    add_event(tx, record, "DataMoved", actor=SYSTEM, message=_sentence(move, held_seconds))


def _sentence(move: DataMove, held_seconds: float | None) -> str:
    took = move.copy_duration.ToMicroseconds() / 1e6
    held = (
        f"requests were held for {held_seconds * 1e3:.0f} ms" if held_seconds is not None else "nothing ran"
    )
    return (
        f"From {move.source_node} to {move.target_node}: {move.copied_bytes:,} bytes in {took:.1f} s while "
        f"it went on; {held} for the last {move.rest_bytes:,}."
    )


def _on_its_way(tx: Transaction, name: str, uid: str, travel: Travel) -> AppRecord | None:
    record = tx.app(name)
    if record is None or record.uid != uid:
        return None
    now = travel_of(tx.placements_of(name))
    if now is None or (now.source.name, now.target.name) != (travel.source.name, travel.target.name):
        return None
    return record if now.target.node == travel.target.node else None


def _extend(tx: Transaction, record: AppRecord) -> None:
    for operation in tx.open_operations(record.name, ("move",)):
        deadline = max(operation.deadline, tx.now + operations.allowance(record))
        if deadline != operation.deadline:
            metadata = operations.copied(operation.metadata)
            metadata.deadline_time.FromMicroseconds(deadline)
            tx.put_operation(replace(operation, metadata=metadata, deadline=deadline))


def _tell_operations(tx: Transaction, record: AppRecord) -> None:
    for operation in tx.open_operations(record.name, ("move",)):
        if isinstance(operation.metadata, OperationMetadata):
            metadata = operations.copied(operation.metadata)
            metadata.data_move.CopyFrom(record.status.data_move)
            tx.put_operation(replace(operation, metadata=metadata))


def _copy(status: App) -> App:
    copy = App()
    copy.CopyFrom(status)
    return copy

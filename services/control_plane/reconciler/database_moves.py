"""What comes of a database that goes from server to server, stored: how far it is, whose it is, what is left.

Each looks at the app again inside the transaction, and does nothing if it is not on that way any more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from appsupervisor.catalog.v1.app_catalog_pb2 import App, DatabaseMove
from services.control_plane.catalog.changes import add_event
from services.control_plane.catalog.idempotency import SYSTEM
from services.control_plane.operations import database_moves, operations
from services.control_plane.placement.scale import is_several, newest_epoch
from services.control_plane.placement.swap import pinned, spec_of
from services.control_plane.rules.sentences import sentences
from services.control_plane.store.interface import Transaction
from services.control_plane.store.records import AppRecord, PlacementRecord, Role, Version
from services.rpc.errors import SupervisorError


@dataclass(frozen=True, slots=True)
class Way:
    """One stage of one move: what is done for it counts for no other."""

    state: DatabaseMove.State.ValueType
    source: str
    target: str
    stop_time: int
    """When the write stop began, µs; 0 before."""

    @classmethod
    def of(cls, record: AppRecord) -> Way:
        """Return the one that an app is in."""
        move = record.status.database_move
        return cls(move.state, move.source_server, move.target_server, move.stop_time.ToMicroseconds())


def checked(tx: Transaction, name: str, uid: str, way: Way, total_bytes: int) -> None:
    """Begin the write stop of a move that can be made."""
    record = _on_way(tx, name, uid, way)
    if record is None or record.deleting:
        return
    status = _copy(record.status)
    move = status.database_move
    move.state, move.total_bytes, move.leftover_server = DatabaseMove.COPYING, total_bytes, way.target
    move.stop_time.FromMicroseconds(tx.now)
    operations.settle(tx, tx.put_app(replace(record, status=status)))


def progressed(tx: Transaction, name: str, uid: str, way: Way, copied_bytes: int) -> None:
    """Store how far a copy is."""
    record = _on_way(tx, name, uid, way)
    if record is not None:
        status = _copy(record.status)
        status.database_move.copied_bytes = copied_bytes
        operations.settle(tx, tx.put_app(replace(record, status=status)))


def called_off(tx: Transaction, name: str, uid: str, way: Way, why: SupervisorError) -> None:
    """Leave a database where it is."""
    record = _on_way(tx, name, uid, way)
    stays = database_moves.call_off(tx, record, why.reason, why.message) if record is not None else None
    if stays is not None:
        operations.settle(tx, stays)


def arrived(tx: Transaction, name: str, uid: str, way: Way, copied_bytes: int) -> bool:
    """Have the database be the target's from now on, and what is to run begin there; False if it is not to.

    All of it has to be there, compared, and no login of the app may have been open since.
    """
    record = _on_way(tx, name, uid, way)
    if record is None or record.deleting or way.state != DatabaseMove.COPYING:
        return False
    if tx.database_server(way.target) is None:
        return False
    spec = App()
    spec.CopyFrom(record.spec)
    spec.database.postgres.server = way.target
    status = _copy(record.status)
    move = status.database_move
    move.state, move.copied_bytes, move.leftover_server = DatabaseMove.ARRIVED, copied_bytes, way.source
    if spec.desired_state == App.STOPPED:
        move.stop_duration.FromMicroseconds(max(0, tx.now - way.stop_time))
    status.reconciling = True
    record = replace(record, spec=spec, status=status, generation=record.generation + 1, update_time=tx.now)
    record = tx.put_app(_begin_anew(tx, record, f"Its database is on {way.target}."))
    operations.settle(tx, record)
    return True


def _begin_anew(tx: Transaction, record: AppRecord, why: str) -> AppRecord:
    """Replace what served by the same under new epochs; none of it runs. What was to come in comes after."""
    placements = tx.placements_of(record.name)
    several, epoch, at_target = is_several(record), newest_epoch(record), False
    epoch = max([epoch, *(it.epoch for it in placements)])
    for placement in placements:
        if placement.role not in (Role.CURRENT, Role.INCOMING):
            continue
        tx.put_placement(replace(placement, role=Role.OUTGOING, why=why, since=tx.now))
        if placement.role is Role.CURRENT:
            epoch += 1
            at_target = at_target or placement.version == record.target
            tx.put_placement(_on_new_server(placement, record, epoch, why, tx.now))
    if several:
        record.status.newest_epoch = epoch
        return record
    target = Version(record.target.generation, epoch if at_target else epoch + 1)
    return replace(record, target=target, failed=target if record.failed == record.target else None)


def _on_new_server(
    placement: PlacementRecord, record: AppRecord, epoch: int, why: str, now: int
) -> PlacementRecord:
    spec = spec_of(placement)
    spec.database.CopyFrom(record.spec.database)
    return replace(placement, epoch=epoch, spec=pinned(spec), why=why, since=now)


def confirmed(tx: Transaction, name: str, uid: str, way: Way) -> None:
    """Store that an app has begun on its database's new server, and tell what that took."""
    record = _on_way(tx, name, uid, way)
    if record is None or way.state != DatabaseMove.ARRIVED:
        return
    status = _copy(record.status)
    move = status.database_move
    move.state = DatabaseMove.DONE
    if not move.HasField("stop_duration"):
        move.stop_duration.FromMicroseconds(max(0, tx.now - way.stop_time))
    record = tx.put_app(replace(record, status=status))
    operations.settle(tx, record)
    seconds = move.stop_duration.ToMicroseconds() / 1e6
    message = (
        f"From {way.source} to {way.target}: {move.copied_bytes:,} bytes, compared with what was there; "
        f"writes were stopped for {seconds:.2f} s."
    )
    add_event(tx, record, "DatabaseMoved", actor=SYSTEM, message=message)


def dropped(tx: Transaction, name: str, uid: str, server: str) -> None:
    """Store that what a move has left on a server is gone."""
    record = tx.app(name)
    if record is None or record.uid != uid or record.status.database_move.leftover_server != server:
        return
    status = _copy(record.status)
    move = status.database_move
    move.leftover_server = ""
    if move.state == DatabaseMove.DONE:
        move.reason, move.message = "", ""
    record = tx.put_app(replace(record, status=status))
    add_event(tx, record, "DatabaseCopyDropped", actor=SYSTEM, message=f"On {server}.")


def not_dropped(tx: Transaction, name: str, uid: str, server: str, why: SupervisorError) -> None:
    """Store what keeps what a move has left from being dropped; it is tried again."""
    record = tx.app(name)
    if record is None or record.uid != uid or record.status.database_move.leftover_server != server:
        return
    move = record.status.database_move
    told = sentences(f"What is left on {server} is not dropped yet", why.message)
    if move.state != DatabaseMove.DONE or (move.reason, move.message) == (why.reason, told):
        return  # of one that was called off the reason of that is worth more
    status = _copy(record.status)
    status.database_move.reason, status.database_move.message = why.reason, told
    record = tx.put_app(replace(record, status=status))
    add_event(tx, record, "DatabaseFailed", actor=SYSTEM, reason=why.reason, message=told)


def _on_way(tx: Transaction, name: str, uid: str, way: Way) -> AppRecord | None:
    record = tx.app(name)
    return record if record is not None and record.uid == uid and Way.of(record) == way else None


def _copy(status: App) -> App:
    copy = App()
    copy.CopyFrom(status)
    return copy

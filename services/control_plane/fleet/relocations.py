"""What the operations that move many apps have in common, inside transactions.

Each move is as MoveApp makes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from appsupervisor.fleet.v1 import fleet_pb2 as pb
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition
from services.control_plane.catalog.changes import add_event
from services.control_plane.operations import operations
from services.control_plane.operations.moves import place_elsewhere
from services.control_plane.placement.scale import replica_on
from services.control_plane.rules.conditions import get_condition
from services.control_plane.store.interface import Transaction
from services.control_plane.store.records import AppRecord, OperationRecord, PlacementRecord, Role, Version
from services.rpc.errors import invalid_field
from services.spec.scalars import SECOND, duration_violations

DEFAULT_SECONDS = 600.0

WIDTH = 8
"""Apps that one operation has started elsewhere at a time."""

Metadata = pb.DrainNodeMetadata | pb.RebalanceEnvironmentMetadata


@dataclass(frozen=True, slots=True)
class Step:
    """What came of a step."""

    begun: tuple[str, ...] = ()
    """Apps whose move was begun."""


def seconds_of(request: pb.DrainNodeRequest | pb.RebalanceEnvironmentRequest) -> float:
    """Return the seconds after which an operation is given up. Raises SupervisorError INVALID_FIELD."""
    if not request.HasField("timeout"):
        return DEFAULT_SECONDS
    if wrong := duration_violations("timeout", request.timeout, SECOND, 86_400 * SECOND):
        raise invalid_field("timeout", wrong[0].rule)
    return request.timeout.ToMicroseconds() / 1e6


def new_operation(tx: Transaction, metadata: Metadata, seconds: float) -> OperationRecord:
    """Return a new operation, not yet stored, on what its metadata names; they take its times."""
    deadline = tx.now + int(seconds * 1e6)
    metadata.step = "accepted"
    metadata.create_time.FromMicroseconds(tx.now)
    metadata.deadline_time.FromMicroseconds(deadline)
    return OperationRecord(
        name=operations.new_name(tx),
        app=metadata.target,
        app_uid="",
        verb=metadata.verb,
        goal=Version(0, 0),
        metadata=metadata,
        create_time=tx.now,
        deadline=deadline,
    )


def begin_move(tx: Transaction, record: AppRecord, node: str, reason: str, why: str, *, source: str) -> None:
    """Have an app, of several replicas that on `source`, start on another node, and its timeline tell why."""
    replica = replica_on(tx.placements_of(record.name), source) or 0
    changed, _ = place_elsewhere(tx, record, node, why, replica=replica)
    add_event(tx, changed, "MoveRequested", actor="system", reason=reason, message=why)


def is_coming(placements: Iterable[PlacementRecord], source: str) -> bool:
    """Tell whether an app, of several replicas the one on `source`, is being started on another node."""
    known = list(placements)
    here = {it.replica for it in known if it.node == source}
    coming = [it for it in known if it.role is Role.INCOMING and it.node != source]
    return any(it.replica in here for it in coming) or (bool(coming) and not here)


def why_it_stayed(record: AppRecord) -> tuple[str, str]:
    """Return why an app that was to start elsewhere goes on where it was: a reason, and a sentence."""
    updated = get_condition(record.status.conditions, "Updated")
    reason = updated.reason if updated is not None else ""
    message = updated.message if updated is not None and updated.status == Condition.UNMET else ""
    return reason, message or "It was tried elsewhere, and stayed here."

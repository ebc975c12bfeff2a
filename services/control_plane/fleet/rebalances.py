"""A rebalance: its plan from the mirror, pinned by a command, then brought on a step at a time, move by move.

What has changed since the plan was made is looked at again as each move is begun.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile

from google.longrunning.operations_pb2 import Operation

from appsupervisor.fleet.v1 import fleet_pb2 as pb
from services.control_plane.catalog.candidates import asked_of, candidate, neighbours_of
from services.control_plane.fleet.relocations import (
    WIDTH,
    Step,
    begin_move,
    is_coming,
    new_operation,
    why_it_stayed,
)
from services.control_plane.operations import operations
from services.control_plane.operations.moves import bound_by, takes_data_along
from services.control_plane.placement.balance import Movable, Move, plan_moves
from services.control_plane.placement.choice import Candidates, Neighbours, obstacles, wish_of
from services.control_plane.placement.scale import is_several
from services.control_plane.rules.sentences import counted
from services.control_plane.store.app_labels import pairs
from services.control_plane.store.interface import Transaction
from services.control_plane.store.mirror import Mirror
from services.control_plane.store.records import (
    REBALANCE,
    AppRecord,
    NodeRecord,
    OperationRecord,
    PlacementRecord,
    Role,
)
from services.rpc.errors import CODES, SupervisorError

MOST_MOVES = 1_000

Planned = pb.PlannedMove
Metadata = pb.RebalanceEnvironmentMetadata
AHEAD = (Planned.PLANNED, Planned.MOVING)


def plan_of(mirror: Mirror, environment: str, tolerance: int, most: int) -> list[Move]:
    """Return the moves that even out an environment. Safe from any thread; takes long of many apps."""
    known = mirror.environments.get(environment)
    if known is None or known.environment.cordoned:
        return []  # nothing moves within a cordoned one
    prefix = f"{environment}/nodes/"
    records = list(takewhile(lambda it: it.name.startswith(prefix), mirror.nodes.values(prefix)))
    nodes = ((it.name, it.node, it.node.state == pb.Node.READY) for it in records)
    taken = Neighbours(taken=mirror.exclusive_nodes())
    seen = Candidates().of(nodes, mirror.loads, taken, {})
    return plan_moves(
        environment, seen, lambda it: _movable(mirror, it, records), tolerance=tolerance, most=most
    )


def _movable(mirror: Mirror, node: str, nodes: Sequence[NodeRecord]) -> Iterator[Movable]:
    zones = {it.name: it.node.zone for it in nodes}
    # Of the others it is enough that there is one.
    nodes = [it for it in nodes if it.name == node] + [it for it in nodes if it.name != node][:1]
    for name in sorted(mirror.apps_on(node)):
        record, placements = mirror.apps.get(name), mirror.placements_of(name)
        if record is None or _why_not(record, placements, node, nodes):
            continue
        spec = record.spec
        siblings = [it.node for it in placements if it.node != node]
        yield Movable(
            name,
            wish_of(spec, environment_cordoned=False, siblings=siblings),
            neighbours_of(mirror, spec, name),
            pairs(spec.labels),
            pairs(spec.anti_affinity),
            full_zones=_fuller(Counter(zones.get(it, "") for it in siblings), zones.get(node, "")),
            takes_data=takes_data_along(record, placements),
        )


def _fuller(copies: Counter[str], zone: str) -> frozenset[str]:
    """Return the zones that have more of some copies than a zone has."""
    return frozenset(it for it, count in copies.items() if count > copies[zone])


def _why_not(
    record: AppRecord, placements: Sequence[PlacementRecord], node: str, nodes: Sequence[NodeRecord]
) -> tuple[str, str] | None:
    """Return why an app is not moved from a node, a reason and a sentence; or None."""
    if record.deleting:
        return "APP_DELETING", "It is being deleted."
    if bound := bound_by(record, placements, nodes):
        return bound.reason, bound.message
    settled = all(it.role is Role.CURRENT for it in placements)
    here = [it.node for it in placements].count(node) == 1 and (is_several(record) or len(placements) == 1)
    if not settled or not here or record.spec.exclusive:
        return "CHANGING", f"It is not on {node} any more, or is being changed, or is to be alone."
    return None


def begin(
    tx: Transaction, environment: str, moves: Sequence[Move], actor: str, seconds: float
) -> OperationRecord:
    """Store a new rebalance with its plan, and return it; with nothing to do it is done."""
    metadata = Metadata(target=environment, verb=REBALANCE, actor=actor)
    for move in moves:
        metadata.moves.add(
            app=move.app,
            source_node=move.source,
            destination_node=move.destination,
            state=Planned.PLANNED,
            message=move.why,
        )
    operation = new_operation(tx, metadata, seconds)
    if not moves:
        return _ended(tx, operation)
    tx.put_operation(operation)
    return operation


def only_planned(tx: Transaction, operation: OperationRecord) -> Operation:
    """Return an operation that is only to tell its plan."""
    return operations.present(operation if operation.done else _ended(tx, operation))


def advance(tx: Transaction, mirror: Mirror, name: str, spent: Collection[str]) -> Step:
    """Bring a rebalance on by one step; no app is moved twice in one, and so `spent` is nothing to it."""
    operation = tx.operation(name)
    if operation is None or operation.done:
        return Step()
    if tx.environment(operation.app) is None:
        why = f"{operation.app} was deleted."
        gone = SupervisorError("OPERATION_SUPERSEDED", why, resource=operation.app)
        operations.end(tx, operation, gone, step="superseded")
        return Step()
    assert isinstance(operation.metadata, Metadata)
    metadata = operations.copied(operation.metadata)
    metadata.step = "moving"
    begun = _look(tx, mirror, metadata.moves)
    left = sum(it.state in AHEAD for it in metadata.moves)
    metadata.progress_percent = 100 * (len(metadata.moves) - left) // max(1, len(metadata.moves))
    updated = replace(operation, metadata=metadata)
    if not left:
        _end(tx, updated, metadata)
    elif metadata != operation.metadata:
        tx.put_operation(updated)
    return Step(tuple(begun))


def _look(tx: Transaction, mirror: Mirror, moves: Sequence[Planned]) -> list[str]:
    """See how far each move is, begin as many as may be under way, and return the apps of those."""
    begun = []
    for move in moves:
        if move.state == Planned.MOVING:
            _follow(tx, move)
    under_way = sum(it.state == Planned.MOVING for it in moves)
    for move in moves:
        if under_way >= WIDTH:
            break
        if move.state == Planned.PLANNED and _is_begun(tx, mirror, move):
            under_way += 1
            begun.append(move.app)
    return begun


def _follow(tx: Transaction, move: Planned) -> None:
    """Note how far a move is that was begun."""
    record, placements = tx.app(move.app), tx.placements_of(move.app)
    if record is None or record.deleting:
        _note(move, Planned.LEFT_OUT, "APP_DELETING", "It is being deleted.")
        return
    if is_coming(placements, move.source_node):
        return
    gone = all(it.node != move.source_node or it.role is Role.LOST for it in placements)
    arrived = any(it.role is Role.CURRENT and it.node in _ends(record, move, placements) for it in placements)
    if gone and (arrived or is_several(record)):
        _note(move, Planned.MOVED, "", move.message)
    elif not arrived:  # else it has taken over, and the one before is not gone yet
        _note(move, Planned.FAILED, *why_it_stayed(record))


def _ends(record: AppRecord, move: Planned, placements: Sequence[PlacementRecord]) -> set[str]:
    """Return where what was moved may serve by now: of several replicas others are elsewhere all the time."""
    if is_several(record):
        return {move.destination_node}
    return {it.node for it in placements} - {move.source_node}


def _is_begun(tx: Transaction, mirror: Mirror, move: Planned) -> bool:
    """Begin a move and tell so, unless something speaks against it by now: then that is noted."""
    record = tx.app(move.app)
    if record is None:
        _note(move, Planned.LEFT_OUT, "APP_NOT_FOUND", "It was deleted.")
        return False
    nodes = tx.nodes(record.spec.environment)
    if wrong := _why_not(record, tx.placements_of(move.app), move.source_node, nodes):
        _note(move, Planned.LEFT_OUT, *wrong)
        return False
    node = candidate(tx, mirror, record.spec, move.destination_node)
    if node is None:
        _note(move, Planned.LEFT_OUT, "NODE_NOT_FOUND", f"{move.destination_node} was deleted.")
        return False
    siblings = [it.node for it in tx.placements_of(move.app) if it.node != move.source_node]
    if found := obstacles(asked_of(tx, record.spec, siblings), node):
        _note(move, Planned.LEFT_OUT, found[0].reason, f"{move.destination_node}: {found[0].message}")
        return False
    move.state = Planned.MOVING
    begin_move(
        tx,
        record,
        move.destination_node,
        "REBALANCED",
        f"To even out: {move.message}",
        source=move.source_node,
    )
    return True


def _note(move: Planned, state: Planned.State.ValueType, reason: str, message: str) -> None:
    move.state, move.reason, move.message = state, reason, message


def _end(tx: Transaction, operation: OperationRecord, metadata: Metadata) -> None:
    failed = [it for it in metadata.moves if it.state == Planned.FAILED]
    if not failed:
        _ended(tx, operation)
        return
    reason = failed[0].reason if failed[0].reason in CODES else "APP_STARTUP_FAILED"
    apps = ", ".join(it.app for it in failed[:3]) + (", …" if len(failed) > 3 else "")
    why = f"{counted(len(failed), 'move')} failed: {apps}. {failed[0].message}"
    failure = SupervisorError(
        reason, why, resource=operation.app,
        metadata={"count": str(len(failed)), "apps": apps, "detail": failed[0].message},
    )  # fmt: skip
    operations.end(tx, operation, failure, step="failed")


def _ended(tx: Transaction, operation: OperationRecord) -> OperationRecord:
    assert isinstance(operation.metadata, Metadata)
    return operations.end(
        tx, operation, None, response=pb.RebalanceEnvironmentResponse(moves=operation.metadata.moves)
    )

"""A drain inside transactions: begun by a command, then brought on a step at a time until the node is empty.

Each step looks at all that is on the node, begins as many moves as may be under way, and tells how far it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import replace

from appsupervisor.fleet.v1.fleet_pb2 import DrainNodeMetadata
from services.control_plane.catalog.candidates import asked_of, candidates, siblings_of
from services.control_plane.catalog.moves import no_node
from services.control_plane.fleet.relocations import (
    WIDTH,
    Step,
    begin_move,
    is_coming,
    new_operation,
    why_it_stayed,
)
from services.control_plane.fleet.views import shown_node
from services.control_plane.operations import operations
from services.control_plane.operations.moves import bound_by
from services.control_plane.placement.assignment import ENDING
from services.control_plane.placement.choice import choose
from services.control_plane.placement.scale import replica_on
from services.control_plane.rules.sentences import counted
from services.control_plane.store.interface import Transaction
from services.control_plane.store.mirror import Mirror
from services.control_plane.store.records import (
    DRAIN,
    AppRecord,
    NodeRecord,
    OperationRecord,
    PlacementRecord,
    Role,
)
from services.rpc.errors import CODES, SupervisorError

TOLD = 100
"""Apps that an operation names."""

_COMING = "It is being started elsewhere."

Result = DrainNodeMetadata.AppResult


def begin(tx: Transaction, record: NodeRecord, actor: str, seconds: float) -> OperationRecord:
    """Store a new drain of a node, and return it; of an empty node it is done."""
    apps = len(_on(tx, record.name))
    metadata = DrainNodeMetadata(target=record.name, verb=DRAIN, app_count=apps, left_count=apps, actor=actor)
    operation = new_operation(tx, metadata, seconds)
    if not apps:
        return operations.end(tx, operation, None, node=record.node)
    tx.put_operation(operation)
    return operation


def advance(tx: Transaction, mirror: Mirror, name: str, spent: Collection[str]) -> Step:
    """Bring a drain on by one step; apps in `spent` have failed to move, and are left where they are."""
    operation = tx.operation(name)
    if operation is None or operation.done:
        return Step()
    node = tx.node(operation.app)
    if node is None:
        gone = SupervisorError(
            "OPERATION_SUPERSEDED", f"{operation.app} was deleted.", resource=operation.app
        )
        operations.end(tx, operation, gone, step="superseded")
        return Step()
    drain = _Drain(tx, mirror, node.name, spent)
    results = drain.look()
    left = len(results)
    metadata = operation.metadata
    assert isinstance(metadata, DrainNodeMetadata)
    metadata = operations.copied(metadata)
    metadata.step, metadata.left_count = "moving", left
    total = max(metadata.app_count, left)
    metadata.progress_percent = 100 * (total - left) // total if total else 100
    del metadata.app_results[:]
    results.sort(key=lambda it: (-it.state, it.app))  # those that are stuck first
    metadata.app_results.extend(results[:TOLD])
    updated = replace(operation, metadata=metadata)
    if not left:
        operations.end(tx, updated, None, node=shown_node(mirror, node, whole=False))
    elif all(it.state == Result.STUCK for it in results):
        operations.end(tx, updated, _stuck(node.name, results), step="failed")
    elif metadata != operation.metadata:
        tx.put_operation(updated)
    return Step(tuple(drain.begun))


class _Drain:
    """One look at what is on a node."""

    def __init__(self, tx: Transaction, mirror: Mirror, node: str, spent: Collection[str]) -> None:
        self._tx = tx
        self._mirror = mirror
        self._node = node
        self._spent = spent
        self._more: Counter[str] = Counter()
        self._under_way = 0
        self._by_environment: dict[str, list[NodeRecord]] = {}
        self.begun: list[str] = []

    def look(self) -> list[Result]:
        """Return what becomes of each app on the node, and begin moves."""
        found = []
        waiting: list[tuple[AppRecord, list[PlacementRecord]]] = []
        for app in self._tx.apps_on(self._node):
            record, placements = self._tx.app(app), self._tx.placements_of(app)
            if record is None or not _is_there(placements, self._node):
                continue
            result = self._under_way_or_stuck(record, placements)
            if result is not None:
                found.append(result)
                self._under_way += result.state == Result.MOVING and is_coming(placements, self._node)
            else:
                waiting.append((record, placements))
        return found + [self._move(record, placements) for record, placements in waiting]

    def _under_way_or_stuck(self, record: AppRecord, placements: list[PlacementRecord]) -> Result | None:
        here = [it for it in placements if it.node == self._node and it.role is not Role.LOST]
        if record.deleting:
            return Result(
                app=record.name, state=Result.WAITING, reason="APP_DELETING", message="It is being deleted."
            )
        if all(it.role in ENDING for it in here):
            return Result(
                app=record.name, state=Result.MOVING, message="It has left, and is being drained here."
            )
        if is_coming(placements, self._node):
            return Result(app=record.name, state=Result.MOVING, message=_COMING)
        if bound := bound_by(record, placements, self._nodes(record.spec.environment)):
            return _told(record, Result.STUCK, bound)
        if record.name in self._spent:
            reason, message = why_it_stayed(record)
            return Result(app=record.name, state=Result.STUCK, reason=reason, message=message)
        return None

    def _nodes(self, environment: str) -> list[NodeRecord]:
        if environment not in self._by_environment:
            self._by_environment[environment] = self._tx.nodes(environment)
        return self._by_environment[environment]

    def _move(self, record: AppRecord, placements: list[PlacementRecord]) -> Result:
        if self._under_way >= WIDTH:
            return Result(app=record.name, state=Result.WAITING, message="It waits for its turn.")
        known = candidates(self._tx, self._mirror, record.spec, self._more)
        replica = replica_on(placements, self._node) or 0
        wish = asked_of(self._tx, record.spec, siblings_of(placements, replica))
        choice = choose(wish, [it for it in known if it.name != self._node])
        if not choice.node:
            return _told(record, Result.WAITING, no_node(record, choice.reason))
        self._under_way += 1
        self._more[choice.node] += 1
        self.begun.append(record.name)
        why = f"{self._node} is being drained. On {choice.node}: {choice.reason}."
        begin_move(self._tx, record, choice.node, "NODE_DRAINED", why, source=self._node)
        return Result(app=record.name, state=Result.MOVING, message=_COMING)


def _on(tx: Transaction, node: str) -> list[str]:
    """Return the apps that are on a node, but for those that were given up with it."""
    return [app for app in tx.apps_on(node) if _is_there(tx.placements_of(app), node)]


def _is_there(placements: Collection[PlacementRecord], node: str) -> bool:
    return any(it.node == node and it.role is not Role.LOST for it in placements)


def _told(record: AppRecord, state: Result.State.ValueType, why: SupervisorError) -> Result:
    return Result(app=record.name, state=state, reason=why.reason, message=why.message)


def _stuck(node: str, results: list[Result]) -> SupervisorError:
    first = results[0]
    reason = first.reason if first.reason in CODES else "APP_STARTUP_FAILED"
    apps = ", ".join(it.app for it in results[:3]) + (", …" if len(results) > 3 else "")
    return SupervisorError(
        reason,
        f"Left on {node}: {counted(len(results), 'app')}, {apps}. {first.message}",
        resource=node,
        metadata={"count": str(len(results)), "apps": apps, "detail": first.message},
    )

"""MoveApp: which node an app is to go to, and that it goes.

The choice is placement's; this replica's mirror tells which nodes the leader hears.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from services.control_plane.catalog.candidates import asked_of, candidates, siblings_of
from services.control_plane.operations import operations
from services.control_plane.operations.moves import bound_by, place_elsewhere
from services.control_plane.placement.choice import choose, obstacles
from services.control_plane.placement.scale import is_several, replica_on, wanted_replicas
from services.control_plane.rules.names import node_name, parse_node_name
from services.control_plane.store.interface import Transaction
from services.control_plane.store.mirror import Mirror
from services.control_plane.store.records import AppRecord, OperationRecord, PlacementRecord, Role, home_of
from services.rpc.errors import Code, SupervisorError, invalid_field


def parsed_node(node: str, field: str) -> str:
    """Return the name of the node that a move names, empty for any. Raises SupervisorError INVALID_FIELD."""
    return node_name(*parse_node_name(node, field)) if node else ""


def move(
    tx: Transaction, mirror: Mirror, record: AppRecord, node: str, actor: str, *, source_node: str = ""
) -> tuple[AppRecord, OperationRecord]:
    """Begin to move an app to a node, or to any other than its own; return it and the operation.

    Of several replicas, that which is on `source_node`.

    Raises SupervisorError DATA_ON_NODE, NODE_NOT_ELIGIBLE, NO_NODE_AVAILABLE, NODE_NOT_FOUND.
    """
    every = tx.placements_of(record.name)
    replica = _replica_from(record, every, source_node)
    placements = [it for it in every if it.replica == replica]
    staying = [it for it in placements if it.role in (Role.CURRENT, Role.INCOMING)]
    home = next((it for it in staying if it.role is Role.CURRENT), next(iter(staying), None))
    if home is not None and home.node == node and len(staying) == 1:
        return record, operations.begin(tx, "move", record, actor, move=(node, home.version))
    if bound := bound_by(record, placements, tx.nodes(record.spec.environment)):
        raise bound
    siblings = siblings_of(every, replica)
    chosen, why = _destination(tx, mirror, record, node, home_of(staying), siblings)
    if chosen == home_of(staying):
        # It is on its way elsewhere, or to another version: what is there is to be what it becomes.
        raise SupervisorError(
            "NODE_NOT_ELIGIBLE",
            f"{record.name} is being moved or changed; it serves on {node} until that is done.",
            resource=node,
            metadata={"app": record.name, "obstacle": "CHANGING"},
        )
    changed, version = place_elsewhere(tx, record, chosen, why, replica=replica)
    return changed, operations.begin(tx, "move", changed, actor, move=(chosen, version))


def _replica_from(record: AppRecord, placements: Sequence[PlacementRecord], node: str) -> int:
    """Return the number of the replica that is to move. Raises SupervisorError INVALID_FIELD."""
    staying = [it for it in placements if it.role in (Role.CURRENT, Role.INCOMING)]
    here = sorted({it.node for it in staying})
    if not node and not is_several(record):
        return 0
    if not node and wanted_replicas(record) == 1:
        # What is tried beside the only one is not meant.
        staying.sort(key=lambda it: it.node in record.status.canary.nodes)
        return staying[0].replica if staying else next((it.replica for it in placements), 0)
    if not node and len({it.replica for it in placements}) > 1:
        told = ", ".join(here)
        raise invalid_field(
            "source_node", f"must be set for an app that has several replicas; they are on {told}"
        )
    replica = replica_on(placements, node or next(iter(here), ""))
    if replica is None:
        told = ", ".join(here) or "no node"
        raise invalid_field("source_node", f"must be a node that the app is on: {told}")
    return replica


def _destination(
    tx: Transaction, mirror: Mirror, record: AppRecord, node: str, home: str, siblings: Iterable[str]
) -> tuple[str, str]:
    environment = record.spec.environment
    if node and not node.startswith(f"{environment}/"):
        raise invalid_field("node", f"must be a node of {environment}, the app's environment")
    wish = asked_of(tx, record.spec, siblings)
    known = [it for it in candidates(tx, mirror, record.spec) if it.name != home]
    if not node:
        choice = choose(wish, known)
        if not choice.node:
            raise no_node(record, choice.reason)
        return choice.node, f"Moved to {choice.node}: {choice.reason}."
    named = next((it for it in known if it.name == node), None)
    if named is None and node != home:
        raise SupervisorError(
            "NODE_NOT_FOUND", f"{node} does not exist.", code=Code.FAILED_PRECONDITION, resource=node
        )
    wrong = obstacles(wish, named) if named is not None else []
    if wrong:
        told = wrong[0]
        raise SupervisorError(
            "NODE_NOT_ELIGIBLE",
            f"{node} cannot take {record.name}. {told.message} {told.remedy}",
            resource=node,
            metadata={
                "app": record.name,
                "obstacle": told.reason,
                "why": told.message,
                "remedy": told.remedy,
            },
        )
    return node, f"Moved to {node}, as was asked for."


def no_node(record: AppRecord, why: str) -> SupervisorError:
    """Return the error for an app that can go nowhere."""
    return SupervisorError("NO_NODE_AVAILABLE", why, code=Code.FAILED_PRECONDITION, resource=record.name)

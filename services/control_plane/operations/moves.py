"""A move inside transactions: begun by a new placement on another node, and given up by taking it back.

Where the placement goes from there is what every swap does; how far it is decides how its operation ends.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum, auto

from appsupervisor.catalog.v1.app_catalog_pb2 import App, DataMove
from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition, Instance
from services.control_plane.placement.assignment import ENDING, pinned
from services.control_plane.placement.data_travel import data_home
from services.control_plane.placement.scale import is_several, newest_epoch
from services.control_plane.rules.conditions import set_condition
from services.control_plane.store.interface import Transaction
from services.control_plane.store.records import (
    AppRecord,
    NodeRecord,
    OperationRecord,
    PlacementRecord,
    Role,
    Version,
    current_of,
    home_of,
    timestamp,
)
from services.rpc.errors import SupervisorError
from services.spec.availability import keeps_data_on_node


class Stage(Enum):
    """How far a move is."""

    COMING = auto()
    """What is to take over is not ready yet."""
    DRAINING = auto()
    """It has taken over, and the one before is not gone yet."""
    DONE = auto()
    CALLED_OFF = auto()
    """What was to take over has failed, or something else is wanted by now."""


def takes_data_along(record: AppRecord, placements: Sequence[PlacementRecord]) -> bool:
    """Tell whether an app keeps data on the node that it is on, which has to go with it."""
    staying = [it for it in placements if it.role is not Role.LOST]
    if not staying or not keeps_data_on_node(record.spec):
        return False
    # What has never told that it ran may do so this moment, unless it was stopped.
    return record.status.state != Instance.STOPPED or any(it.has_data for it in staying)


def bound_by(
    record: AppRecord, placements: Sequence[PlacementRecord], nodes: Sequence[NodeRecord]
) -> SupervisorError | None:
    """Return what keeps an app on the node that it is on, or None; `nodes` are those of its environment."""
    if not takes_data_along(record, placements):
        return None
    staying = [it for it in placements if it.role is not Role.LOST]
    home = data_home(staying)
    name = home.node if home is not None else home_of(staying)
    heard = any(it.name == name and it.node.state == Node.READY for it in nodes)
    if heard and any(it.name != name for it in nodes):
        return None
    why = "there is no other node in its environment" if heard else "that node cannot be heard"
    return SupervisorError(
        "DATA_ON_NODE",
        f"{record.name} keeps its SQLite database on {name}; it exists nowhere else, and {why}.",
        resource=record.name,
        metadata={"node": name, "database": "sqlite", "why": why},
    )


def place_elsewhere(
    tx: Transaction, record: AppRecord, node: str, why: str, *, replica: int = 0
) -> tuple[AppRecord, Version]:
    """Store that an app is to go to a node, and return it, and the version that is to run there.

    What serves goes, also where a newer version of the app was given up. The app must not be bound, nor be on
    that node. Its data goes with it: what comes in waits for that. Of several replicas one goes.
    """
    placements = tx.placements_of(record.name)
    if is_several(record):
        return _place_one(tx, record, [it for it in placements if it.replica == replica], node, why)
    along = takes_data_along(record, placements)
    source = _own_data(tx, record, along=along)
    placements = tx.placements_of(record.name)
    current = current_of(placements)
    epoch = max([record.target.epoch, *(it.epoch for it in placements)]) + 1
    target = Version(record.target.generation, epoch)
    given_up = record.failed == record.target and current is not None
    spec = pinned(record.spec)
    version, failed = target, record.failed
    if given_up and current is not None and current.generation != target.generation:
        version, failed, spec = Version(current.generation, epoch), target, current.spec
    elif given_up:
        failed = None
    at_once = record.spec.desired_state == App.STOPPED and not along
    for placement in placements:
        if placement.role is Role.INCOMING or (at_once and placement.role is Role.CURRENT):
            why_gone = f"{version.instance_id} is to come on {node} instead."
            tx.put_placement(replace(placement, role=Role.OUTGOING, why=why_gone, since=tx.now))
    tx.put_placement(
        PlacementRecord(
            app=record.name,
            app_uid=record.uid,
            replica=0,
            generation=version.generation,
            epoch=epoch,
            node=sys.intern(node),
            role=Role.CURRENT if at_once else Role.INCOMING,
            spec=spec,
            why=why,
            has_data=source == node,
            since=tx.now,
        )
    )
    status = App()
    status.CopyFrom(record.status)
    status.reconciling = True
    if source and source != node:
        status.data_move.CopyFrom(
            DataMove(
                state=DataMove.COPYING, source_node=source, target_node=node, progress_time=timestamp(tx.now)
            )
        )
    changed = replace(record, target=target, failed=failed, status=status)
    return tx.put_app(changed), version


def _place_one(
    tx: Transaction, record: AppRecord, placements: Sequence[PlacementRecord], node: str, why: str
) -> tuple[AppRecord, Version]:
    """Store that one of several replicas is to go to a node; it goes as it serves, or comes, now."""
    serving = current_of(placements) or next(it for it in placements if it.role is Role.INCOMING)
    epoch = newest_epoch(record) + 1
    stopped = record.spec.desired_state == App.STOPPED
    gone = replace(serving, node=sys.intern(node), epoch=epoch, why=why, has_data=False, since=tx.now)
    moved = replace(gone, role=Role.CURRENT if stopped else Role.INCOMING)
    for placement in placements:
        if placement.role is Role.INCOMING or (stopped and placement.role is Role.CURRENT):
            why_gone = f"{moved.instance_id} is to come on {node} instead."
            tx.put_placement(replace(placement, role=Role.OUTGOING, why=why_gone, since=tx.now))
    tx.put_placement(moved)
    status = App()
    status.CopyFrom(record.status)
    status.reconciling, status.newest_epoch = True, epoch
    return tx.put_app(replace(record, status=status)), moved.version


def _own_data(tx: Transaction, record: AppRecord, *, along: bool) -> str:
    """Have one node own the data that goes along, or none where none does; return it."""
    staying = [it for it in tx.placements_of(record.name) if it.role is not Role.LOST]
    home = data_home(staying)
    if not along:
        for placement in staying:
            if placement.has_data:  # of another kind of database, which the app had before
                tx.put_placement(replace(placement, has_data=False))
        return ""
    if home is None:
        home = next(it for it in staying if it.node == home_of(staying))
        tx.put_placement(replace(home, has_data=True))
    return home.node


def stage_of(tx: Transaction, operation: OperationRecord, record: AppRecord) -> Stage:
    """Return how far a move is, by the app's placements."""
    placements = tx.placements_of(record.name)
    its = [it for it in placements if _is_its(operation, it)]
    current = current_of(its)
    if current is not None:
        others = [it for it in placements if it.replica == current.replica and it.role is not Role.LOST]
        waits = any(it.node != current.node and _is_heard(tx, it.node) for it in others)
        return Stage.DRAINING if waits else Stage.DONE
    return Stage.COMING if its else Stage.CALLED_OFF


def was_lost(tx: Transaction, operation: OperationRecord) -> bool:
    """Tell whether a move's instance was given up with its node."""
    node = getattr(operation.metadata, "node", "")
    return any(
        it.role is Role.LOST and it.node == node and it.epoch >= operation.goal.epoch
        for it in tx.placements_of(operation.app)
    )


def gone_too_far(tx: Transaction, operation: OperationRecord) -> str:
    """Return why a move cannot be taken back any more, as the end of a sentence; empty while it can."""
    its = [it for it in tx.placements_of(operation.app) if _is_its(operation, it)]
    current = current_of(its)
    if current is not None:
        return f"has taken over on {current.node}; what served before is drained"
    brought = next((it for it in its if it.has_data), None)
    if brought is not None and data_home(tx.placements_of(operation.app)) == brought:
        return f"has brought the app's data to {brought.node}; it is started there"
    return ""


def take_back(tx: Transaction, operation: OperationRecord, reason: str, why: str) -> None:
    """Have an app stay where it serves, unless the move's instance has taken over; `why` is one sentence."""
    record = tx.app(operation.app)
    if record is None or record.uid != operation.app_uid:
        return
    placements = tx.placements_of(record.name)
    coming = next((it for it in placements if it.role is Role.INCOMING and _is_its(operation, it)), None)
    if coming is None or coming.has_data:
        return  # it has taken over, or has the data at least
    if current_of(it for it in placements if it.replica == coming.replica) is None:
        return  # there is nothing to go back to
    if is_several(record):
        tx.put_placement(replace(coming, role=Role.OUTGOING, why=why, since=tx.now))
        return
    tx.put_placement(replace(coming, role=Role.OUTGOING, why=why, since=tx.now))
    status = App()
    status.CopyFrom(record.status)
    set_condition(status.conditions, "Updated", Condition.UNMET, reason, why, tx.now)
    if status.data_move.state == DataMove.COPYING:
        status.data_move.state, status.data_move.message = DataMove.CALLED_OFF, why
    tx.put_app(replace(record, failed=record.target, status=status))


def _is_its(operation: OperationRecord, placement: PlacementRecord) -> bool:
    """Tell whether a placement is a move's: its node may have asked for a higher epoch meanwhile."""
    there = placement.node == getattr(operation.metadata, "node", "")
    return there and placement.epoch >= operation.goal.epoch and placement.role not in ENDING


def _is_heard(tx: Transaction, name: str) -> bool:
    node = tx.node(name)
    return node is not None and node.node.state == Node.READY

"""The reconciler's transactions: what was decided and observed, stored with its events.

Each looks at the app again inside the transaction and does nothing if it is no longer the same app.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial

from appsupervisor.catalog.v1.app_catalog_pb2 import App, DeleteAppRequest
from appsupervisor.catalog.v1.retained_data_pb2 import RetainedData
from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition, Instance, RuntimeStatus
from services.control_plane.catalog import retention
from services.control_plane.catalog.changes import add_event
from services.control_plane.catalog.idempotency import SYSTEM
from services.control_plane.operations import operations
from services.control_plane.placement.assignment import ENDING, Assignment, assign
from services.control_plane.placement.autoscale import Decision
from services.control_plane.placement.data_travel import leaves_copy
from services.control_plane.placement.failover import serving_alone
from services.control_plane.placement.scale import (
    is_several,
    newest_epoch,
    wanted_replicas,
    with_newest_epoch,
)
from services.control_plane.placement.snapshot import Snapshot
from services.control_plane.reconciler import timeline
from services.control_plane.reconciler.observation import observe
from services.control_plane.rules.conditions import DATABASE_PROVIDED, DATABASE_READY, set_condition
from services.control_plane.rules.names import retained_data_name
from services.control_plane.rules.sentences import sentences
from services.control_plane.store.interface import CatalogStore, Transaction
from services.control_plane.store.records import AppRecord, NodeRecord, PlacementRecord, Role
from services.rpc.errors import SupervisorError


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What a pass has worked out of an app and its placements: the same comes of the same again."""

    app: AppRecord
    placements: tuple[PlacementRecord, ...]
    assigned: Assignment
    observed: AppRecord

    def holds_of(self, app: AppRecord, placements: Sequence[PlacementRecord]) -> bool:
        """Tell whether nothing has changed since."""
        if app.revision != self.app.revision or len(placements) != len(self.placements):
            return False
        return {(it.name, it.revision) for it in placements} == {
            (it.name, it.revision) for it in self.placements
        }


@dataclass(frozen=True, slots=True)
class Decided:
    """What was decided on an app, and stored."""

    app: AppRecord
    assigned: Assignment
    as_foreseen: bool
    """It came out as the pass had worked it out."""


def decided(tx: Transaction, name: str, uid: str, seen: Snapshot, foreseen: Foreseen) -> Decided | None:
    """Decide on an app by its newest record and what was seen of its nodes, and store what comes of it.

    Returns the app and its placements as they are then; None if it is no longer that app.
    """
    before = _same(tx, name, uid)
    if before is None:
        return None
    known = tx.placements_of(name)
    alone = serving_alone(before, known, tx.node)
    believed = seen.believing(lambda node: node not in alone and _is_lost(tx, node))
    as_foreseen = believed is seen and foreseen.holds_of(before, known)
    if as_foreseen:
        assigned, after = foreseen.assigned, foreseen.observed
    else:
        assigned = assign(before, known, believed, tx.now)
        after = observe(before, assigned, seen, tx.now)
    _check_places(tx, known, assigned)
    changed = after is not before and after != before
    if changed:
        after = tx.put_app(after)
    _put_placements(tx, after, known, assigned)
    _tell_move(tx, after, known, assigned)
    if changed:
        timeline.tell(tx, before, after, assigned)
    operations.settle(tx, after)
    return Decided(after, assigned, as_foreseen)


def renewed(
    tx: Transaction, name: str, uid: str, placement: PlacementRecord, known: int
) -> tuple[AppRecord, PlacementRecord] | None:
    """Move a placement to an epoch above `known`, its node's highest; return the app and the placement."""
    record = _same(tx, name, uid)
    current = {it.name: it for it in tx.placements_of(name)}.get(placement.name)
    if record is None or current is None:
        return None
    epoch = max(known, current.epoch, newest_epoch(record)) + 1
    why = f"Its node knew epoch {known} of the app already."
    above = replace(current, epoch=epoch, why=why, since=tx.now)
    if is_several(record):
        tx.delete_placement(current)
        tx.put_placement(above)
        return tx.put_app(with_newest_epoch(record, epoch)), above
    wanted = current.version == record.target
    target = replace(record.target, epoch=epoch)
    # One that was gone back to stays so: what was given up is given up under the new epoch, too.
    failed = target if record.failed == record.target and not wanted else record.failed
    tx.delete_placement(current)
    tx.put_placement(above)
    record = replace(record, target=target, failed=failed)
    tx.put_app(record)
    return record, above


def ended(
    tx: Transaction,
    name: str,
    uid: str,
    placements: Collection[PlacementRecord],
    policy: DeleteAppRequest.DataPolicy.ValueType,
) -> None:
    """Forget placements whose nodes have said that they are gone, and with the last one a deleted app.

    `policy` is what the app's data was ended by: another one asked for meanwhile is carried out first.
    """
    record = _same(tx, name, uid)
    if record is None or record.deleting != policy:
        return
    gone = {placement.name for placement in placements}
    left = 0
    known = tx.placements_of(name)
    for placement in known:
        if placement.name in gone and placement.role in ENDING:
            tx.delete_placement(placement)
            if record.deleting == DeleteAppRequest.RETAIN and not leaves_copy(placement, known):
                retention.keep(tx, record, placement)
            elif record.deleting:
                tx.delete_retained(retained_data_name(placement.node, record.uid))
        else:
            left += 1
    if not record.deleting:
        operations.settle(tx, _without(tx, record, placements))
    if not record.deleting or left:
        return
    tx.delete_app(name)
    operations.settle_removed(tx, record)
    add_event(tx, record, "Deleted", actor=SYSTEM, reason=DeleteAppRequest.DataPolicy.Name(policy))


def _without(tx: Transaction, record: AppRecord, placements: Collection[PlacementRecord]) -> AppRecord:
    """Store an app without the instances of placements that are over, whatever was told of them before."""
    gone = {(it.node, it.instance) for it in placements}
    left = [it for it in record.status.instances if (it.node, it.name) not in gone]
    if len(left) == len(record.status.instances):
        return record
    status = App()
    status.CopyFrom(record.status)
    del status.instances[:]
    status.instances.extend(left)
    return tx.put_app(replace(record, status=status))


def database_told(
    tx: Transaction, name: str, uid: str, failure: SupervisorError | None, *, made: bool = False
) -> None:
    """Store how the last thing that was to be done about an app's own database went; `made`: it is there."""
    record = _same(tx, name, uid)
    if record is None:
        return
    status = App()
    status.CopyFrom(record.status)
    if failure is None:
        news = set_condition(status.conditions, DATABASE_READY, Condition.MET, "Provided", "", tx.now)
        if made:
            template = record.spec.database.postgres.template
            told = f"It began as a copy of {template}." if template else ""
            news |= set_condition(status.conditions, DATABASE_PROVIDED, Condition.MET, "Made", told, tx.now)
    else:
        news = set_condition(
            status.conditions, DATABASE_READY, Condition.UNMET, failure.reason, failure.message, tx.now
        )
    if not news:
        return
    tx.put_app(replace(record, status=status))
    if failure is not None:
        add_event(tx, record, "DatabaseFailed", actor=SYSTEM, reason=failure.reason, message=failure.message)


def scaled(tx: Transaction, name: str, uid: str, decision: Decision) -> None:
    """Store how many replicas an app that scales by its requests is to have."""
    record = _same(tx, name, uid)
    if record is None or record.deleting or not record.spec.HasField("autoscale"):
        return
    before = wanted_replicas(record)
    status = App()
    status.CopyFrom(record.status)
    status.target_replicas = decision.replicas
    after = wanted_replicas(replace(record, status=status))
    if after == before:
        return
    status.reconciling = record.spec.desired_state != App.STOPPED
    tx.put_app(replace(record, status=status))
    message = sentences(f"From {before} to {after} replicas: {decision.why}")
    add_event(tx, record, "Scaled", actor=SYSTEM, message=message)


def taken_over(tx: Transaction, name: str, uid: str) -> None:
    """Store that an app's node has handed over the data that it begins with."""
    record = _same(tx, name, uid)
    if record is None or not record.status.retained_data:
        return
    message = f"{record.status.retained_data} is its own now."
    record = retention.taken_over(tx, record)
    add_event(tx, record, "DataAttached", actor=SYSTEM, message=message)
    operations.settle(tx, record)


def not_taken_over(tx: Transaction, name: str, uid: str, refusal: SupervisorError) -> None:
    """Store that an app's node will not hand over its data: the app stays without it."""
    record = _same(tx, name, uid)
    if record is None or not record.status.retained_data:
        return
    missing = refusal.reason == "DATA_MISSING"
    state = RetainedData.MISSING if missing else RetainedData.RETAINED
    record = tx.put_app(retention.given_back(tx, record, state, refusal.message))
    add_event(tx, record, "DataNotAttached", actor=SYSTEM, reason=refusal.reason, message=refusal.message)
    for operation in tx.open_operations(name, ("attach",)):
        operations.end(tx, operation, refusal, step="failed")


def left_behind(tx: Transaction, name: str, instance: Instance) -> None:
    """Tell in an app's timeline what an instance that has ended left on its node."""
    record = tx.app(name)
    if record is not None:
        error = instance.last_error
        add_event(
            tx, record, "Leaked", actor=SYSTEM, reason=error.reason, message=error.message,
            instance=instance.name,
        )  # fmt: skip


def node_heard(tx: Transaction, node: Node, status: RuntimeStatus) -> None:
    """Store that a node is ready, what it says of itself, and that it serves alone if no other is there."""
    record = tx.node(node.name)
    if record is None or record.node.incarnation != status.incarnation:
        return
    ready = _copy(record.node)
    ready.state, ready.state_reason = Node.READY, ""
    # From now on, and not before, it may be granted a lease: what was given up of it is stored already.
    ready.lease_state = Node.GRANTED if status.HasField("lease") else Node.LEASE_STATE_UNSPECIFIED
    ready.version = status.version or ready.version
    ready.serves_alone = ready.serves_alone or (status.lease.HasField("alone") and _is_only(tx, record))
    _put_node(tx, record, ready)


def serves_alone(tx: Transaction, node: Node) -> None:
    """Store that a node may serve alone from now on, unless another one is there."""
    record = tx.node(node.name)
    if record is None or record.node.incarnation != node.incarnation or not _is_only(tx, record):
        return
    only = _copy(record.node)
    only.serves_alone = True
    _put_node(tx, record, only)


def parted(tx: Transaction, node: Node) -> None:
    """Store that a node has heard that it does not serve alone any more: its apps may be given to others."""
    record = tx.node(node.name)
    if record is None or record.node.incarnation != node.incarnation:
        return
    one_of_many = _copy(record.node)
    one_of_many.serves_alone = False
    _put_node(tx, record, one_of_many)


def node_lost(tx: Transaction, node: Node, why: str) -> None:
    """Store that a node cannot be heard."""
    record = tx.node(node.name)
    if record is None or record.node.incarnation != node.incarnation:
        return
    lost = _copy(record.node)
    lost.state, lost.state_reason = Node.UNREACHABLE, why
    _put_node(tx, record, lost)


def memory_told(tx: Transaction, node: Node, used_bytes: int) -> None:
    """Store how much memory a node uses."""
    record = tx.node(node.name)
    if record is None or record.node.incarnation != node.incarnation:
        return
    told = _copy(record.node)
    told.used_memory_bytes = used_bytes
    _put_node(tx, record, told)


def lease_ran_out(tx: Transaction, judged: NodeRecord, state: Node.LeaseState.ValueType) -> None:
    """Store that a node's lease has run out: from now on, and not before, its apps may be given up.

    Of the node as it was judged alone: it may have been heard since, and granted another lease.
    """
    record = tx.node(judged.name)
    if record is None or record.revision != judged.revision:
        return
    if record.node.lease_state not in (Node.GRANTED, Node.ON_HOLD):
        return
    lost = _copy(record.node)
    lost.lease_state = state
    _put_node(tx, record, lost)


def expire_operations(
    store: CatalogStore, write: Callable[[Callable[[Transaction], None]], Future[None]]
) -> Iterator[Future[None]]:
    """End the operations whose deadline has passed, one write each."""
    for name in store.mirror.overdue_operations(store.now()):
        yield write(partial(operations.expire, name=name))


def _check_places(tx: Transaction, known: Sequence[PlacementRecord], assigned: Assignment) -> None:
    """Refuse a place on a node that was cordoned or deleted meanwhile: the next pass looks again."""
    homes = {placement.node for placement in known}
    for placement in assigned.placements:
        node = tx.node(placement.node)
        if placement.node not in homes and (node is None or node.node.cordoned):
            raise SupervisorError(
                "NO_NODE_AVAILABLE",
                f"{placement.node} takes no app any more.",
                metadata={"node": placement.node},
            )


def _put_placements(
    tx: Transaction, record: AppRecord, known: Sequence[PlacementRecord], assigned: Assignment
) -> None:
    before = {placement.name: placement for placement in known}
    after = {placement.name: placement for placement in assigned.placements}
    for name in before.keys() - after.keys():
        tx.delete_placement(before[name])
    for name, placement in after.items():
        if before.get(name) == placement:
            continue
        tx.put_placement(placement)
        if placement.node not in {it.node for it in known}:
            add_event(tx, record, "Placed", actor=SYSTEM, message=placement.why)


def _is_only(tx: Transaction, record: NodeRecord) -> bool:
    return all(it.name == record.name for it in tx.nodes(record.environment))


def _is_lost(tx: Transaction, node: str) -> bool:
    record = tx.node(node)
    return record is not None and record.node.lease_state == Node.EXPIRED


def _tell_move(
    tx: Transaction, record: AppRecord, known: Sequence[PlacementRecord], assigned: Assignment
) -> None:
    """Append to an app's timeline that it serves on another node from now on."""
    served = {it.replica: it for it in known if it.role is Role.CURRENT}
    for after in assigned.placements:
        before = served.get(after.replica)
        if before is not None and after.role is Role.CURRENT and before.node != after.node:
            message = f"From {before.node} to {after.node}."
            add_event(tx, record, "Moved", actor=SYSTEM, message=message, instance=after.instance)


def _same(tx: Transaction, name: str, uid: str) -> AppRecord | None:
    record = tx.app(name)
    return record if record is not None and record.uid == uid else None


def _copy(node: Node) -> Node:
    copy = Node()
    copy.CopyFrom(node)
    return copy


def _put_node(tx: Transaction, record: NodeRecord, node: Node) -> None:
    if node != record.node:
        node.update_time.FromMicroseconds(tx.now)
        tx.put_node(NodeRecord(node))

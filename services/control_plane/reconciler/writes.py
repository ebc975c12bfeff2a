"""The reconciler's transactions: what was observed or decided, stored with its events.

Each looks at the app again inside the transaction and does nothing if it is no longer the same app.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial

from appsupervisor.catalog.v1.app_catalog_pb2 import App, DeleteAppRequest
from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition, Instance, RuntimeStatus
from services.control_plane.catalog.commands import add_event
from services.control_plane.catalog.idempotency import SYSTEM
from services.control_plane.operations import operations
from services.control_plane.reconciler.observation import View, observe
from services.control_plane.store.interface import CatalogStore, Transaction
from services.control_plane.store.records import AppRecord, NodeRecord


def placed(tx: Transaction, name: str, uid: str, node: str, why: str) -> AppRecord | None:
    """Give an app without a node one, and return it."""
    record = _same(tx, name, uid)
    if record is None or record.node or record.deleting:
        return record
    record = replace(record, node=node)
    tx.put_app(record)
    add_event(tx, record, "Placed", actor=SYSTEM, message=f"On {node}: {why}.")
    return record


def changed(
    tx: Transaction, name: str, uid: str, change: Callable[[AppRecord], AppRecord]
) -> AppRecord | None:
    """Apply a change to an app, and return it."""
    record = _same(tx, name, uid)
    if record is not None:
        record = change(record)
        tx.put_app(record)
    return record


def observed(tx: Transaction, name: str, uid: str, view: View) -> AppRecord | None:
    """Store what was observed of an app, end its operations by it, and return it."""
    before = _same(tx, name, uid)
    if before is None or before.node != (view.node.name if view.node else ""):
        return None
    after = observe(before, view, tx.now)
    if after != before:
        tx.put_app(after)
        _tell(tx, before, after)
    operations.settle(tx, after)
    return after


def removed(tx: Transaction, name: str, uid: str, policy: DeleteAppRequest.DataPolicy.ValueType) -> None:
    """Remove an app whose deletion has been carried out by `policy`, unless another is asked for by now."""
    record = _same(tx, name, uid)
    if record is None or not record.deleting or record.deleting != policy:
        return
    tx.delete_app(name)
    operations.settle_removed(tx, record)
    add_event(tx, record, "Deleted", actor=SYSTEM, reason=DeleteAppRequest.DataPolicy.Name(policy))


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
    """Store that a node is ready, and what it says of itself."""
    record = tx.node(node.name)
    if record is None or record.node.incarnation != status.incarnation:
        return
    ready = _copy(record.node)
    ready.state, ready.state_reason = Node.READY, ""
    ready.version = status.version or ready.version
    _put_node(tx, record, ready)


def node_lost(tx: Transaction, node: Node, why: str) -> None:
    """Store that a node cannot be heard."""
    record = tx.node(node.name)
    if record is None or record.node.incarnation != node.incarnation:
        return
    lost = _copy(record.node)
    lost.state, lost.state_reason = Node.UNREACHABLE, why
    _put_node(tx, record, lost)


def expire_operations(store: CatalogStore) -> Iterator[Future[None]]:
    """End the operations whose deadline has passed, one write each."""
    for name in store.mirror.overdue_operations(store.now()):
        yield store.write(partial(operations.expire, name=name))


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


def _tell(tx: Transaction, before: AppRecord, after: AppRecord) -> None:
    """Append what changed to the app's timeline."""
    old, new = before.status, after.status
    ready = _condition(new, "Ready")
    if old.state != new.state:
        was = Instance.State.Name(old.state)
        culprit = next((i for i in new.instances if i.state == Instance.FAILED), None)
        failed = new.state == Instance.FAILED and culprit is not None
        add_event(
            tx,
            after,
            "StateChanged",
            actor=SYSTEM,
            reason=ready.reason,
            message=f"{was} to {Instance.State.Name(new.state)}. {ready.message}".strip(),
            detail=culprit.last_error.detail if failed and culprit else "",
            instance=culprit.name if failed and culprit else "",
        )
    elif old.health != new.health:
        was = Instance.Health.Name(old.health)
        add_event(
            tx,
            after,
            "HealthChanged",
            actor=SYSTEM,
            reason=ready.reason,
            message=f"{was} to {Instance.Health.Name(new.health)}. {ready.message}".strip(),
        )
    _tell_blocks(tx, after, old, new)
    updated = _condition(new, "Updated")
    if updated.status == Condition.UNMET and _condition(old, "Updated") != updated:
        culprit = next((i for i in new.instances if i.state == Instance.FAILED), None)
        add_event(
            tx,
            after,
            "UpdateFailed",
            actor=SYSTEM,
            reason=updated.reason,
            message=updated.message,
            detail=culprit.last_error.detail if culprit else "",
            instance=culprit.name if culprit else "",
        )


def _tell_blocks(tx: Transaction, record: AppRecord, old: App, new: App) -> None:
    """Append blocked event loops and their consequences, which instances tell as errors and conditions."""
    known = {instance.name: instance for instance in old.instances}
    for instance in new.instances:
        before = known.get(instance.name, Instance())
        error = instance.last_error
        if error.reason == "APP_BLOCKED_LOOP" and error != before.last_error:
            add_event(
                tx,
                record,
                "LoopBlocked",
                actor=SYSTEM,
                reason=error.reason,
                message=error.message,
                detail=error.detail,
                instance=instance.name,
            )
        demoted = _of_instance(instance, "Demoted")
        if demoted.status == Condition.MET and demoted != _of_instance(before, "Demoted"):
            add_event(
                tx,
                record,
                "Demoted",
                actor=SYSTEM,
                reason=demoted.reason,
                message=demoted.message,
                instance=instance.name,
            )


def _of_instance(instance: Instance, kind: str) -> Condition:
    return next((c for c in instance.conditions if c.type == kind), Condition())


def _condition(status: App, kind: str) -> Condition:
    return next((c for c in status.conditions if c.type == kind), Condition())

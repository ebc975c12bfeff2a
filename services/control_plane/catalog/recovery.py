"""Gives up what an app has on a node that is lost, in the transaction of who asks for it."""

from __future__ import annotations

from dataclasses import replace

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from services.control_plane.placement.failover import RUN_OUT, serving_alone
from services.control_plane.placement.scale import is_several
from services.control_plane.store.interface import Transaction
from services.control_plane.store.records import AppRecord, Role
from services.rpc.errors import SupervisorError


def recovered(tx: Transaction, record: AppRecord, *, accept_data_loss: bool) -> AppRecord:
    """Give up the app's placements on lost nodes; return the app, wanted under an epoch above theirs.

    Raises APP_STOPPED, NODE_NOT_LOST, and DATA_MISSING where data would be given up and that is not accepted.
    """
    name = record.name
    if record.spec.desired_state == App.STOPPED:
        raise SupervisorError("APP_STOPPED", f"{name} is stopped; start it instead.", resource=name)
    staying = [it for it in tx.placements_of(name) if it.role in (Role.CURRENT, Role.INCOMING)]
    lost = [it for it in staying if _is_lost(tx, it.node)]
    if not lost or (len(lost) < len(staying) and not is_several(record)):
        where = ", ".join(sorted({it.node for it in staying})) or "no node"
        raise SupervisorError(
            "NODE_NOT_LOST",
            f"{name} is on {where}, which is not lost: the lease of a node that cannot be heard runs out "
            "within seconds, and until then the app may be served there.",
            resource=name,
            metadata={"node": where},
        )
    alone = sorted(serving_alone(record, lost, tx.node))
    if alone and not accept_data_loss:
        raise SupervisorError(
            "NODE_NOT_LOST",
            f"{alone[0]} was the only node of its environment when it was last heard, and may serve {name}. "
            "Let it be heard again; accept_data_loss starts the app elsewhere all the same, and unless that "
            "node has ended, two copies may write its database.",
            resource=name,
            metadata={"node": alone[0], "serves_alone": "true"},
        )
    with_data = [it.node for it in lost if it.has_data]
    if with_data and not accept_data_loss:
        raise SupervisorError(
            "DATA_MISSING",
            f"The data of {name} is on {with_data[0]}, which is lost; accept_data_loss starts the app on a "
            "new, empty database, and what it had stored is given up.",
            resource=name,
            metadata={"node": with_data[0]},
        )
    for placement in lost:
        why = f"{placement.node} was lost, and recovery was asked for."
        tx.put_placement(replace(placement, role=Role.LOST, why=why, has_data=False, since=tx.now))
    if is_several(record):
        return replace(record, failed=None)  # each replica that is missing gets an epoch of its own
    epoch = max([record.target.epoch, *(it.epoch for it in lost)]) + 1
    return replace(record, target=replace(record.target, epoch=epoch), failed=None)


def _is_lost(tx: Transaction, name: str) -> bool:
    node = tx.node(name)
    return node is None or node.node.lease_state in RUN_OUT

"""What is stored of a version that is tried on a share of the requests: what it was judged, and its events.

Each looks at the app again inside its transaction and does nothing if that version is not on trial any more.
"""

from __future__ import annotations

from dataclasses import replace

from appsupervisor.catalog.v1.app_catalog_pb2 import App, Canary
from services.control_plane.catalog.changes import add_event
from services.control_plane.catalog.idempotency import SYSTEM
from services.control_plane.placement.canary import Verdict, is_of
from services.control_plane.store.interface import Transaction
from services.control_plane.store.records import AppRecord, Version

_EVENTS = {
    Canary.ANALYZING: "CanaryBegun",
    Canary.PROMOTED: "CanaryPromoted",
    Canary.REVERTED: "CanaryReverted",
}


def judged(
    tx: Transaction, name: str, uid: str, version: Version, verdict: Verdict, actor: str = SYSTEM
) -> None:
    """Store what became of a version on trial; the app's next pass carries it out."""
    record = tx.app(name)
    if record is None or record.uid != uid or record.deleting or record.target != version:
        return
    canary = record.status.canary
    if canary.state != Canary.ANALYZING or not is_of(canary, version):
        return
    status = App()
    status.CopyFrom(record.status)
    status.canary.state = verdict.state
    status.canary.reason, status.canary.message = verdict.reason, verdict.message
    if verdict.state == Canary.PROMOTED:
        del status.canary.nodes[:]
    status.reconciling = True
    record = tx.put_app(replace(record, status=status))
    tell(tx, record, canary, record.status.canary, actor)


def tell(tx: Transaction, record: AppRecord, old: Canary, new: Canary, actor: str = SYSTEM) -> None:
    """Append to an app's timeline what has become of the version on trial, if anything has."""
    if (old.state, old.generation, old.epoch) == (new.state, new.generation, new.epoch):
        return
    share = record.spec.rollout.canary
    message = new.message
    if new.state == Canary.ANALYZING:
        message = f"Generation {new.generation} gets {share.weight_percent} % of the requests first."
        if share.HasField("header"):
            message = f"{message[:-1]}, and those with {share.header.name}: {share.header.value}."
    add_event(
        tx, record, _EVENTS.get(new.state, "CanaryChanged"), actor=actor, reason=new.reason, message=message
    )

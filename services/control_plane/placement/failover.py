"""What a lost node means for an app: what is given up with it, and what it must not go on with.

Pure. A node is lost once its lease has run out; when that is, is told by `services.control_plane.leases`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance, InstanceSpec
from services.control_plane.placement.snapshot import Snapshot, is_own
from services.control_plane.store.records import AppRecord, NodeRecord, PlacementRecord, Role
from services.spec.availability import effective_availability, effective_failover, serves_alone

RUN_OUT = (Node.EXPIRED, Node.ON_HOLD)
"""Lease states of a node that answers nobody any more for an app that is CONSISTENT."""


def lost_placements(
    app: AppRecord, placements: Iterable[PlacementRecord], seen: Snapshot
) -> list[PlacementRecord]:
    """Return the placements that are to be given up with their nodes, if another node can take the app."""
    if app.deleting or app.spec.desired_state == App.STOPPED:
        return []
    if effective_failover(app.spec) != App.AUTOMATIC:
        return []
    return [it for it in placements if it.role is not Role.LOST and seen.is_lost(it.node)]


def serving_alone(
    app: AppRecord, placements: Iterable[PlacementRecord], node: Callable[[str], NodeRecord | None]
) -> frozenset[str]:
    """Return the nodes that may serve an app without a lease, for they were told that they are alone.

    By what is pinned to what runs there, whatever the app is to be by now. Until they have heard that they
    are no longer alone nobody else is given the app, unless a person has given up what is there.
    """
    found = set()
    for placement in placements:
        record = node(placement.node)
        if record is None or not record.node.serves_alone or placement.role is Role.LOST:
            continue
        if serves_alone(_run_spec(app, placement)):
            found.add(placement.node)
    return frozenset(found)


def holding_on(
    app: AppRecord, placements: Iterable[PlacementRecord], is_over: Callable[[str], bool]
) -> frozenset[str]:
    """Return the nodes that may serve an app by a lease, of those whose lease is not known to be over.

    `is_over` also of one that is heard: what it has is ended by a stop.
    """
    return frozenset(
        it.node
        for it in placements
        if it.role is not Role.LOST
        and not is_over(it.node)
        and effective_availability(_run_spec(app, it)) == InstanceSpec.CONSISTENT
    )


def _run_spec(app: AppRecord, placement: PlacementRecord) -> App:
    same = placement.generation == app.target.generation
    return app.spec if same else App.FromString(placement.spec)


def waits_for(placement: PlacementRecord, seen: Snapshot) -> str:
    """Return another node that may serve the app unheard, so that this is not started; empty for none."""
    return next(iter(sorted((seen.alone | seen.leased) - {placement.node})), "")


def fence_epoch(
    uid: str, node: str, placements: Iterable[PlacementRecord], instances: Iterable[Instance]
) -> int:
    """Return the epoch below which a node must not answer for an app, by its uid; 0 if it lost nothing of it.

    It has lost what was given up with it, seen there or not, and what is there without a placement.
    """
    own = {it.instance: it.epoch for it in placements if it.node == node and it.role is not Role.LOST}
    left = [it.epoch for it in placements if it.node == node and it.role is Role.LOST]
    left += [it.epoch for it in instances if is_own(it, uid) and it.name not in own]
    return min([max(left) + 1, *own.values()]) if left else 0

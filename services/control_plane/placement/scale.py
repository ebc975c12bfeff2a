"""How many replicas an app is to have, and under which epochs. Pure.

The epochs of an app that has one replica are those that are wanted of it; of several, each placement has one
of its own, so that one that is lost can be shut out of the node and the database without the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from services.control_plane.store.records import AppRecord, PlacementRecord, Role, Version


def wanted_replicas(app: AppRecord) -> int:
    """Return how many replicas an app is to have now, at least 1."""
    spec = app.spec
    if not spec.HasField("autoscale"):
        return max(1, spec.replicas)
    bounds = spec.autoscale
    decided = app.status.target_replicas or spec.replicas
    return max(1, bounds.min_replicas, min(decided, bounds.max_replicas))


def most_replicas(app: AppRecord) -> int:
    """Return how many replicas an app may have at a time: beside an only one a new version may be tried."""
    wanted = wanted_replicas(app)
    return wanted + 1 if wanted == 1 and app.spec.rollout.HasField("canary") else wanted


def is_several(app: AppRecord) -> bool:
    """Tell whether an app may have several replicas, or has had: each of its placements has its own epoch."""
    return app.status.newest_epoch > 0 or most_replicas(app) > 1


def is_at(placement: PlacementRecord | None, target: Version) -> bool:
    """Tell whether one of several replicas runs what is wanted: the generation, in this epoch or a later."""
    if placement is None:
        return False
    return placement.generation == target.generation and placement.epoch >= target.epoch


@dataclass
class Epochs:
    """Gives an app's placements epochs that none of them has had."""

    newest: int
    floor: int
    """The epoch that is wanted: the first one given, if none has it."""

    @classmethod
    def of(cls, app: AppRecord, placements: Iterable[PlacementRecord]) -> Epochs:
        """Return the epochs of an app."""
        newest = max([app.status.newest_epoch, *(it.epoch for it in placements)])
        return cls(newest, app.target.epoch)

    def next(self) -> int:
        """Give the next one."""
        self.newest = max(self.newest + 1, self.floor)
        return self.newest


def newest_epoch(app: AppRecord) -> int:
    """Return the epoch that anything which is to be newer than all of an app must be above."""
    return max(app.target.epoch, app.status.newest_epoch)


def with_newest_epoch(app: AppRecord, epoch: int) -> AppRecord:
    """Return an app of several replicas that has given an epoch away."""
    if epoch <= app.status.newest_epoch:
        return app
    status = App()
    status.CopyFrom(app.status)
    status.newest_epoch = epoch
    return replace(app, status=status)


def served_version(app: AppRecord, placements: Sequence[PlacementRecord]) -> Version | None:
    """Return the version that an app serves, or did last; of several replicas, what each has reached.

    None if it serves nothing, or if there are not as many replicas as are wanted.
    """
    current = [it for it in placements if it.role is Role.CURRENT]
    if not is_several(app):
        return current[0].version if current else None
    coming = any(it.role is Role.INCOMING for it in placements)
    if coming or len(current) != wanted_replicas(app):
        return None
    return Version(min(it.generation for it in current), min(it.epoch for it in current))


def replica_on(placements: Iterable[PlacementRecord], node: str) -> int | None:
    """Return the number of the replica that is on a node, or comes there; None if there is none."""
    ranks = (Role.CURRENT, Role.INCOMING)
    here = sorted((it.role not in ranks, it.replica) for it in placements if it.node == node)
    return here[0][1] if here and not here[0][0] else None

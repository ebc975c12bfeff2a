"""Decides which placements an app is to have. Pure: app, placements and a snapshot in, placements out.

An app that has one replica is one swap, told in `swap`; of several, `replicas` says which one has its turn.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from services.control_plane.placement.data_travel import awaits_data
from services.control_plane.placement.replicas import Replicas
from services.control_plane.placement.scale import is_several
from services.control_plane.placement.snapshot import Snapshot
from services.control_plane.placement.swap import ENDING, Swap, leaves_data, pinned, placement_of, spec_of
from services.control_plane.store.records import AppRecord, PlacementRecord, Role, Version

__all__ = ("ENDING", "Assignment", "assign", "pinned", "spec_of")


@dataclass(frozen=True, slots=True)
class Assignment:
    """The placements an app is to have."""

    placements: tuple[PlacementRecord, ...]
    failed: Version | None = None
    """The version that was given up in favour of the one before it."""
    unplaced: str = ""
    """Why a placement that is wanted is missing: one sentence."""
    unplaced_reason: str = ""
    """The same for programs, an `ErrorReason`."""
    target: Version | None = None
    """The version that is wanted from now on, if it is another than the app's."""
    newest_epoch: int = 0
    """The newest epoch given to one of several replicas; 0 of an app that has one."""
    one_more: bool = False
    """One replica more than are wanted: a new version is tried beside the only one."""
    failure: tuple[str, str] | None = None
    """Why a version has just been given up, where no instance says it: a reason and a sentence."""
    after: float = 0.0
    """There is more to decide after so many seconds; 0 if there isn't."""

    @property
    def staying(self) -> tuple[PlacementRecord, ...]:
        """The placements that were not given up with their node."""
        return tuple(placement for placement in self.placements if placement.role is not Role.LOST)

    @property
    def incoming(self) -> PlacementRecord | None:
        """The placement that is to take over."""
        return placement_of(self.placements, Role.INCOMING)

    @property
    def current(self) -> PlacementRecord | None:
        """The placement that serves, or did last."""
        return placement_of(self.placements, Role.CURRENT)

    @property
    def wanted(self) -> PlacementRecord | None:
        """The placement that is to run: the one that comes in, else the one that is.

        Of an app whose data is on its way it is the one that has that, if it is still to run.
        """
        wanted = self.incoming or self.current
        if len(self.placements) == 1:
            return wanted  # there is no other whose data it could wait for
        if wanted is not None and awaits_data(wanted, self.placements):
            current = self.current
            return None if current is None or awaits_data(current, self.placements) else current
        return wanted

    def by_replica(self) -> dict[int, Assignment]:
        """Return the placements of each replica, by its number."""
        if len({placement.replica for placement in self.placements}) == 1:
            return {self.placements[0].replica: self}
        found: dict[int, list[PlacementRecord]] = {}
        for placement in self.placements:
            found.setdefault(placement.replica, []).append(placement)
        return {number: Assignment(tuple(found[number])) for number in sorted(found)}


def _stands(app: AppRecord, placements: tuple[PlacementRecord, ...], seen: Snapshot) -> bool:
    """Tell whether what is wanted of an app is all there is, and its node is heard: so it stays."""
    if len(placements) != 1 or app.failed is not None:
        return False
    (it,) = placements
    stands = it.role is Role.CURRENT and it.version == app.target
    stands = stands and (it.has_data or not leaves_data(app, seen.instance(it)))
    wanted = not app.deleting and app.spec.desired_state != App.STOPPED
    return stands and wanted and seen.heard(it.node) is not None and it.node not in seen.gone


def assign(app: AppRecord, placements: Iterable[PlacementRecord], seen: Snapshot, now: int) -> Assignment:
    """Return the placements that an app is to have from now (µs) on.

    A placement never changes its node or its version; what has another is another placement. A node that
    isn't heard changes nothing, until it is lost: then an app that may go elsewhere does, under a new epoch.
    """
    if not is_several(app):
        placements = tuple(placements)
        if _stands(app, placements, seen):
            return Assignment(placements)
        swap = Swap(app, placements, seen, now)
        unplaced = swap.decide()
        return Assignment(
            swap.placements,
            swap.failed,
            unplaced,
            swap.unplaced_reason if unplaced else "",
            swap.target if swap.target != app.target else None,
        )
    replicas = Replicas(app, tuple(placements), seen, now)
    unplaced = replicas.decide()
    return Assignment(
        replicas.placements,
        replicas.failed,
        unplaced,
        "NO_NODE_AVAILABLE" if unplaced else "",
        newest_epoch=replicas.newest_epoch,
        one_more=replicas.one_more,
        failure=replicas.failure,
        after=replicas.after,
    )

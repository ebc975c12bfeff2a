"""Tells whether an app's start comes before all else, and whether a pass has left nothing to do. Pure."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from services.control_plane.operations.database_moves import is_stopped_for, is_unfinished
from services.control_plane.placement.assignment import ENDING, Assignment
from services.control_plane.placement.failover import waits_for
from services.control_plane.placement.scale import is_several
from services.control_plane.placement.snapshot import Snapshot
from services.control_plane.reconciler.result import Result
from services.control_plane.store.records import AppRecord, PlacementRecord


def are_same(placements: Sequence[PlacementRecord], others: Sequence[PlacementRecord]) -> bool:
    """Tell whether two lists have the same placements, in whatever order."""
    # Nearly always each is the very same record, which is told without a look at what is in it.
    if len(placements) == len(others) and all(map(operator.is_, placements, others)):
        return True
    return set(placements) == set(others)


def leaves_nothing(
    result: Result, app: AppRecord, placements: Sequence[PlacementRecord], assigned: Assignment
) -> bool:
    """Tell whether a pass that has stored its decision has left nothing to do until something is told.

    So it has where its decision settles, or what was to run has been started and its node tells of it.
    """
    if result.again or result.failure is not None:
        return False
    return settles(app, placements, assigned) or (result.began and _is_simple(app))


def settles(app: AppRecord, placements: Sequence[PlacementRecord], assigned: Assignment) -> bool:
    """Tell whether another look at what has been decided would find the same, as long as nothing is told.

    So it does where no placement has changed, or what is wanted serves and nothing comes in.
    """
    if not _is_simple(app):
        return False
    if assigned.target is not None or assigned.failed != app.failed:
        return False
    current = assigned.current
    if current is None or current.version != app.target or assigned.incoming is not None:
        return are_same(assigned.placements, placements)
    return any(it.name == current.name and it.role not in ENDING for it in placements)


def _is_simple(app: AppRecord) -> bool:
    """Tell whether an app is one replica that is to run, and where it is is all that there is to decide."""
    if app.deleting or app.spec.desired_state == App.STOPPED or is_several(app):
        return False
    return not is_unfinished(app.status)


def awaits_start(app: AppRecord, assigned: Assignment, seen: Snapshot) -> bool:
    """Tell whether an app that is to run has nothing on its node, for all that is known yet."""
    wanted = assigned.wanted
    if is_several(app):
        return False  # one of them may be in its place already
    if wanted is None or app.deleting or app.spec.desired_state == App.STOPPED or assigned.failed is not None:
        return False
    if is_stopped_for(app) or waits_for(wanted, seen):
        return False
    view = seen.heard(wanted.node)
    return view is not None and not view.instances and view.hindrance is None

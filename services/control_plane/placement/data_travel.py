"""Who owns the data that an app keeps on its node, and when it has to go from node to node. Pure.

The owner is the one node with a placement that `has_data`; that changes in one transaction, never by a start
or a stop. What is to run elsewhere waits for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from services.control_plane.store.records import PlacementRecord, Role, current_of


@dataclass(frozen=True, slots=True)
class Travel:
    """Data that is to go from the node of one placement to that of another."""

    source: PlacementRecord
    target: PlacementRecord


def data_home(placements: Iterable[PlacementRecord]) -> PlacementRecord | None:
    """Return the newest placement on the node that owns the app's data; None if no node does."""
    owners = (it for it in placements if it.has_data and it.role is not Role.LOST)
    return max(owners, key=lambda it: it.version.epoch, default=None)


def awaits_data(placement: PlacementRecord, placements: Iterable[PlacementRecord]) -> bool:
    """Tell whether a placement must not be started, for the app's data is on another node."""
    home = data_home(placements)
    return home is not None and not placement.has_data and placement.node != home.node


def travel_of(placements: Collection[PlacementRecord]) -> Travel | None:
    """Return the data's way to where the app is to run, or None where it is there."""
    incoming = next((it for it in placements if it.role is Role.INCOMING), None)
    target = incoming or current_of(placements)
    home = data_home(placements)
    if target is None or home is None or not awaits_data(target, placements):
        return None
    return Travel(home, target)


def has_arrived(placements: Collection[PlacementRecord]) -> bool:
    """Tell whether the data of an app is with what comes in, and not any more with what served."""
    incoming = next((it for it in placements if it.role is Role.INCOMING), None)
    current = current_of(placements)
    return incoming is not None and current is not None and awaits_data(current, placements)


def with_new_owner(placements: Iterable[PlacementRecord], travel: Travel) -> tuple[PlacementRecord, ...]:
    """Return the placements once the target's node owns the data, and no other does."""
    return tuple(
        replace(it, has_data=it.name == travel.target.name) if it.role is not Role.LOST else it
        for it in placements
    )


def may_own(placement: PlacementRecord, placements: Iterable[PlacementRecord]) -> bool:
    """Tell whether what ran of a placement ran with the app's data.

    It did not where another node owns that, nor where it was to take over elsewhere and was taken back.
    """
    placements = tuple(placements)
    current = current_of(placements)
    if placement.role is Role.OUTGOING and current is not None and current.node != placement.node:
        return False
    home = data_home(placements)
    return home is None or home.node == placement.node


def is_last_owner(placement: PlacementRecord, placements: Iterable[PlacementRecord]) -> bool:
    """Tell whether a placement that ends is all that says where the data is: kept until that has left."""
    if placement.role is not Role.OUTGOING or not placement.has_data:
        return False
    return not any(it.has_data for it in placements if it.role in (Role.CURRENT, Role.INCOMING))


def is_kept(placement: PlacementRecord, placements: Collection[PlacementRecord]) -> bool:
    """Tell whether a placement outlives its instance: for data that its node owns, or a copy to remove."""
    return is_last_owner(placement, placements) or leaves_copy(placement, placements)


def leaves_copy(placement: PlacementRecord, placements: Collection[PlacementRecord]) -> bool:
    """Tell whether what a placement that ends leaves on its node is a copy of what another node owns."""
    if placement.role is not Role.OUTGOING or not awaits_data(placement, placements):
        return False
    return not any(it.node == placement.node for it in placements if it.role in (Role.CURRENT, Role.INCOMING))

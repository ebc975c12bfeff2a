"""Tells which of the apps that wait for a node a pass could help: one verdict for all that ask the same.

So what waits costs what there is room for, not what there is of it.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from services.control_plane.placement.choice import module_of, wish_of
from services.control_plane.placement.room import room_for
from services.control_plane.placement.scale import is_several
from services.control_plane.reconciler.snapshots import Snapshots
from services.control_plane.store.app_labels import Labels, pairs
from services.control_plane.store.mirror import Mirror
from services.control_plane.store.records import AppRecord, Role

MOST = 200
"""Apps of one kind that are looked at together, however much room there is."""


class Ask(NamedTuple):
    """What an app asks: of two that ask the same, the nodes that can take one can take the other."""

    environment: str
    selector: Labels
    memory_bytes: int
    exclusive: bool
    module: str
    labels: Labels
    apart_from: Labels
    alone: str = ""
    """The name of an app with several replicas, which asks what no other does: to be apart from its own."""


def ask_of(app: AppRecord) -> Ask:
    """Return what an app asks."""
    spec = app.spec
    return Ask(
        spec.environment,
        pairs(spec.node_selector),
        spec.limits.memory_bytes,
        spec.exclusive,
        module_of(spec),
        pairs(spec.labels),
        pairs(spec.anti_affinity),
        app.name if is_several(app) else "",
    )


Kind: TypeAlias = tuple[Ask, frozenset[str], frozenset[str]]
"""What is asked, without the labels, and the nodes that these keep it off."""


class Room:
    """The room there is at one moment, and is taken by one app after the other."""

    def __init__(self, mirror: Mirror, snapshots: Snapshots) -> None:
        self._mirror = mirror
        self._snapshots = snapshots
        self._left: dict[Kind, int] = {}

    def take(self, app: str, ask: Ask) -> bool:
        """Tell whether there is room for an app that has no place, beside those that were told so before."""
        kind = self._kind_of(app, ask)
        left = self._left.get(kind)
        if left is None:
            left = self._count(app)
        self._left[kind] = max(0, left - 1)
        return left > 0

    def _kind_of(self, app: str, ask: Ask) -> Kind:
        # Few labels keep an app off a node, and many apps have some of their own.
        avoided = self._mirror.nodes_having(ask.apart_from, app) if ask.apart_from else ()
        averse = self._mirror.nodes_averse(ask.labels, app) if ask.labels else ()
        return ask._replace(labels=(), apart_from=()), frozenset(avoided), frozenset(averse)

    def _count(self, app: str) -> int:
        record = self._mirror.apps.get(app)
        if record is None:
            return 0
        placements = self._mirror.placements_of(app)
        seen = self._snapshots.of(record, placements)
        siblings = [it.node for it in placements if it.role is not Role.LOST and not seen.is_lost(it.node)]
        wish = wish_of(record.spec, environment_cordoned=seen.environment_cordoned, siblings=siblings)
        return room_for(wish, seen.candidates, MOST)

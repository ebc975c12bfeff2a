"""Takes the snapshot that a pass goes by: what an app's nodes show of it, and which others could take it.

From the links and the mirror as they are at that moment; what follows from it is decided elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import replace

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.fleet.v1.fleet_pb2 import Node
from services.control_plane.catalog.candidates import neighbours_of
from services.control_plane.nodes.links import NodeLinks
from services.control_plane.placement.assignment import ENDING
from services.control_plane.placement.choice import Candidates
from services.control_plane.placement.failover import holding_on, serving_alone
from services.control_plane.placement.scale import is_several, most_replicas, wanted_replicas
from services.control_plane.placement.snapshot import NodeView, Sight, Snapshot
from services.control_plane.store.mirror import Mirror
from services.control_plane.store.records import AppRecord, PlacementRecord, Role


class Snapshots:
    """Takes snapshots; keeps what is being placed. Lives on one loop."""

    def __init__(self, mirror: Mirror, links: NodeLinks) -> None:
        self._mirror = mirror
        self._links = links
        self._placing: Counter[str] = Counter()
        self._candidates = Candidates()

    def is_clear(self, node: str) -> bool:
        """Tell whether something can be said of what is on a node."""
        return self._links.is_clear(node) or self._mirror.nodes.get(node) is None

    def of(self, app: AppRecord, placements: tuple[PlacementRecord, ...]) -> Snapshot:
        """Return what is seen of an app; of other nodes only where it lacks a placement."""
        nodes = {}
        homes = {placement.node for placement in placements}
        gone = frozenset(name for name in homes if self._mirror.nodes.get(name) is None)
        alone = serving_alone(app, placements, self._mirror.nodes.get)
        for name in homes - gone:
            heard = self._links.is_heard(name)
            told = {} if heard else {it.name: it for it in app.status.instances if it.node == name}
            view = self._links.view(name, app.name, told)
            if view is not None:
                nodes[name] = view if name in alone else self._with_loss(view)
        lost = {name for name, view in nodes.items() if view.sight is Sight.LOST}
        over = lost | gone | {name for name in homes if self._links.is_heard(name)}
        # Where all are heard, as most often, no spec is looked at.
        leased = holding_on(app, placements, over.__contains__) if over != homes else frozenset()
        ending = ENDING if is_several(app) else (Role.LOST,)
        staying = {it.replica for it in placements if it.role not in ending and it.node not in gone | lost}
        enough = len(staying) >= _replicas(app, placements)
        if enough or app.deleting or app.spec.desired_state == App.STOPPED:
            return Snapshot(nodes, gone=gone, alone=alone, leased=leased)
        environment = self._mirror.environments.get(app.spec.environment)
        links = self._links.of(app.spec.environment)
        candidates = self._candidates.of(
            ((link.name, link.node, link.synced) for link in links),
            self._mirror.loads,
            neighbours_of(self._mirror, app.spec, app.name),
            +self._placing,
        )
        return Snapshot(
            nodes,
            tuple(candidates),
            gone,
            environment is not None and environment.environment.cordoned,
            alone,
            leased,
        )

    def beside(self, seen: Snapshot, app: AppRecord, placements: tuple[PlacementRecord, ...]) -> Snapshot:
        """Return a snapshot with what the nodes show that an app has just been placed on."""
        new = {it.node for it in placements} - seen.nodes.keys() - seen.gone
        views = {name: view for name in new if (view := self._links.view(name, app.name, {})) is not None}
        return replace(seen, nodes={**seen.nodes, **views}) if views else seen

    def _with_loss(self, view: NodeView) -> NodeView:
        """Tell a lost node from one that is only silent: the catalog says which."""
        record = self._mirror.nodes.get(view.node.name)
        lost = record is not None and record.node.lease_state == Node.EXPIRED
        return replace(view, sight=Sight.LOST) if lost and view.sight is Sight.SILENT else view

    @contextmanager
    def placing(self, nodes: Set[str]) -> Iterator[None]:
        """Count one more app on each node meanwhile: until it is stored the mirror doesn't."""
        self._placing.update(nodes)
        try:
            yield
        finally:
            self._placing.subtract(nodes)


def _replicas(app: AppRecord, placements: tuple[PlacementRecord, ...]) -> int:
    """Return how many replicas an app may come to have now."""
    same = all(it.generation == app.target.generation for it in placements if it.role is Role.CURRENT)
    return wanted_replicas(app) if same else most_replicas(app)

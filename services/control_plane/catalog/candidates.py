"""The nodes of an environment as placement sees them for one app, from the mirror."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.fleet.v1.fleet_pb2 import Node
from services.control_plane.placement.choice import (
    Candidate,
    Candidates,
    Neighbours,
    Wish,
    module_of,
    wish_of,
)
from services.control_plane.store.app_labels import pairs
from services.control_plane.store.interface import Transaction
from services.control_plane.store.mirror import Mirror
from services.control_plane.store.records import NodeRecord, PlacementRecord, Role


def neighbours_of(mirror: Mirror, spec: App, app: str) -> Neighbours:
    """Return what nodes are to an app of a spec, for other apps and for their code.

    `app` is its name, empty if it isn't there yet.
    """
    return Neighbours(
        mirror.exclusive_nodes(besides=app),
        mirror.nodes_having(pairs(spec.anti_affinity), app) if spec.anti_affinity else {},
        mirror.nodes_averse(pairs(spec.labels), app) if spec.labels else {},
        mirror.nodes_without_code(module_of(spec), spec.environment),
    )


def candidates(
    tx: Transaction, mirror: Mirror, spec: App, more: Mapping[str, int] | None = None
) -> list[Candidate]:
    """Return the nodes of an app's environment as placement sees them for it.

    `more` apps are about to be placed there.
    """
    return _seen(mirror, spec, tx.nodes(spec.environment), more or {})


def candidate(tx: Transaction, mirror: Mirror, spec: App, node: str) -> Candidate | None:
    """Return one node as placement sees it for an app; None if it isn't there."""
    record = tx.node(node)
    return _seen(mirror, spec, [record], {})[0] if record is not None else None


def _seen(
    mirror: Mirror, spec: App, records: Iterable[NodeRecord], more: Mapping[str, int]
) -> list[Candidate]:
    nodes = ((it.name, it.node, it.node.state == Node.READY) for it in records)
    return Candidates().of(nodes, mirror.loads, neighbours_of(mirror, spec, spec.name), more)


def asked_of(tx: Transaction, spec: App, siblings: Iterable[str] = ()) -> Wish:
    """Return what an app asks of a node, its environment's cordon with it; its replicas are on `siblings`."""
    environment = tx.environment(spec.environment)
    cordoned = environment is not None and environment.environment.cordoned
    return wish_of(spec, environment_cordoned=cordoned, siblings=siblings)


def siblings_of(placements: Iterable[PlacementRecord], replica: int) -> set[str]:
    """Return the nodes that an app's other replicas are on, which take no second one."""
    return {it.node for it in placements if it.replica != replica and it.role is not Role.LOST}

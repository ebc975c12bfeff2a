"""What is stored in the simulation: a catalog, its transactions as the product has them, and the seat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec
from services.control_plane.placement.assignment import ENDING, assign
from services.control_plane.placement.failover import serving_alone
from services.control_plane.placement.snapshot import Snapshot
from services.control_plane.store.records import AppRecord, NodeRecord, PlacementRecord
from services.control_plane.tenure import Pace
from tests.model.simulation import Simulation

ENVIRONMENT = "environments/default"
LEAD = Pace()


def spec(name: str, desired: int = App.RUNNING, *, lone: bool = False) -> App:
    """`lone`: of an app that needs no lease while its node is alone."""
    app = App(name=name, entrypoint="shop:app", environment=ENVIRONMENT, desired_state=desired)
    app.failover = App.AUTOMATIC
    if lone:
        app.database.external.secret_key = "URL"
    else:
        app.availability = InstanceSpec.CONSISTENT
        app.database.no_database.SetInParent()
    return app


@dataclass(frozen=True)
class Catalog:
    """All that is stored, as of one revision."""

    revision: int
    term: int
    apps: dict[str, AppRecord]
    placements: dict[str, tuple[PlacementRecord, ...]]
    nodes: dict[str, Node]

    def changed(self, **what: Any) -> Catalog:
        return replace(self, revision=self.revision + 1, **what)


class Database:
    """Transactions, one after the other, and the seat of the leader, by a clock of its own."""

    def __init__(self, simulation: Simulation) -> None:
        self.process = simulation.process("database")
        self._clock = simulation.clock_of(self.process)
        self.catalog = Catalog(1, 0, {}, {}, {})
        self._holder = ""
        self._expires = 0.0

    def take(self, holder: str) -> int:
        """Return the term under which somebody leads from now on; 0 if another one does."""
        now = self._clock()
        if self._holder and self._expires > now:
            return 0
        self._holder, self._expires = holder, now + LEAD.lasts
        self.catalog = self.catalog.changed(term=self.catalog.term + 1)
        return self.catalog.term

    def renew(self, holder: str, term: int) -> bool:
        if (self._holder, self.catalog.term) != (holder, term):
            return False
        self._expires = self._clock() + LEAD.lasts
        return True

    def write(self, term: int | None, command: Callable[[Catalog], Catalog]) -> bool:
        """Run a command, of a leader's only while its term is the newest."""
        if term is not None and not self.admits(term):
            return False
        self.catalog = command(self.catalog)
        return True

    def admits(self, term: int) -> bool:
        return term == self.catalog.term


def copied(node: Node, **changes: Any) -> Node:
    copy = Node()
    copy.CopyFrom(node)
    for name, value in changes.items():
        setattr(copy, name, value)
    return copy


def heard(name: str, incarnation: str, *, lone: bool = False) -> Callable[[Catalog], Catalog]:
    def run(catalog: Catalog) -> Catalog:
        node = catalog.nodes[name]
        if node.incarnation != incarnation:
            return catalog.changed()
        ready = copied(node, state=Node.READY, lease_state=Node.GRANTED)
        ready.serves_alone = node.serves_alone or (lone and is_only(catalog, name))
        return catalog.changed(nodes={**catalog.nodes, name: ready})

    return run


def alone(name: str, incarnation: str) -> Callable[[Catalog], Catalog]:
    def run(catalog: Catalog) -> Catalog:
        node = catalog.nodes[name]
        if node.incarnation != incarnation or not is_only(catalog, name):
            return catalog
        return catalog.changed(nodes={**catalog.nodes, name: copied(node, serves_alone=True)})

    return run


def parted(name: str, incarnation: str) -> Callable[[Catalog], Catalog]:
    def run(catalog: Catalog) -> Catalog:
        node = catalog.nodes[name]
        if node.incarnation != incarnation:
            return catalog
        return catalog.changed(nodes={**catalog.nodes, name: copied(node, serves_alone=False)})

    return run


def is_only(catalog: Catalog, name: str) -> bool:
    return list(catalog.nodes) == [name]


def ran_out(judged: Node, state: Any) -> Callable[[Catalog], Catalog]:
    """Store that a lease has run out, of the node as it was judged: not where it has been heard since."""
    name = judged.name

    def run(catalog: Catalog) -> Catalog:
        node = catalog.nodes[name]
        if not is_as_judged(node, judged):
            return catalog
        lost = copied(node, state=Node.UNREACHABLE, lease_state=state)
        return catalog.changed(nodes={**catalog.nodes, name: lost})

    return run


def decided(name: str, seen: Snapshot) -> Callable[[Catalog], Catalog]:
    def run(catalog: Catalog) -> Catalog:
        app, known = catalog.apps[name], catalog.placements.get(name, ())
        alone = serving_alone(app, known, as_records(catalog).get)
        believed = seen.believing(
            lambda node: node not in alone and catalog.nodes[node].lease_state == Node.EXPIRED
        )
        assigned = assign(app, known, believed, 0)
        after = replace(app, target=assigned.target or app.target, failed=assigned.failed)
        return catalog.changed(
            apps={**catalog.apps, name: after}, placements={**catalog.placements, name: assigned.placements}
        )

    return run


def as_records(catalog: Catalog) -> dict[str, NodeRecord]:
    return {name: NodeRecord(node) for name, node in catalog.nodes.items()}


def is_as_judged(node: Node, judged: Node) -> bool:
    # Each write makes another object, as it makes another revision in the catalog.
    return node is judged


def ended(instance: str, node: str) -> Callable[[Catalog], Catalog]:
    app = instance.partition("/instances/")[0]

    def run(catalog: Catalog) -> Catalog:
        left = tuple(
            it for it in catalog.placements.get(app, ())
            if not (it.instance == instance and it.node == node and it.role in ENDING)
        )  # fmt: skip
        return catalog.changed(placements={**catalog.placements, app: left})

    return run

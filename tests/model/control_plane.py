"""A control plane in the simulation: what decides in it is the product's own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance
from services.control_plane.leases import Counted, Fence, Grant, LeasePace, Leases
from services.control_plane.placement.assignment import assign
from services.control_plane.placement.choice import Candidate
from services.control_plane.placement.failover import fence_epoch, serving_alone
from services.control_plane.placement.snapshot import NodeView, Sight, Snapshot
from services.control_plane.reconciler.plan import plan, stop_orphan
from services.control_plane.store.records import AppRecord, PlacementRecord, Role
from services.control_plane.tenure import Tenure
from tests.model.catalog import LEAD, Catalog, alone, as_records, decided, ended, heard, parted, ran_out

if TYPE_CHECKING:
    from tests.model.fleet import Fleet
    from tests.model.node import ModelNode

SILENCE = 5.0
CALL = 3.0
LEASE = LeasePace()


@dataclass
class Link:
    """What a control plane knows of a node that it watches."""

    session: int = 0
    synced: bool = False
    incarnation: str = ""
    heard: float = -1e9
    beat: int = 0
    view: dict[str, Instance] = field(default_factory=dict)

    def of(self, app: str) -> dict[str, Instance]:
        return {name: it for name, it in self.view.items() if name.startswith(f"{app}/")}


class ControlPlane:
    """One replica: seeks the lead; while it leads, follows nodes, counts leases and passes over apps."""

    sessions = itertools.count(1)

    def __init__(self, fleet: Fleet, name: str) -> None:
        self.fleet = fleet
        self.simulation = fleet.simulation
        self.database = fleet.database
        self.name = name
        self.process = self.simulation.process(name)
        self.clock = self.simulation.clock_of(self.process)
        self.mirror = self.database.catalog
        self.tenure: Tenure | None = None
        self.leases: Leases | None = None
        self.links: dict[str, Link] = {}
        self.busy: dict[str, float] = {}
        self.settled: dict[str, list[Any]] = {}
        self.tick()

    # Who leads

    def tick(self) -> None:
        sent = self.clock()
        if self.tenure is not None and not self.tenure.holds:
            # Its work ends a while after its time: what is done meanwhile must do no harm.
            self.simulation.after(
                self.simulation.chance.uniform(0, 8.0), self.process, self.resign, self.tenure
            )
        if self.tenure is None:
            self._ask(self._take, sent)
        else:
            self._ask(self._renew, sent, self.tenure)
            self.lead()
        self.simulation.after(LEAD.renew, self.process, self.tick)

    def _ask(self, act: Callable[..., None], *what: Any) -> None:
        self.simulation.send(self.process, self.database.process, act, *what)

    def _take(self, sent: float) -> None:
        term = self.database.take(self.name)
        if term:
            self.simulation.send(
                self.database.process, self.process, self.on_elected, term, sent, self.database.catalog
            )

    def on_elected(self, term: int, sent: float, catalog: Catalog) -> None:
        tenure = Tenure(term, sent, LEAD, self.clock)
        if (self.tenure is not None and term <= self.tenure.term) or not tenure.holds:
            return
        self.resign(self.tenure)
        self.take_in(catalog)
        self.tenure, self.leases = tenure, Leases(tenure, self.clock, LEASE)
        self.fleet.elected(self)

    def _renew(self, sent: float, tenure: Tenure) -> None:
        if self.database.renew(self.name, tenure.term):
            catalog = self.database.catalog
            self.simulation.send(self.database.process, self.process, self.on_renewed, sent, tenure, catalog)

    def on_renewed(self, sent: float, tenure: Tenure, catalog: Catalog) -> None:
        self.take_in(catalog)  # it follows the change log as well
        # Not where an older answer comes later.
        if tenure is self.tenure and tenure.holds and tenure.until < sent + LEAD.lasts - LEAD.margin:
            tenure.extend(sent)

    def resign(self, tenure: Tenure | None) -> None:
        if tenure is None or tenure is not self.tenure:
            return
        tenure.end()
        self.tenure = self.leases = None
        self.links, self.busy, self.settled = {}, {}, {}

    def write(self, command: Callable[[Catalog], Catalog], done: Callable[[], None] | None = None) -> None:
        """Have a command carried out under this term; `done` is called once the mirror has it."""
        assert self.tenure is not None
        tenure = self.tenure

        def commit() -> None:
            if self.database.write(tenure.term, command):
                self.simulation.send(self.database.process, self.process, committed, self.database.catalog)

        def committed(catalog: Catalog) -> None:
            self.take_in(catalog)
            if done is not None and self.tenure is tenure:
                done()

        self.simulation.send(self.process, self.database.process, commit)

    def take_in(self, catalog: Catalog) -> None:
        if catalog.revision > self.mirror.revision:
            self.mirror = catalog

    # Nodes

    def lead(self) -> None:
        assert self.leases is not None
        assert self.tenure is not None
        self.leases.look()
        now = self.clock()
        counted = []
        for name, node in self.mirror.nodes.items():
            link = self.links.setdefault(name, Link())
            if link.incarnation not in ("", node.incarnation) or now > link.heard + SILENCE / 2:
                link.synced = False
            if not link.synced:
                self._watch(name, link)
            elif not self.leases.is_open(name, node.incarnation):
                self._heard(name, link, node.incarnation)
            if self.fleet.lone:
                self._tell_alone(name, node)
            heard = link.synced or now < link.heard + SILENCE
            counted.append(Counted(name, node.lease_state, heard, self.leases.has_run_out(name)))
        for name, state in self.leases.changed("environments/default", counted).items():
            if self.tenure.holds:
                self.fleet.lost(name, self.mirror.nodes[name].incarnation)
            self.leases.close(name)
            self.write(ran_out(self.mirror.nodes[name], state))
        sight = [self.mirror.revision, *((id(it.view), it.synced, now > it.heard + SILENCE)
                                         for it in self.links.values())]  # fmt: skip
        self._stop_orphans()
        for app in self.mirror.apps:
            # What nothing has changed about comes out as the last time.
            if (self.settled.get(app) != sight or self.busy.get(app)) and self.look_at(app):
                self.settled[app] = sight

    def _tell_alone(self, name: str, node: Node) -> None:
        """Have a node know whether it is alone, as the product's LeaseWatch does."""
        leases, only = self.leases, len(self.mirror.nodes) == 1
        assert leases is not None
        leases.set_alone(name, stored=node.serves_alone, wanted=only)
        if name in leases.parted:
            self.write(parted(name, node.incarnation), lambda: leases.parting_stored(name))
        elif only and not node.serves_alone and leases.is_open(name, node.incarnation):
            self.write(alone(name, node.incarnation))

    def _watch(self, name: str, link: Link) -> None:
        assert self.tenure is not None
        link.session = next(self.sessions)
        self.fleet.terms[link.session] = self.tenure.term
        link.beat = 0
        node = self.fleet.nodes[name]
        self.simulation.send(self.process, node.process, node.on_watch, self, link.session, self.tenure.term)

    def on_beat(
        self, name: str, session: int, incarnation: str, beat: int, time: float, view: dict[str, Instance],
        beaten: float,
    ) -> None:  # fmt: skip
        link = self.links.get(name)
        if link is None or link.session != session or beat <= link.beat:
            return
        if incarnation != self.mirror.nodes[name].incarnation:
            return
        link.beat, link.view, link.heard, link.incarnation = beat, view, self.clock(), incarnation
        if not link.synced:
            link.synced = True
            self._heard(name, link, incarnation)
        # It may stand still between reading and granting.
        if self.fleet.rough and self.simulation.chance.random() < 0.05:
            self.simulation.after(0.0, self.process, self._grant, name, incarnation, time, beaten)
            self.fleet.maybe_pause(self.process)
        else:
            self._grant(name, incarnation, time, beaten)

    def _grant(self, name: str, incarnation: str, time: float, beaten: float) -> None:
        if self.leases is None:
            return
        grant = self.leases.grant(name, incarnation, time)
        if grant is not None:
            node = self.fleet.nodes[name]
            self.simulation.send(self.process, node.process, node.on_renew, self, grant, beaten)

    def _heard(self, name: str, link: Link, incarnation: str) -> None:
        assert self.leases is not None
        session = link.session

        def granted() -> None:
            if self.leases is None or not link.synced or link.session != session:
                return
            self.leases.open(name, incarnation, self._fences(name, link))
            if self.fleet.lone:
                self._tell_alone(name, self.mirror.nodes[name])

        self.write(heard(name, incarnation, lone=self.fleet.lone), granted)

    def _fences(self, name: str, link: Link) -> list[Fence]:
        fences = []
        for app, record in self.mirror.apps.items():
            here = link.of(app).values()
            epoch = fence_epoch(record.uid, name, self.mirror.placements.get(app, ()), here)
            if epoch:
                fences.append(Fence(record.uid, epoch))
        return fences

    def on_granted(self, name: str, grant: Grant, alone: bool) -> None:
        if self.leases is not None:
            self.leases.accepted(name, grant, alone=alone)

    # Apps

    def see(self, app: AppRecord, placements: tuple[PlacementRecord, ...]) -> Snapshot:
        now = self.clock()
        views = {}
        alone = (
            serving_alone(app, placements, as_records(self.mirror).get) if self.fleet.lone else frozenset()
        )
        for name in {it.node for it in placements}:
            node, link = self.mirror.nodes[name], self.links.get(name, Link())
            here = link.of(app.name)
            if link.synced:
                views[name] = NodeView(node, Sight.HEARD, here)
            elif now > link.heard + SILENCE:
                lost = node.lease_state == Node.EXPIRED and name not in alone
                views[name] = NodeView(node, Sight.LOST if lost else Sight.SILENT, here)
        if any(it.role is not Role.LOST and _sees(views, it.node) for it in placements):
            return Snapshot(views, alone=alone)
        every = [it.node for them in self.mirror.placements.values() for it in them]
        heard = [name for name, link in self.links.items() if link.synced and name in self.mirror.nodes]
        candidates = tuple(Candidate(name, True, every.count(name), 0) for name in heard)
        return Snapshot(views, candidates, alone=alone)

    def look_at(self, name: str) -> bool:
        """Make a pass over an app; tell whether nothing is to be done."""
        if self.busy.get(name, 0.0) > self.clock():
            return False
        app, placements = self.mirror.apps[name], self.mirror.placements.get(name, ())
        seen = self.see(app, placements)
        assigned = assign(app, placements, seen, 0)
        if set(assigned.placements) != set(placements) or assigned.target is not None:
            self._call(name, lambda done: self.write(decided(name, seen), done))
            return False
        todo = plan(app, assigned, seen, 0)
        for start in todo.starts:
            placement = start.placement
            node = self.fleet.nodes[placement.node]
            life = self.links[placement.node].incarnation
            what = (node, node.on_start, life, placement.instance, app.uid, placement.version)
            self._call(name, lambda _, what=what: self._tell(*what))
            if self.fleet.rough and self.simulation.chance.random() < 0.4:
                # It is tried again, by a leader that stood still in between.
                self._tell(*what, late=self.simulation.chance.uniform(1.0, 25.0))
        for stop in todo.stop:
            node, request = self.fleet.nodes[stop.node], stop.request
            self._tell(node, node.on_stop, request.name, request.app_uid, request.epoch)
        return not todo.starts and not todo.stop

    def _stop_orphans(self) -> None:
        for name, link in self.links.items():
            for instance in link.view.values() if link.synced else ():
                placements = self.mirror.placements.get(instance.name.partition("/instances/")[0], ())
                if all(it.node != name for it in placements):
                    node, request = self.fleet.nodes[name], stop_orphan(instance)
                    self._tell(node, node.on_stop, request.name, request.app_uid, request.epoch)

    def _call(self, name: str, call: Callable[[Callable[[], None]], None]) -> None:
        self.busy[name] = self.clock() + CALL
        call(lambda: self.busy.pop(name, None))

    def _tell(self, node: ModelNode, act: Callable[..., None], *what: Any, late: float = 0.0) -> None:
        assert self.tenure is not None
        if late:
            self.simulation.after(late, node.process, act, self, self.tenure.term, *what)
        else:
            self.simulation.send(self.process, node.process, act, self, self.tenure.term, *what)

    def on_started(self, name: str, incarnation: str, status: Instance) -> None:
        link = self.links.get(name)
        self.busy.pop(status.name.partition("/instances/")[0], None)
        if link is not None and link.synced and link.incarnation == incarnation:
            link.view = {**link.view, status.name: status}

    def on_stopped(self, name: str, incarnation: str, instance: str) -> None:
        link = self.links.get(name)
        if self.tenure is None or link is None or not link.synced or link.incarnation != incarnation:
            return
        link.view = {key: it for key, it in link.view.items() if key != instance}
        self.write(ended(instance, name))


def _sees(views: dict[str, NodeView], node: str) -> bool:
    return node not in views or views[node].sight is not Sight.LOST

"""A fleet in the simulation: two control planes, nodes, a database, users, and what must hold of them.

What decides is the product's own: tenure, leases, the node's lease and fences, assignment, plan. Only what
carries it (calls, streams, transactions) is made of the simulation's messages.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance, InstanceSpec
from runtime_node.instances.fences import Fences
from runtime_node.lease import REVOKED, Lease
from services.control_plane.leases import Counted, Fence, Grant, LeasePace, Leases, changed_states
from services.control_plane.placement.assignment import ENDING, assign
from services.control_plane.placement.choice import Candidate
from services.control_plane.placement.failover import fence_epoch
from services.control_plane.placement.snapshot import NodeView, Sight, Snapshot
from services.control_plane.reconciler.plan import plan, stop_orphan
from services.control_plane.store.records import AppRecord, PlacementRecord, Role, Version
from services.control_plane.tenure import Pace, Tenure
from services.rpc.errors import SupervisorError
from tests.model.simulation import Process, Simulation, Violation

ENVIRONMENT = "environments/default"
HEARTBEAT = 2.0
SILENCE = 5.0
CALL = 3.0
LEAD = Pace()
LEASE = LeasePace()


def spec(name: str, desired: int = App.RUNNING) -> App:
    app = App(name=name, entrypoint="shop:app", environment=ENVIRONMENT, desired_state=desired)
    app.availability, app.failover = InstanceSpec.CONSISTENT, App.AUTOMATIC
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


@dataclass
class Copy:
    """An instance on a node."""

    status: Instance
    lease: Lease


class ModelNode:
    """A node: lives again and again, each time with nothing."""

    def __init__(self, fleet: Fleet, name: str) -> None:
        self.fleet = fleet
        self.simulation = fleet.simulation
        self.name = name
        self.process = self.simulation.process(name)
        self.lives = 0
        self.begin()
        self.beat()

    def begin(self) -> None:
        """Begin another life, of a machine that was started anew: its clock too."""
        self.lives += 1
        self.process.offset = self.simulation.chance.uniform(0, 1000)
        self.clock = self.simulation.clock_of(self.process)
        self.incarnation = f"{self.name}-{self.lives}"
        self.lease = Lease(self.incarnation, self.clock)
        self.copies: dict[str, Copy] = {}
        self.view: dict[str, Instance] = {}
        self.fences = Fences(lambda: {it.status.app_uid for it in self.copies.values()})
        self.watchers: dict[str, tuple[ControlPlane, int]] = {}
        self.beats = 0
        self.registered = False
        self.proper = _Proper()
        self.newest = 0
        """Term of the newest leader whose stream or grant has reached this life."""
        self.register(self.incarnation)

    def register(self, incarnation: str) -> None:
        if incarnation != self.incarnation or self.registered:
            return
        self.simulation.send(self.process, self.fleet.database.process, self._store, incarnation)
        self.simulation.after(3.0, self.process, self.register, incarnation)

    def on_registered(self, incarnation: str) -> None:
        self.registered = self.registered or incarnation == self.incarnation

    def _store(self, incarnation: str) -> None:
        def run(catalog: Catalog) -> Catalog:
            known = catalog.nodes.get(self.name, Node(name=self.name))
            number = int(known.incarnation.rpartition("-")[2] or 0)
            if number >= int(incarnation.rpartition("-")[2]):
                return catalog
            node = _copy(known, incarnation=incarnation, state=Node.JOINING)
            return catalog.changed(nodes={**catalog.nodes, self.name: node})

        database = self.fleet.database
        database.write(None, run)
        self.simulation.send(database.process, self.process, self.on_registered, incarnation)

    def beat(self) -> None:
        for control_plane, session in self.watchers.values():
            self.tell(control_plane, session)
        self.simulation.after(HEARTBEAT, self.process, self.beat)

    def tell(self, control_plane: ControlPlane, session: int) -> None:
        self.beats += 1
        if self.view.keys() != self.copies.keys():
            self.view = {name: copy.status for name, copy in self.copies.items()}
        self.simulation.send(
            self.process, control_plane.process, control_plane.on_beat, self.name, session, self.incarnation,
            self.beats, self.clock(), self.view, self.simulation.now,
        )  # fmt: skip

    # What it is asked

    def on_watch(self, control_plane: ControlPlane, session: int, term: int) -> None:
        self.newest = max(self.newest, self.fleet.terms[session])
        if self.heeds(term):
            self.watchers[control_plane.name] = control_plane, session
            self.tell(control_plane, session)

    def on_renew(self, control_plane: ControlPlane, grant: Grant, beaten: float) -> None:
        def give_up() -> None:
            for fence in grant.fences:
                self.fences.raise_to(fence.app_uid, (fence.epoch, 0))
                for copy in self.copies.values():
                    if copy.status.app_uid == fence.app_uid and copy.status.epoch < fence.epoch:
                        copy.lease = REVOKED

        try:
            self.lease.renew(grant.term, grant.incarnation, grant.monotonic_time, grant.lasts, give_up)
        except SupervisorError:
            return
        self.newest = max(self.newest, grant.term)
        self.proper.granted(self.simulation.now, beaten, grant.lasts / self.process.rate)
        self.simulation.send(self.process, control_plane.process, control_plane.on_granted, self.name, grant)

    def on_start(
        self, control_plane: ControlPlane, term: int, incarnation: str, name: str, uid: str, version: Version
    ) -> None:
        if not self.heeds(term, incarnation):
            return
        if name not in self.copies:
            try:
                self.fences.check(name, uid, (version.epoch, version.generation))
            except SupervisorError:
                return
            self.fences.raise_to(uid, (version.epoch, version.generation))
            status = Instance(
                name=name, app_uid=uid, epoch=version.epoch, generation=version.generation,
                node=self.name, state=Instance.RUNNING, incarnation=self.incarnation,
            )  # fmt: skip
            self.copies[name] = Copy(status, self.lease)
            self.changed(term, name)
            self.fleet.began(uid, version.epoch, self.name)
        self.simulation.send(
            self.process, control_plane.process, control_plane.on_started, self.name, self.incarnation,
            self.copies[name].status,
        )  # fmt: skip

    def on_stop(self, control_plane: ControlPlane, term: int, name: str, uid: str, epoch: int) -> None:
        if not self.heeds(term):
            return
        copy = self.copies.get(name)
        if copy is not None and (copy.status.app_uid != uid or epoch < copy.status.epoch):
            return
        self.fences.raise_to(uid, (epoch, 0))
        if self.copies.pop(name, None) is not None:
            self.changed(term, name)
        self.simulation.send(
            self.process, control_plane.process, control_plane.on_stopped, self.name, self.incarnation, name
        )

    def heeds(self, term: int, incarnation: str = "") -> bool:
        try:
            self.lease.heed(term, incarnation)
        except SupervisorError:
            return False
        return True

    def changed(self, term: int, name: str) -> None:
        """Judge that something was done for a leader."""
        if term < self.newest:
            raise Violation(
                f"at {self.simulation.now:.3f} s {self.name} changes {name} for term {term}, after it heard "
                f"term {self.newest}"
            )

    # What its users ask

    def request(self, app: str, took: float) -> None:
        copies = [it for it in self.copies.values() if it.status.name.startswith(f"{app}/")]
        if not copies:
            return
        copy = max(copies, key=lambda it: it.status.epoch)
        lease = copy.lease
        if lease.held:
            self.simulation.after(
                took, self.process, self.respond, copy, lease.stretch, self.simulation.now, self.incarnation
            )

    def respond(self, copy: Copy, stretch: int, began: float, incarnation: str) -> None:
        if incarnation == self.incarnation and copy.lease.covers(stretch):
            self.fleet.left(self, copy, began)


class _Proper:
    """The spans, by the real time, in which a node holds a lease: what the product's own must agree with."""

    def __init__(self) -> None:
        self.since = self.until = -1.0

    def granted(self, now: float, beaten: float, lasts: float) -> None:
        until = beaten + lasts
        if until <= max(now, self.until):
            return
        if now >= self.until:
            self.since = now
        self.until = until

    def covers(self, began: float, ended: float) -> bool:
        return self.since <= began and ended < self.until + 1e-9


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
            heard = link.synced or now < link.heard + SILENCE
            counted.append(Counted(name, node.lease_state, heard, self.leases.has_run_out(name)))
        for name, state in changed_states(counted).items():
            if self.tenure.holds:
                self.fleet.lost(name, self.mirror.nodes[name].incarnation)
            self.leases.close(name)
            self.write(_ran_out(name, self.mirror.nodes[name].incarnation, state))
        sight = [self.mirror.revision, *((id(it.view), it.synced, now > it.heard + SILENCE)
                                         for it in self.links.values())]  # fmt: skip
        self._stop_orphans()
        for app in self.mirror.apps:
            # What nothing has changed about comes out as the last time.
            if (self.settled.get(app) != sight or self.busy.get(app)) and self.look_at(app):
                self.settled[app] = sight

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

        self.write(_heard(name, incarnation), granted)

    def _fences(self, name: str, link: Link) -> list[Fence]:
        fences = []
        for app, record in self.mirror.apps.items():
            here = link.of(app).values()
            epoch = fence_epoch(record, name, self.mirror.placements.get(app, ()), here)
            if epoch:
                fences.append(Fence(record.uid, epoch))
        return fences

    def on_granted(self, name: str, grant: Grant) -> None:
        if self.leases is not None:
            self.leases.accepted(name, grant)

    # Apps

    def see(self, app: AppRecord, placements: tuple[PlacementRecord, ...]) -> Snapshot:
        now = self.clock()
        views = {}
        for name in {it.node for it in placements}:
            node, link = self.mirror.nodes[name], self.links.get(name, Link())
            here = link.of(app.name)
            if link.synced:
                views[name] = NodeView(node, Sight.HEARD, here)
            elif now > link.heard + SILENCE:
                lost = node.lease_state == Node.EXPIRED
                views[name] = NodeView(node, Sight.LOST if lost else Sight.SILENT, here)
        if any(it.role is not Role.LOST and _sees(views, it.node) for it in placements):
            return Snapshot(views)
        every = [it.node for them in self.mirror.placements.values() for it in them]
        heard = [name for name, link in self.links.items() if link.synced and name in self.mirror.nodes]
        return Snapshot(views, tuple(Candidate(name, True, every.count(name), 0) for name in heard))

    def look_at(self, name: str) -> bool:
        """Make a pass over an app; tell whether nothing is to be done."""
        if self.busy.get(name, 0.0) > self.clock():
            return False
        app, placements = self.mirror.apps[name], self.mirror.placements.get(name, ())
        seen = self.see(app, placements)
        assigned = assign(app, placements, seen, 0)
        if set(assigned.placements) != set(placements) or assigned.target is not None:
            self._call(name, lambda done: self.write(_decided(name, seen), done))
            return False
        todo = plan(app, assigned, seen, 0)
        if todo.start is not None:
            placement = todo.start.placement
            node = self.fleet.nodes[placement.node]
            life = self.links[placement.node].incarnation
            what = (node, node.on_start, life, placement.instance, app.uid, placement.version)
            self._call(name, lambda _: self._tell(*what))
            if self.fleet.rough and self.simulation.chance.random() < 0.4:
                # It is tried again, by a leader that stood still in between.
                self._tell(*what, late=self.simulation.chance.uniform(1.0, 25.0))
        for stop in todo.stop:
            node, request = self.fleet.nodes[stop.node], stop.request
            self._tell(node, node.on_stop, request.name, request.app_uid, request.epoch)
        return todo.start is None and not todo.stop

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
        self.write(_ended(instance, name))


class Fleet:
    """All of it, and what must hold."""

    def __init__(self, simulation: Simulation, nodes: int, apps: int) -> None:
        self.simulation = simulation
        self.database = Database(simulation)
        self.highest: dict[str, dict[str, int]] = {}
        self.terms: dict[int, int] = {}
        self.rough = True
        """Things go wrong."""
        self.responses = 0
        self.moved = 0
        names = [f"apps/a{number}" for number in range(apps)]
        records = {
            name: AppRecord(name, f"uid-{name[5:]}", spec(name), App(), 1, Version(1, 1), 0, 0)
            for name in names
        }
        self.database.catalog = replace(self.database.catalog, apps=records)
        self.nodes = {
            name: ModelNode(self, name) for name in (f"{ENVIRONMENT}/nodes/n{n}" for n in range(nodes))
        }
        self.control_planes = [ControlPlane(self, f"cp{number}") for number in range(2)]

    # What the world does to it

    def maybe_pause(self, process: Process) -> None:
        process.paused_until = self.simulation.now + self.simulation.chance.choice((0.1, 2.0, 7.0, 12.0))

    def plot(self) -> None:
        """Let what random strikes hit too rarely come together around one node: its being cut off and its
        return, a change of leader, a late start, late transactions."""
        simulation, chance = self.simulation, self.simulation.chance
        leader = next((it for it in self.control_planes if it.tenure is not None), None)
        placed = [it for them in self.database.catalog.placements.values() for it in them]
        if leader is None or leader.tenure is None or not placed:
            return
        placement = chance.choice(placed)
        node, away = self.nodes[placement.node], chance.uniform(6.5, 13.0)
        if chance.random() < 0.3:
            # The leader alone loses the node, and soon the lead, while what it writes is under way.
            for one, other in ((leader.name, node.name), (node.name, leader.name)):
                simulation.weather.cut[one, other] = simulation.now + 25.0
            simulation.after(chance.uniform(2.0, 6.0), None, self.slow_down, 0.8, 9.0)
            return
        simulation.after(chance.uniform(0.5, 1.5), None, self.isolate, node.name, simulation.now + away)
        if chance.random() < 0.4:
            simulation.after(chance.uniform(0.0, 3.0), None, self.stand_still, leader.process, 30.0)
        if chance.random() < 0.5:
            simulation.after(chance.uniform(5.0, away), None, self.slow_down, 0.5, 5.0)
        moment = away
        if chance.random() < 0.3:
            moment = chance.uniform(0.0, 1.5 * away)
            simulation.after(moment, None, node.begin)
        else:
            self.command(placement.app, "restart")
        what = leader, leader.tenure.term, node.incarnation, placement.app, node
        simulation.after(max(moment, away) + chance.uniform(0.0, 4.0), node.process, self.start_late, *what)

    def slow_down(self, share: float, latest: float) -> None:
        self.simulation.weather.late, self.simulation.weather.latest = share, latest

    def start_late(
        self, leader: ControlPlane, term: int, incarnation: str, app: str, node: ModelNode
    ) -> None:
        """Let a start arrive that was asked for long ago: of what the node has been given up with, or had."""
        known = [it for it in self.database.catalog.placements.get(app, ()) if it.node == node.name]
        lost = [it for it in known if it.role is Role.LOST]
        for placement in lost or known:
            node.on_start(leader, term, incarnation, placement.instance, placement.app_uid, placement.version)

    def stand_still(self, process: Process, seconds: float) -> None:
        process.paused_until = self.simulation.now + seconds

    def isolate(self, node: str, until: float, ways: str = "both") -> None:
        """Cut a node off from all control planes, one way or both."""
        for control_plane in self.control_planes:
            if ways != "out":
                self.simulation.weather.cut[control_plane.name, node] = until
            if ways != "in":
                self.simulation.weather.cut[node, control_plane.name] = until

    def strike(self) -> None:
        """Let one thing go wrong, or be commanded."""
        simulation = self.simulation
        chance, weather, now = simulation.chance, simulation.weather, simulation.now
        everybody = [*self.nodes.values(), *self.control_planes]
        draw = chance.random()
        if draw < 0.15:
            self.maybe_pause(chance.choice(everybody).process)
        elif draw < 0.3:
            chance.choice(everybody).process.paused_until = now + chance.uniform(8.0, 14.0)
        elif draw < 0.45:
            one, other = chance.sample([it.process for it in everybody] + [self.database.process], 2)
            until = now + chance.choice((1.0, 4.0, 9.0, 15.0))
            weather.cut[one.name, other.name] = until
            if chance.random() < 0.5:
                weather.cut[other.name, one.name] = until
        elif draw < 0.65:
            until = now + chance.uniform(6.0, 15.0)
            self.isolate(chance.choice(list(self.nodes)), until, chance.choice(("in", "out", "both")))
        elif draw < 0.77:
            chance.choice(list(self.nodes.values())).begin()
        elif draw < 0.9:
            weather.lost, weather.twice, weather.late, weather.latest = chance.choice(
                ((0, 0, 0, 0), (0.3, 0, 0, 0), (0, 0.3, 0.2, 8.0), (0, 0, 0.4, 3.0), (0.1, 0.1, 0.3, 15.0))
            )
        else:
            self.command(
                chance.choice(list(self.database.catalog.apps)), chance.choice(("stop", "start", "restart"))
            )

    def command(self, name: str, verb: str) -> None:
        def run(catalog: Catalog) -> Catalog:
            app = catalog.apps[name]
            stopped = app.spec.desired_state == App.STOPPED
            if verb == "stop":
                app = replace(app, spec=spec(name, App.STOPPED))
            elif stopped == (verb == "start"):
                epoch = max(app.target.epoch, *(it.epoch for it in catalog.placements.get(name, ())), 0) + 1
                app = replace(app, spec=spec(name), target=Version(1, epoch), failed=None)
            return catalog.changed(apps={**catalog.apps, name: app})

        self.database.write(None, run)

    def ask(self) -> None:
        """Let users ask, somewhere."""
        chance = self.simulation.chance
        node = chance.choice(list(self.nodes.values()))
        took = chance.choice((0.0, 0.01, 1.0, 7.0))
        app = chance.choice(list(self.database.catalog.apps))
        self.simulation.after(0.0, node.process, node.request, app, took)
        if self.rough:
            self.simulation.after(0.4, None, self.ask)

    # What must hold

    def began(self, uid: str, epoch: int, node: str) -> None:
        known = self.highest.setdefault(uid, {})
        self.moved += bool(known) and node not in known
        known[node] = max(epoch, known.get(node, 0))

    def elected(self, who: ControlPlane) -> None:
        """Judge that somebody begins to lead."""
        for other in self.control_planes:
            if other is not who and other.tenure is not None and other.tenure.holds:
                raise Violation(f"at {self.simulation.now:.3f} s {who.name} leads, and so does {other.name}")

    def lost(self, name: str, incarnation: str) -> None:
        """Judge that a node is called lost by who leads."""
        node, now = self.nodes[name], self.simulation.now
        if node.incarnation == incarnation and node.proper.until > now:
            raise Violation(
                f"at {now:.3f} s {name} is called lost, and holds a lease until {node.proper.until:.3f}"
            )

    def left(self, node: ModelNode, copy: Copy, began: float) -> None:
        """Judge a response that leaves a node."""
        self.responses += 1
        now, status = self.simulation.now, copy.status
        if not node.proper.covers(began, now):
            raise Violation(f"at {now:.3f} s {node.name} answers for {status.name} without a lease")
        for other, epoch in self.highest[status.app_uid].items():
            if other != node.name and epoch > status.epoch:
                raise Violation(
                    f"at {now:.3f} s {node.name} answers for {status.name} of epoch {status.epoch}, "
                    f"after epoch {epoch} began on {other}"
                )

    def check_rest(self) -> None:
        """Judge what has come of it all once everything is well again."""
        catalog = self.database.catalog
        for name, app in catalog.apps.items():
            placements = catalog.placements.get(name, ())
            running = {
                copy.status.name: node for node in self.nodes.values() for copy in node.copies.values()
                if copy.status.app_uid == app.uid
            }  # fmt: skip
            if app.spec.desired_state == App.STOPPED:
                if running:
                    raise Violation(f"{name} was stopped, and runs: {running}")
                continue
            if [(it.role, it.version) for it in placements] != [(Role.CURRENT, app.target)]:
                raise Violation(f"{name} is to run as {app.target}, and has {placements}")
            (placement,) = placements
            if list(running) != [placement.instance]:
                raise Violation(f"{name} is placed as {placement}, and there are {list(running)}")
            node = running[placement.instance]
            if node.name != placement.node or not node.copies[placement.instance].lease.held:
                raise Violation(f"{name} is placed as {placement}, and cannot answer there")


def _sees(views: dict[str, NodeView], node: str) -> bool:
    return node not in views or views[node].sight is not Sight.LOST


# Transactions, as the product's are


def _copy(node: Node, **changes: Any) -> Node:
    copy = Node()
    copy.CopyFrom(node)
    for name, value in changes.items():
        setattr(copy, name, value)
    return copy


def _heard(name: str, incarnation: str) -> Callable[[Catalog], Catalog]:
    def run(catalog: Catalog) -> Catalog:
        node = catalog.nodes[name]
        if node.incarnation != incarnation:
            return catalog.changed()
        ready = _copy(node, state=Node.READY, lease_state=Node.GRANTED)
        return catalog.changed(nodes={**catalog.nodes, name: ready})

    return run


def _ran_out(name: str, incarnation: str, state: Any) -> Callable[[Catalog], Catalog]:
    def run(catalog: Catalog) -> Catalog:
        node = catalog.nodes[name]
        if node.incarnation != incarnation:
            return catalog
        lost = _copy(node, state=Node.UNREACHABLE, lease_state=state)
        return catalog.changed(nodes={**catalog.nodes, name: lost})

    return run


def _decided(name: str, seen: Snapshot) -> Callable[[Catalog], Catalog]:
    def run(catalog: Catalog) -> Catalog:
        app, known = catalog.apps[name], catalog.placements.get(name, ())
        believed = seen.believing(lambda node: catalog.nodes[node].lease_state == Node.EXPIRED)
        assigned = assign(app, known, believed, 0)
        after = replace(app, target=assigned.target or app.target, failed=assigned.failed)
        return catalog.changed(
            apps={**catalog.apps, name: after}, placements={**catalog.placements, name: assigned.placements}
        )

    return run


def _ended(instance: str, node: str) -> Callable[[Catalog], Catalog]:
    app = instance.partition("/instances/")[0]

    def run(catalog: Catalog) -> Catalog:
        left = tuple(
            it for it in catalog.placements.get(app, ())
            if not (it.instance == instance and it.node == node and it.role in ENDING)
        )  # fmt: skip
        return catalog.changed(placements={**catalog.placements, app: left})

    return run

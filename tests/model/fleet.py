"""A fleet in the simulation: two control planes, nodes, a database, users, and what must hold of them.

What decides is the product's own: tenure, leases, the node's lease and fences, assignment, plan. Only what
carries it (calls, streams, transactions) is made of the simulation's messages.
"""

from __future__ import annotations

from dataclasses import replace

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from services.control_plane.store.records import AppRecord, Role, Version
from tests.model.catalog import ENVIRONMENT, Catalog, Database, spec
from tests.model.control_plane import ControlPlane
from tests.model.node import Copy, ModelNode
from tests.model.simulation import Process, Simulation, Violation


class Fleet:
    """All of it, and what must hold."""

    def __init__(self, simulation: Simulation, nodes: int, apps: int, *, lone: bool = False) -> None:
        """`lone`: the apps are such that need no lease while their node is alone."""
        self.simulation = simulation
        self.lone = lone
        self.spared = 0
        """Responses that left without a lease, and might."""
        self.database = Database(simulation)
        self.highest: dict[str, dict[str, int]] = {}
        self.terms: dict[int, int] = {}
        self.rough = True
        """Things go wrong."""
        self.responses = 0
        self.moved = 0
        names = [f"apps/a{number}" for number in range(apps)]
        records = {
            name: AppRecord(name, f"uid-{name[5:]}", spec(name, lone=lone), App(), 1, Version(1, 1), 0, 0)
            for name in names
        }
        self.database.catalog = replace(self.database.catalog, apps=records)
        self.nodes = {
            name: ModelNode(self, name) for name in (f"{ENVIRONMENT}/nodes/n{n}" for n in range(nodes))
        }
        self.control_planes = [ControlPlane(self, f"cp{number}") for number in range(2)]

    def join(self) -> None:
        """Let another node come."""
        name = f"{ENVIRONMENT}/nodes/n{len(self.nodes)}"
        self.nodes[name] = ModelNode(self, name)

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
                app = replace(app, spec=spec(name, App.STOPPED, lone=self.lone))
            elif stopped == (verb == "start"):
                epoch = max(app.target.epoch, *(it.epoch for it in catalog.placements.get(name, ())), 0) + 1
                app = replace(app, spec=spec(name, lone=self.lone), target=Version(1, epoch), failed=None)
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
        if node.proper.covers(began, now):
            pass
        elif self.lone and self.database.catalog.nodes[node.name].serves_alone:
            self.spared += 1
        else:
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

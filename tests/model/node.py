"""A node in the simulation: its lease and its fences are the product's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance
from runtime_node.instances.fences import Fences
from runtime_node.lease import REVOKED, Lease, LeaseUnlessAlone, ServingRight
from services.control_plane.leases import Grant
from services.control_plane.store.records import Version
from services.rpc.errors import SupervisorError
from tests.model.catalog import Catalog, copied
from tests.model.simulation import Violation

if TYPE_CHECKING:
    from tests.model.control_plane import ControlPlane
    from tests.model.fleet import Fleet

HEARTBEAT = 2.0


@dataclass
class Copy:
    """An instance on a node."""

    status: Instance
    lease: ServingRight


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
            node = copied(known, incarnation=incarnation, state=Node.JOINING)
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
            self.lease.renew(
                grant.term, grant.incarnation, grant.monotonic_time, grant.lasts, give_up, alone=grant.alone
            )
        except SupervisorError:
            return
        self.newest = max(self.newest, grant.term)
        self.proper.granted(self.simulation.now, beaten, grant.lasts / self.process.rate)
        self.simulation.send(
            self.process, control_plane.process, control_plane.on_granted, self.name, grant, self.lease.alone
        )

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
            self.copies[name] = Copy(status, LeaseUnlessAlone(self.lease) if self.fleet.lone else self.lease)
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

"""Which nodes may have leases, and which are called lost: what the leader counts and what is stored, in step.

A node is opened only after the catalog says that it has a lease, and closed before it says that it has none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1.runtime_environment_pb2 import RuntimeStatus
from services.control_plane.leases import Counted, Fence, Leases, LeaseState
from services.control_plane.nodes.link import NodeLink
from services.control_plane.nodes.links import NodeLinks
from services.control_plane.placement.failover import fence_epoch
from services.control_plane.reconciler import transactions
from services.control_plane.store.interface import Transaction
from services.control_plane.store.mirror import Mirror
from services.control_plane.store.records import AppRecord, NodeRecord
from services.spec.availability import effective_failover

log = logging.getLogger("appsupervisor.reconciler")

LOOK_SECONDS = 0.25
"""Time between looks at which leases have run out."""

Note = Callable[[Callable[[Transaction], None]], Awaitable[bool]]


class LeaseWatch:
    """Of all nodes that one leader follows. Lives on its event loop."""

    def __init__(self, leases: Leases, links: NodeLinks, mirror: Mirror, note: Note) -> None:
        """`note` stores something about a node and tells whether it is stored."""
        self._leases = leases
        self._links = links
        self._mirror = mirror
        self._note = note
        self._lost: dict[str, set[str]] = {}
        """By environment: the nodes that are lost, as the catalog says."""
        self._nodes: dict[str, dict[str, bool]] = {}
        """By environment: its nodes, and whether the catalog says that they serve alone."""
        self._to_be_alone: set[str] = set()
        """Nodes of which is to be stored that they serve alone."""

    async def run(self) -> None:
        """Call nodes lost whose leases have run out, for ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                self._leases.look()
                await asyncio.gather(*(self._lose(node, state) for node, state in self._changed()))
                await self._store_alone()
            except Exception:
                # The count must go on: what failed comes up again with the next look.
                log.exception("leases not counted", extra={"action": "lease.count_failed"})

    async def heard(self, link: NodeLink, status: RuntimeStatus) -> None:
        """Store that a node is heard, and only then let it have leases, with what it has lost meanwhile."""
        name, session = link.node.name, link.session
        if not await self._note(partial(transactions.node_heard, node=link.node, status=status)):
            return
        record = self._mirror.nodes.get(name)
        granted = record is not None and record.node.lease_state == Node.GRANTED
        if granted and link.synced and link.session == session and self._links.get(name) is link:
            self._leases.open(name, link.node.incarnation, self._fences(link))
            self._tell_alone(name)

    def is_settled(self, node: Node, status: RuntimeStatus) -> bool:
        """Tell whether a node that is heard has what it needs of leases."""
        return not status.HasField("lease") or self._leases.is_open(node.name, node.incarnation)

    def noted(self, record: NodeRecord) -> bool:
        """Hear what the catalog says of a node by now; tell whether it serves alone, or not, by now."""
        known = self._nodes.setdefault(record.environment, {})
        before = known.get(record.name)
        known[record.name] = record.node.serves_alone
        if before != record.node.serves_alone:
            for name in list(known)[:2]:
                self._tell_alone(name)
        lost = self._lost.setdefault(record.environment, set())
        if record.node.lease_state == Node.EXPIRED:
            lost.add(record.name)
        else:
            lost.discard(record.name)
        return before is not None and before != record.node.serves_alone

    def forget(self, node: str) -> None:
        """Grant nothing more to a node that is not in the catalog any more."""
        self._leases.close(node)
        environment = node.partition("/nodes/")[0]
        self._lost.get(environment, set()).discard(node)
        left = self._nodes.get(environment, {})
        left.pop(node, None)
        if len(left) == 1:
            self._tell_alone(next(iter(left)))

    def waiting(self, environment: str) -> list[AppRecord]:
        """Return the apps on lost nodes of an environment that go elsewhere once somebody can take them."""
        lost = sorted(it for it in self._lost.get(environment, ()) if not self._links.is_heard(it))
        found = (self._mirror.apps.get(app) for node in lost for app in self._mirror.apps_on(node))
        return [it for it in found if it is not None and effective_failover(it.spec) == App.AUTOMATIC]

    def _tell_alone(self, name: str) -> None:
        """Have a node told with its grants whether it serves alone: as the catalog says, or no longer."""
        record, link = self._mirror.nodes.get(name), self._links.get(name)
        if record is None or link is None:
            return
        only = len(self._nodes.get(record.environment, ())) == 1
        knows = link.status is not None and link.status.lease.HasField("alone")
        self._leases.set_alone(name, stored=record.node.serves_alone, wanted=only and knows)
        if only and knows and not record.node.serves_alone:
            self._to_be_alone.add(name)

    async def _store_alone(self) -> None:
        """Store which nodes serve alone from now on, and which have heard that they do no longer."""
        for name in self._leases.parted:
            record = self._mirror.nodes.get(name)
            if record is None or await self._note(partial(transactions.parted, node=record.node)):
                self._leases.parting_stored(name)
                self._tell_alone(name)
        for name in list(self._to_be_alone):
            link, record = self._links.get(name), self._mirror.nodes.get(name)
            if link is None or record is None or not link.synced:
                self._to_be_alone.discard(name)  # once it is heard that is stored, too
            elif await self._note(partial(transactions.serves_alone, node=record.node)):
                self._to_be_alone.discard(name)
                self._tell_alone(name)

    async def _lose(self, node: NodeRecord, state: LeaseState) -> None:
        self._leases.close(node.name)
        stored = await self._note(partial(transactions.lease_ran_out, judged=node, state=state))
        if stored:
            log.error("node lost: its lease has run out: %s: %s", node.name, Node.LeaseState.Name(state),
                      extra={"action": "node.lease_ran_out", "node": node.name})  # fmt: skip

    def _changed(self) -> list[tuple[NodeRecord, LeaseState]]:
        links = self._links.all()
        # Most often there is none: then nothing is asked of the others, however many they are.
        missing = {link.node.name for link in links if link.is_missing}
        concerned = {name.partition("/nodes/")[0] for name in missing}
        environments: dict[str, dict[str, tuple[NodeRecord, Counted]]] = {}
        for link in links if missing else ():
            record = self._mirror.nodes.get(link.node.name)
            if record is None or record.environment not in concerned:
                continue
            heard = record.name not in missing
            over = not heard and self._leases.has_run_out(record.name)
            counted = Counted(record.name, record.node.lease_state, heard, over)
            environments.setdefault(record.environment, {})[record.name] = record, counted
        return [
            (nodes[name][0], state)
            for environment, nodes in environments.items()
            for name, state in self._leases.changed(environment, (it for _, it in nodes.values())).items()
        ]

    def _fences(self, link: NodeLink) -> list[Fence]:
        """Return what a node must not go on with: it may have been given to others."""
        name, fences = link.node.name, []
        for app in {*self._mirror.apps_on(name), *link.apps()}:
            known = self._mirror.packed(app)
            if known is None:
                continue
            here = link.instances(app).values()
            epoch = fence_epoch(known.uid, name, self._mirror.placements_of(app), here)
            if epoch:
                fences.append(Fence(known.uid, epoch))
        return fences

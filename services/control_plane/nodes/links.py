"""The links to the nodes, by name: made and ended as nodes come and go, and what they show of an app."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping

from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance, InstanceFigures
from services.control_plane.leases import Leases
from services.control_plane.nodes.beginnings import Beginnings
from services.control_plane.nodes.client import HEARTBEAT_SHARE, NodeClient
from services.control_plane.nodes.link import LinkListener, NodeLink
from services.control_plane.placement.snapshot import NodeView, Sight
from services.rpc.errors import SupervisorError

CROWD = 100
"""Nodes; those beyond them say that they live only as often as their leases are renewed, and their streams
may be silent for so much longer. They are called missing, and lost, no later for that."""


class NodeLinks:
    """Follows nodes. Belongs to one event loop; `is_heard` may be asked from any thread."""

    def __init__(self, timeout: float, connect: Callable[[str], NodeClient], leases: Leases) -> None:
        """`timeout` is the seconds of silence after which a node is given up."""
        self._timeout = timeout
        self._connect = connect
        self._leases = leases
        self._beginnings = Beginnings()
        self._links: dict[str, NodeLink] = {}
        self._by_environment: dict[str, dict[str, NodeLink]] = {}
        self._hosts: dict[str, tuple[NodeLink, ...]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._figures: dict[str, dict[str, InstanceFigures]] = {}

    def follow(self, node: Node, listener: LinkListener) -> None:
        """Follow a node's present life; one that is followed already is told what it says of itself."""
        link = self._links.get(node.name)
        if link is not None:
            if (link.node.incarnation, link.node.address) == (node.incarnation, node.address):
                link.node = node
                return
            self.forget(node.name)
        link = NodeLink(
            node,
            listener,
            leases=self._leases,
            timeout=self._timeout,
            silence=self._silence(),
            connect=self._connect,
            beginnings=self._beginnings,
            hosts=self._hosts,
            figures=self._figures,
        )
        self._links[node.name] = link
        self._by_environment.setdefault(_environment(node.name), {})[node.name] = link

    def _silence(self) -> float:
        """Return for how long the next node's stream may be silent; it is asked to speak more often."""
        half = self._timeout / 2
        if len(self._links) < CROWD:
            return half
        return max(half, min(self._timeout, self._leases.pace.renew / HEARTBEAT_SHARE))

    def forget(self, name: str) -> None:
        """Follow a node no longer."""
        link = self._links.pop(name, None)
        if link is not None:
            self._by_environment[_environment(name)].pop(name, None)
            link.end()
            task = asyncio.create_task(link.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Follow nobody any more; others may be followed afterwards."""
        for name in list(self._links):
            self.forget(name)
        await asyncio.gather(*self._closing)

    def get(self, name: str) -> NodeLink | None:
        """Return the link to a node."""
        return self._links.get(name)

    def all(self) -> list[NodeLink]:
        """Return the links to all nodes."""
        return list(self._links.values())

    def of(self, environment: str) -> Collection[NodeLink]:
        """Return the links to the nodes of an environment."""
        return self._by_environment.get(environment, {}).values()

    def hosting(self, app: str) -> list[NodeLink]:
        """Return the links to the nodes that show something of an app, in the order of their names."""
        return sorted(self._hosts.get(app, ()), key=lambda link: link.node.name)

    def is_elsewhere(self, app: str, link: NodeLink) -> bool:
        """Tell whether another node shows something of an app."""
        return any(it is not link for it in self._hosts.get(app, ()))

    def keep_figures(self, apps: Collection[str]) -> None:
        """Keep the newest figures of these apps' instances from now on, and of no others."""
        for app in [app for app in self._figures if app not in apps]:
            del self._figures[app]
        for app in apps:
            self._figures.setdefault(app, {})

    def figures(self, app: str) -> dict[str, InstanceFigures]:
        """Return the newest figures of an app's instances by name; none where they are not kept."""
        return self._figures.get(app, {})

    def is_heard(self, name: str) -> bool:
        """Tell whether a node's stream is open now. Safe from any thread."""
        link = self._links.get(name)
        return link is not None and link.synced

    def is_clear(self, name: str) -> bool:
        """Tell whether a node is heard or given up; until then nothing can be said of its apps."""
        link = self._links.get(name)
        return link is not None and (link.synced or link.given_up)

    def view(self, name: str, app: str, told: Mapping[str, Instance]) -> NodeView | None:
        """Return what a node shows of an app; `told` is what is known of a silent one. None while unclear."""
        link = self._links.get(name)
        if link is None or not self.is_clear(name):
            return None
        if not link.synced:
            return NodeView(link.node, Sight.SILENT, told)
        return NodeView(
            link.node, Sight.HEARD, dict(link.instances(app)), link.hindrance(app), forwards=link.forwards
        )

    def hinder(self, name: str, app: str, refusal: SupervisorError) -> None:
        """Note why a node did not do what it was told for an app."""
        link = self._links.get(name)
        if link is not None:
            link.hinder(app, refusal.reason, refusal.message)


def _environment(node: str) -> str:
    return node.partition("/nodes/")[0]

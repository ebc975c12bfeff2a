"""The figures of running instances, asked of their nodes when they are wanted: nothing of them is kept.

A node that does not answer in time is left out; whoever asked gets the rest.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance, InstanceFigures
from services.control_plane.nodes.pool import NodePool
from services.rpc.errors import SupervisorError

ASK_SECONDS = 2.0
"""How long nodes may take to answer, all together."""

NODES_AT_ONCE = 16
ONE_BY_ONE = 4
"""Up to so many apps of a node are asked for by name; with more, the node tells of all."""

log = logging.getLogger("appsupervisor.control_plane")


class FigureReader:
    """Fills figures into apps, at any replica. Lives on one loop."""

    def __init__(self, nodes: NodePool) -> None:
        self._nodes = nodes
        self._room = asyncio.Semaphore(NODES_AT_ONCE)

    async def with_figures(self, apps: Sequence[App], seconds: float = ASK_SECONDS) -> list[App]:
        """Return copies of apps, with the figures of their running instances that are told in time."""
        full = [App.FromString(app.SerializeToString()) for app in apps]
        wanted: dict[str, dict[str, list[Instance]]] = defaultdict(lambda: defaultdict(list))
        for app in full:
            for instance in app.instances:
                if instance.state == Instance.RUNNING and instance.health != Instance.UNKNOWN:
                    wanted[instance.node][app.name].append(instance)
        if wanted:
            asking = [asyncio.create_task(self._ask(node, of)) for node, of in wanted.items()]
            try:
                await asyncio.wait(asking, timeout=min(seconds, ASK_SECONDS))
            finally:
                for task in asking:
                    task.cancel()
                await asyncio.gather(*asking, return_exceptions=True)
        return full

    async def _ask(self, node: str, apps: dict[str, list[Instance]]) -> None:
        """Fill in what one node tells."""
        try:
            async with self._room, self._nodes.client_of(node) as client:
                for parent in apps if len(apps) <= ONE_BY_ONE else ("apps/-",):
                    told = {
                        (it.app_uid, it.name): it.figures
                        async for it in client.instances(parent, ASK_SECONDS)
                        if it.HasField("figures")
                    }
                    _fill(apps.values(), told)
        except SupervisorError as silent:
            log.info("no figures from %s: %s", node, silent.message,
                     extra={"action": "node.figures_missing", "node": node})  # fmt: skip


def _fill(wanted: Iterable[list[Instance]], told: Mapping[tuple[str, str], InstanceFigures]) -> None:
    """Give instances the figures that were told of them, by app uid and name."""
    for instance in (one for some in wanted for one in some):
        figures = told.get((instance.app_uid, instance.name))
        if figures is not None:
            instance.figures.CopyFrom(figures)

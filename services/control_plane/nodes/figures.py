"""What nodes tell of running instances when asked, their figures and other code on disk: none of it is kept.

A node that does not answer in time is left out; whoever asked gets the rest.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance
from services.control_plane.nodes.pool import NodePool
from services.control_plane.rules.conditions import CODE_CHANGED, get_condition
from services.rpc.errors import SupervisorError

ASK_SECONDS = 2.0
"""How long nodes may take to answer, all together."""

NODES_AT_ONCE = 16
ONE_BY_ONE = 4
"""Up to so many apps of a node are asked for by name; with more, the node tells of all."""

log = logging.getLogger("appsupervisor.control_plane")


class FigureReader:
    """Fills what nodes tell into apps, at any replica. Lives on one loop."""

    def __init__(self, nodes: NodePool) -> None:
        self._nodes = nodes
        self._room = asyncio.Semaphore(NODES_AT_ONCE)

    async def with_figures(self, apps: Sequence[App], seconds: float = ASK_SECONDS) -> list[App]:
        """Return copies of apps, with what is told in time of their running instances: their figures, and
        condition `CodeChanged` of those that run other code than is on disk, and of their apps.
        """
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
        for app in full:
            changed = (get_condition(one.conditions, CODE_CHANGED) for one in _staying(app))
            app.conditions.extend(list(filter(None, changed))[:1])
        return full

    async def _ask(self, node: str, apps: dict[str, list[Instance]]) -> None:
        """Fill in what one node tells."""
        try:
            async with self._room, self._nodes.client_of(node) as client:
                for parent in apps if len(apps) <= ONE_BY_ONE else ("apps/-",):
                    asked = client.instances(parent, ASK_SECONDS)
                    told = {(instance.app_uid, instance.name): instance async for instance in asked}
                    for instance in (one for some in apps.values() for one in some):
                        _fill(instance, told.get((instance.app_uid, instance.name)))
        except SupervisorError as silent:
            log.info("nothing told by %s: %s", node, silent.message,
                     extra={"action": "node.figures_missing", "node": node})  # fmt: skip


def _staying(app: App) -> Sequence[Instance]:
    """Return an app's instances without those that a swap takes away: their code is of no account now."""
    if not app.reconciling or not app.instances:
        return app.instances
    return (max(app.instances, key=lambda one: (one.epoch, one.generation)),)


def _fill(instance: Instance, told: Instance | None) -> None:
    if told is None:
        return
    if told.HasField("figures"):
        instance.figures.CopyFrom(told.figures)
    if told.HasField("code"):
        instance.code.CopyFrom(told.code)
    changed = get_condition(told.conditions, CODE_CHANGED)
    if changed is not None:
        instance.conditions.append(changed)

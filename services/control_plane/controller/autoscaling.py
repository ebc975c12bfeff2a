"""Looks at the requests of apps that scale by them, and stores how many replicas they get."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from services.control_plane.nodes.links import NodeLinks
from services.control_plane.placement.autoscale import Load, decide
from services.control_plane.placement.scale import wanted_replicas
from services.control_plane.reconciler import transactions
from services.control_plane.store.interface import Transaction
from services.control_plane.store.mirror import Mirror
from services.control_plane.store.records import AppRecord, PlacementRecord, Role

log = logging.getLogger("appsupervisor.reconciler")

LOOK_SECONDS = 2.0
"""As often as nodes tell of their figures."""


class Autoscaling:
    """Decides for the apps that scale by their requests. Lives on one loop, of who leads."""

    def __init__(
        self,
        mirror: Mirror,
        links: NodeLinks,
        note: Callable[[Callable[[Transaction], None]], Awaitable[bool]],
        clock: Callable[[], float],
    ) -> None:
        """`note` stores a decision; what cannot be stored is decided again."""
        self._mirror = mirror
        self._links = links
        self._note = note
        self._clock = clock
        self._loads: dict[str, Load] = {}
        """By uid of an app."""

    async def run(self) -> None:
        """Go on for ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Look at each app once."""
        known = self._loads
        self._loads = {}
        for name in self._mirror.autoscaled():
            app = self._mirror.apps.get(name)
            if app is None or not app.spec.HasField("autoscale") or app.deleting:
                continue
            load = known.get(app.uid) or Load(self._clock())
            self._loads[app.uid] = load
            try:
                await self._look_at(app, load)
            except Exception:
                # The others are to be scaled all the same.
                log.exception("not scaled: %s", name,
                              extra={"action": "app.scaling_failed", "app": name})  # fmt: skip

    async def _look_at(self, app: AppRecord, load: Load) -> None:
        placements = self._mirror.placements_of(app.name)
        if not all(self._links.is_clear(it.node) for it in placements if _serves(it)):
            return  # what is not known is no quiet
        bounds, now = app.spec.autoscale, self._clock()
        in_flight = sum(link.in_flight(app.name) for link in self._links.hosting(app.name))
        load.seen(bounds, now, in_flight)
        before = wanted_replicas(app)
        decision = decide(bounds, load, now, before)
        if decision is None:
            return
        log.info(
            "scaled: %s: %s to %s replicas", app.name, before, decision.replicas,
            extra={"action": "app.scaled", "app": app.name, "replicas": decision.replicas},
        )  # fmt: skip
        await self._note(partial(transactions.scaled, name=app.name, uid=app.uid, decision=decision))


def _serves(placement: PlacementRecord) -> bool:
    return placement.role in (Role.CURRENT, Role.INCOMING)

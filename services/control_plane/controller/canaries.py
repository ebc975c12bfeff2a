"""Looks at the requests of apps of which a new version is tried first, and stores what it is judged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from appsupervisor.catalog.v1.app_catalog_pb2 import App, Canary
from services.control_plane.nodes.links import NodeLinks
from services.control_plane.operations import canaries
from services.control_plane.placement.canary import Trial, is_of, judge, of_versions
from services.control_plane.store.interface import Transaction
from services.control_plane.store.mirror import Mirror
from services.control_plane.store.records import AppRecord, Role
from services.spec.scalars import seconds

log = logging.getLogger("appsupervisor.reconciler")

LOOK_SECONDS = 2.0
"""As often as nodes tell of their figures."""


class Canaries:
    """Judges the versions that are on trial. Lives on one loop, of who leads; another leader counts anew."""

    def __init__(
        self,
        mirror: Mirror,
        links: NodeLinks,
        note: Callable[[Callable[[Transaction], None]], Awaitable[bool]],
        now: Callable[[], int],
    ) -> None:
        """`note` stores a verdict, and one that cannot be stored is given again; `now` is the store's, µs."""
        self._mirror = mirror
        self._links = links
        self._note = note
        self._now = now
        self._since = now()
        self._trials: dict[str, Trial] = {}
        """By uid of an app."""

    async def run(self) -> None:
        """Go on for ever."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Look at each app of which a version is on trial."""
        names = self._mirror.on_trial()
        self._links.keep_figures(names)
        known, self._trials = self._trials, {}
        for name in names:
            app = self._mirror.apps.get(name)
            if app is None or app.deleting or not app.spec.rollout.HasField("canary"):
                continue
            if app.spec.desired_state == App.STOPPED or not is_of(app.status.canary, app.target):
                continue
            trial = known.get(app.uid)
            if trial is None or trial.version != app.target:
                trial = Trial(app.target, from_start=self._saw_begin(app.status.canary))
            self._trials[app.uid] = trial
            try:
                await self._look_at(app, trial)
            except Exception:
                # The others are to be judged all the same.
                log.exception("canary not judged: %s", name,
                              extra={"action": "app.canary_failed", "app": name})  # fmt: skip

    def _saw_begin(self, canary: Canary) -> bool:
        return not canary.HasField("begin_time") or canary.begin_time.ToMicroseconds() >= self._since

    async def _look_at(self, app: AppRecord, trial: Trial) -> None:
        placements = self._mirror.placements_of(app.name)
        serving = [it for it in placements if it.role in (Role.CURRENT, Role.INCOMING)]
        figures = self._links.figures(app.name)
        for name in figures.keys() - {it.instance for it in serving}:
            del figures[name]
        trial.look(*of_versions(app.status, serving, figures))
        canary, policy = app.status.canary, app.spec.rollout.canary
        if not canary.HasField("begin_time"):
            return
        elapsed = (self._now() - canary.begin_time.ToMicroseconds()) / 1e6
        verdict = judge(policy, trial, elapsed)
        heard = all(map(self._links.is_heard, canary.nodes))
        if verdict is None or (
            # What is not known speaks for nobody, but it is not waited for without end.
            verdict.state == Canary.PROMOTED and not heard and elapsed < seconds(policy.timeout)
        ):
            return
        log.info(
            "canary judged: %s: %s: %s", app.name, Canary.State.Name(verdict.state), verdict.message,
            extra={"action": "app.canary_judged", "app": app.name, "generation": canary.generation,
                   "reason": verdict.reason},
        )  # fmt: skip
        await self._note(
            partial(canaries.judged, name=app.name, uid=app.uid, version=app.target, verdict=verdict)
        )

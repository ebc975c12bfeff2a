"""Has nodes stop what a plan says and what has no placement, and forward to where an app has gone.

Which instances end is `plan`'s, but for orphans. Nothing here is stored.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance, StopInstanceRequest
from services.control_plane.nodes.links import NodeLinks
from services.control_plane.placement.assignment import Assignment
from services.control_plane.reconciler.former_homes import FormerHomes
from services.control_plane.reconciler.homes import new_home, told_under
from services.control_plane.reconciler.pace import Pace
from services.control_plane.reconciler.plan import Stop, stop_orphan
from services.control_plane.store.mirror import Mirror
from services.control_plane.store.records import AppRecord, PlacementRecord, Role
from services.rpc.errors import SupervisorError

log = logging.getLogger("appsupervisor.reconciler")


class Stops:
    """Carries out stops; keeps how often the removal of each app was tried of late. Lives on one loop."""

    def __init__(self, mirror: Mirror, links: NodeLinks, former_homes: FormerHomes, pace: Pace) -> None:
        self._mirror = mirror
        self._links = links
        self._former_homes = former_homes
        self._pace = pace

    def pause(self, app: AppRecord) -> float:
        """Return the seconds until the removal of an app's data may be tried again; 0 for now."""
        return self._pace.wait(app.name, app.target, "")

    async def carry_out(
        self, app: AppRecord, stops: Sequence[Stop]
    ) -> tuple[list[PlacementRecord], SupervisorError | None]:
        """Carry out stops; return the placements that are over, and the last failure."""
        over: list[PlacementRecord] = []
        failure: SupervisorError | None = None
        for stop in stops:
            try:
                gone = await self._stop(app.name, stop.node, stop.request)
            except SupervisorError as refusal:
                failure = refusal
                if app.deleting:
                    self._links.hinder(stop.node, app.name, refusal)
                    self._pace.started(app.name, app.target, "")
                continue
            if stop.request.HasField("new_home"):
                self._former_homes.told(app.name, stop.node, stop.request)
            if gone and stop.ends is not None:
                over.append(stop.ends)
        return over, failure

    async def _stop(self, app: str, node: str, request: StopInstanceRequest) -> bool:
        """Stop an instance; tell whether it is gone, and its data if that was to go."""
        link = self._links.get(node)
        if link is None:
            return False
        instance = await link.stop(request)
        if instance is None:
            link.forget(app, request.name)
            return True
        if instance.last_error.reason == "DATA_NOT_REMOVED":
            raise SupervisorError("DATA_NOT_REMOVED", instance.last_error.message, resource=app)
        return False

    async def stop_orphans(self, app: str) -> None:
        """Stop the app's instances on nodes that it has no placement on; of a removed app, all of them.

        An app that this catalog never knew is left alone: the catalog may be the wrong one, or an old copy.
        """
        if self._mirror.apps.get(app) is None and not self._mirror.apps.was_deleted(app):
            return
        placements = self._mirror.placements_of(app)
        placed = {placement.node for placement in placements}
        for link in self._links.hosting(app):
            if link.node.name in placed or not link.synced:
                continue
            for instance in list(link.instances(app).values()):
                if instance.state == Instance.STOPPING:
                    continue
                log.warning(
                    "orphan stopped: %s on %s", instance.name, link.node.name,
                    extra={"action": "instance.orphan_stopped", "instance": instance.name,
                           "node": link.node.name},
                )  # fmt: skip
                home = self._home_of(instance, placements)
                await self._stop(app, link.node.name, stop_orphan(instance, home))

    def _home_of(
        self, instance: Instance, placements: tuple[PlacementRecord, ...]
    ) -> StopInstanceRequest.NewHome | None:
        """Return where the app of an instance that is nobody's is now, if it is anywhere."""
        app = self._mirror.apps.get(instance.name.rpartition("/instances/")[0])
        current = next((it for it in placements if it.role is Role.CURRENT), None)
        link = self._links.get(current.node) if current is not None else None
        if app is None or link is None or app.uid != instance.app_uid or app.deleting:
            return None
        return new_home(app, link.node)

    async def redirect(self, app: AppRecord, assigned: Assignment, home: StopInstanceRequest.NewHome) -> None:
        """Have nodes that forward an app's requests forward them to where it is now, if they can be told."""
        epoch = partial(told_under, app, assigned)
        for node, request in self._former_homes.to_tell(app.name, app.uid, epoch, home):
            link = self._links.get(node)
            if link is None or not link.synced:
                continue
            try:
                await link.stop(request)
            except SupervisorError as refusal:
                log.info(
                    "not told where %s is: %s", app.name, node,
                    extra={"action": "node.not_redirected", "app": app.name, "node": node,
                           "reason": refusal.reason},
                )  # fmt: skip
            else:
                self._former_homes.told(app.name, node, request)

    async def redirect_source(self, app: AppRecord, assigned: Assignment) -> None:
        """Have the node that an app's data has left forward what it holds: it is started elsewhere."""
        move, wanted = app.status.data_move, assigned.wanted
        source, target = self._links.get(move.source_node), self._links.get(move.target_node)
        left = (it for it in assigned.placements if it.node == move.source_node and not it.has_data)
        before = next(left, None)
        runs = wanted is not None and wanted.node == move.target_node
        if runs and before is not None and source is not None and source.synced and target is not None:
            stop = StopInstanceRequest(name=before.instance, epoch=app.target.epoch, app_uid=app.uid)
            home = new_home(app, target.node)
            if home is not None:
                stop.new_home.CopyFrom(home)
                await self.redirect(app, assigned, home)
                await source.stop(stop)
                self._former_homes.told(app.name, source.node.name, stop)

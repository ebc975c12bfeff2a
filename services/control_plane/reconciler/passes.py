"""One pass over one app: place, observe, store what was observed, act.

It looks at the newest of the catalog and of the node's view, and may be cut off anywhere: the next
pass begins again. Who passes when is the reconciler's.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TypeVar

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.runtime.v1.runtime_environment_pb2 import (
    Instance,
    StartInstanceRequest,
    StopInstanceRequest,
)
from services.control_plane.placement.placement import Candidate, choose
from services.control_plane.reconciler import writes
from services.control_plane.reconciler.node_link import NodeLink
from services.control_plane.reconciler.observation import View, awaits_start, observe, under_new_epoch
from services.control_plane.reconciler.plan import plan, stop_orphan
from services.control_plane.store.interface import CatalogStore, Transaction
from services.control_plane.store.records import AppRecord
from services.rpc.errors import SupervisorError

log = logging.getLogger("appsupervisor.reconciler")

FINAL_REFUSALS = frozenset({"INVALID_FIELD", "ENTRYPOINT_MALFORMED", "ISOLATION_UNSUPPORTED"})
"""Refusals of a start that no retry changes: they are shown as the app's failure."""

OUTDATED = frozenset({"STALE_EPOCH", "INSTANCE_EXISTS"})
"""Refusals of a start that a new epoch resolves."""

NEW_EPOCHS = 3
"""New epochs in a row that refusals of an app's start bring about at once; then with growing pauses."""

T = TypeVar("T")


class Passes:
    """Makes passes; keeps only what one pass must know of another."""

    def __init__(
        self,
        store: CatalogStore,
        links: Mapping[str, NodeLink],
        enqueue: Callable[[str], None],
    ) -> None:
        """`links` are the nodes' by name, kept up to date by their owner; `enqueue` asks for a pass."""
        self._store = store
        self._mirror = store.mirror
        self._links = links
        self._enqueue = enqueue
        self._outdated: Counter[str] = Counter()
        self._placing: Counter[str] = Counter()

    async def make(self, app: str, *, after_pause: bool) -> None:
        """Make one pass; `after_pause` tells that it is the one to which a failed pass was put off.

        Raises SupervisorError for what is worth another try after a pause.
        """
        await self._look_at(app, after_pause)
        await self._stop_orphans(app)

    async def _look_at(self, app: str, after_pause: bool) -> None:
        record = self._mirror.apps.get(app)
        if record is None:
            self._outdated.pop(app, None)
            return
        unplaced = ""
        if not record.node and not record.deleting and record.spec.desired_state != App.STOPPED:
            record, unplaced = await self._place(record)
        link = self._links.get(record.node)
        view = self._view(record, link, unplaced)
        if view is None:
            return
        if link is not None and awaits_start(record, view):
            # Apps are to serve first of all: what came of the start is stored in the pass that this asks for.
            # So all apps of a returning node are started before any of it, and none is told as gone.
            await self._act(record, view, link, after_pause)
            self._enqueue(app)
            return
        if observe(record, view, self._store.now()) != record:
            uid = record.uid
            observed = await self._write(lambda tx: writes.observed(tx, app, uid, view))
            if observed is None:
                return
            record = observed
        await self._act(record, view, link, after_pause)

    def _view(self, record: AppRecord, link: NodeLink | None, unplaced: str) -> View | None:
        """Return what can be seen of the app; None while its node is neither heard nor given up."""
        if not record.node:
            return View(None, True, {}, unplaced)
        if link is None:
            return None
        if link.synced:
            hindrance = link.hindrance(record.name)
            return View(link.node, True, dict(link.instances(record.name)), hindrance=hindrance)
        if not link.given_up:
            return None
        told = {instance.name: instance for instance in record.status.instances}
        return View(link.node, False, told)

    async def _act(self, record: AppRecord, view: View, link: NodeLink | None, after_pause: bool) -> None:
        todo = plan(record, view)
        failure: SupervisorError | None = None
        if link is not None:
            for stop in todo.stop:
                failure = await self._stop(record.name, link, stop) or failure
            # A stop that fails holds up no start: an app is to serve first of all.
            if todo.start is not None:
                await self._start(record, link, todo.start, after_pause)
        if failure is not None:
            raise failure
        if todo.remove:
            await self._write(lambda tx: writes.removed(tx, record.name, record.uid, record.deleting))

    async def _stop(self, app: str, link: NodeLink, stop: StopInstanceRequest) -> SupervisorError | None:
        try:
            if await link.client.stop(stop) is None:
                link.forget(app, stop.name)
        except SupervisorError as failure:
            return failure
        return None

    async def _stop_orphans(self, app: str) -> None:
        """Stop the app's instances on nodes that it isn't placed on; of a removed app, all of them.

        An app that this catalog never knew is left alone: the catalog may be the wrong one, or an old copy.
        """
        record = self._mirror.apps.get(app)
        if record is None and not self._mirror.apps.was_deleted(app):
            return
        node = record.node if record is not None else ""
        for name, link in list(self._links.items()):
            if name == node or not link.synced:
                continue
            for instance in list(link.instances(app).values()):
                if instance.state == Instance.STOPPING:
                    continue
                log.warning(
                    "orphan stopped: %s on %s", instance.name, name,
                    extra={"action": "instance.orphan_stopped", "instance": instance.name, "node": name},
                )  # fmt: skip
                if (failure := await self._stop(app, link, stop_orphan(instance))) is not None:
                    raise failure

    async def _start(
        self, record: AppRecord, link: NodeLink, start: StartInstanceRequest, after_pause: bool
    ) -> None:
        app = record.name
        try:
            link.accepted(app, await link.client.start(start))
            self._outdated.pop(app, None)
        except SupervisorError as refusal:
            if refusal.reason in OUTDATED:
                await self._renew(record, start, refusal, after_pause)
            elif refusal.reason in FINAL_REFUSALS:
                link.refuse(app, _refused(start, refusal))
                self._enqueue(app)
            else:
                if link.hinder(app, refusal.reason, refusal.message):
                    self._enqueue(app)
                raise

    async def _renew(
        self, record: AppRecord, start: StartInstanceRequest, refusal: SupervisorError, after_pause: bool
    ) -> None:
        """Move the app above the epoch that its node knows; the change has it looked at again."""
        known = refusal.metadata.get("known_epoch", "")
        epoch = max(start.spec.epoch, int(known) if known.isdecimal() else 0)
        app = record.name
        self._outdated[app] += 1
        slowly = self._outdated[app] > NEW_EPOCHS
        if slowly and not after_pause:
            raise refusal
        await self._write(
            lambda tx: writes.changed(tx, app, record.uid, lambda known: under_new_epoch(known, epoch))
        )
        if slowly:
            raise refusal

    async def _place(self, record: AppRecord) -> tuple[AppRecord, str]:
        """Give the app a node if there is one; else return why there is none."""
        environment = record.spec.environment
        nodes = [
            Candidate(
                name,
                link.synced,
                self._mirror.count_on(name) + self._placing[name],
                link.node.max_instances,
            )
            for name, link in self._links.items()
            if name.startswith(environment + "/nodes/")
        ]
        choice = choose(environment, nodes)
        if not choice.node:
            return record, choice.reason
        # Until it is stored the mirror doesn't count it; others that are placed meanwhile must.
        self._placing[choice.node] += 1
        try:
            placed = await self._write(
                lambda tx: writes.placed(tx, record.name, record.uid, choice.node, choice.reason)
            )
        finally:
            self._placing[choice.node] -= 1
        return placed or record, ""

    async def _write(self, command: Callable[[Transaction], T]) -> T:
        return await asyncio.wrap_future(self._store.write(command))


def _refused(start: StartInstanceRequest, refusal: SupervisorError) -> Instance:
    instance = Instance(
        name=start.spec.name,
        app_uid=start.spec.app_uid,
        generation=start.spec.generation,
        epoch=start.spec.epoch,
        state=Instance.FAILED,
    )
    instance.last_error.reason = refusal.reason
    instance.last_error.message = refusal.message
    instance.last_error.occur_time.GetCurrentTime()
    return instance

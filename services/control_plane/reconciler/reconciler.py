"""Drives every app towards what is wanted: level-triggered, one pass per app at a time, for ever.

It follows the change log and the nodes' streams; a pass looks at the newest of both, stores what it
observed, and makes the calls that `plan` names. What fails is tried again with growing pauses.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from itertools import islice
from typing import Any, TypeVar

from appsupervisor.catalog.v1.app_catalog_pb2 import STOPPED
from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1.runtime_environment_pb2 import (
    Instance,
    RuntimeStatus,
    StartInstanceRequest,
    State,
)
from services.control_plane.nodes.client import NodeClient
from services.control_plane.placement.placement import Candidate, choose
from services.control_plane.reconciler import writes
from services.control_plane.reconciler.node_link import NodeLink
from services.control_plane.reconciler.observation import View, observe, under_new_epoch
from services.control_plane.reconciler.plan import plan
from services.control_plane.store.interface import CatalogStore, Transaction
from services.control_plane.store.records import AppRecord
from services.rpc.errors import SupervisorError
from services.rpc.feed import ChangeFeed, Entry

log = logging.getLogger("appsupervisor.reconciler")

PASSES = 256
"""Passes under way at once; more wait their turn in order."""

SWEEP_SECONDS = 1.0
"""Time between looks at deadlines and at apps that are not settled: the safety net under the events."""

SWEEP_APPS = 200
"""Apps that one sweep looks at."""

RETRY_SECONDS = (0.2, 10.0)
"""First and longest pause before an app whose pass failed is looked at again."""

FINAL_REFUSALS = frozenset(
    {"INVALID_FIELD", "ENTRYPOINT_MALFORMED", "ISOLATION_UNSUPPORTED", "INSTANCE_EXISTS"}
)
"""Refusals of a start that no retry changes: they are shown as the app's failure."""

IDLE_SECONDS = 60.0
"""How long a follower waits before it looks again without having been woken."""

T = TypeVar("T")
V = TypeVar("V")


class Reconciler:
    """Owns the links to the nodes and one pass per app at a time. Lives on one event loop."""

    def __init__(
        self,
        store: CatalogStore,
        *,
        node_timeout: float = 5.0,
        connect: Callable[[str], NodeClient] = NodeClient,
    ) -> None:
        self._store = store
        self._mirror = store.mirror
        self._node_timeout = node_timeout
        self._connect = connect
        self._links: dict[str, NodeLink] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._queue: deque[str] = deque()
        self._queued: set[str] = set()
        self._running: set[str] = set()
        self._failures: dict[str, int] = {}
        self._unsettled: dict[str, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._followers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to follow the catalog and the nodes."""
        position = self._mirror.apps.revision
        for record in self._mirror.apps.values():
            if _is_unsettled(record):
                self._unsettled[record.name] = None
                self.enqueue(record.name)
        for node in self._mirror.nodes.values():
            self._link(node.node)
        self._followers = [
            asyncio.create_task(self._follow_apps(position), name="follow apps"),
            asyncio.create_task(self._follow_nodes(position), name="follow nodes"),
            asyncio.create_task(self._sweep(), name="sweep"),
        ]

    async def close(self) -> None:
        """Stop reconciling; what runs on the nodes is left as it is."""
        for task in (*self._followers, *self._tasks):
            task.cancel()
        await asyncio.gather(*self._followers, *self._tasks, return_exceptions=True)
        await asyncio.gather(*(link.close() for link in self._links.values()), *self._closing)

    def is_heard(self, node: str) -> bool:
        """Tell whether a node's stream is open now. Safe from any thread."""
        link = self._links.get(node)
        return link is not None and link.synced

    # What the catalog tells

    async def _follow_apps(self, position: int) -> None:
        async for name, record in _follow(self._mirror.apps, position):
            if record is not None and _is_unsettled(record):
                self._unsettled[name] = None
            else:
                self._unsettled.pop(name, None)
            self.enqueue(name)

    async def _follow_nodes(self, position: int) -> None:
        async for name, record in _follow(self._mirror.nodes, position):
            if record is None:
                self._unlink(name)
            else:
                self._link(record.node)

    def _link(self, node: Node) -> None:
        link = self._links.get(node.name)
        if link is not None:
            same = (link.node.incarnation, link.node.address) == (node.incarnation, node.address)
            if same:
                link.node = node
                return
            self._unlink(node.name)
        self._links[node.name] = NodeLink(node, self, timeout=self._node_timeout, connect=self._connect)

    def _unlink(self, name: str) -> None:
        link = self._links.pop(name, None)
        if link is not None:
            task = asyncio.create_task(link.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    # What the nodes tell (LinkListener)

    def heard(self, link: NodeLink, status: RuntimeStatus) -> None:
        """Mark the node ready and look at every app placed on it."""
        self._spawn(self._note(lambda tx: writes.node_heard(tx, link.node, status)))
        for app in self._mirror.apps_on(link.node.name):
            self.enqueue(app)
        self._enqueue_unplaced()

    def lost(self, link: NodeLink, why: str) -> None:
        """Mark the node unreachable, and the health of its apps unknown."""
        log.error("node unreachable: %s: %s", link.node.name, why,
                  extra={"action": "node_unreachable", "node": link.node.name})  # fmt: skip
        self._spawn(self._note(lambda tx: writes.node_lost(tx, link.node, why)))
        for app in self._mirror.apps_on(link.node.name):
            self.enqueue(app)

    def changed(self, apps: Iterable[str]) -> None:
        """Look at these apps."""
        for app in apps:
            self.enqueue(app)

    # Passes

    def enqueue(self, app: str) -> None:
        """Have an app looked at, as soon as there is room; again, if it is being looked at."""
        if app not in self._queued:
            self._queued.add(app)
            self._queue.append(app)
        self._dispatch()

    def _dispatch(self) -> None:
        waiting = 0
        while self._queue and len(self._running) < PASSES and waiting < len(self._queue):
            app = self._queue.popleft()
            if app in self._running:
                self._queue.append(app)
                waiting += 1
                continue
            self._queued.discard(app)
            self._running.add(app)
            self._spawn(self._run_pass(app))

    async def _run_pass(self, app: str) -> None:
        try:
            await self._look_at(app)
            self._failures.pop(app, None)
        except SupervisorError as failure:
            self._retry_later(app, failure)
        except Exception:
            log.exception("pass failed: %s", app, extra={"action": "reconcile_failed", "app": app})
            self._retry_later(app, None)
        finally:
            self._running.discard(app)
            self._dispatch()

    def _retry_later(self, app: str, failure: SupervisorError | None) -> None:
        tries = self._failures[app] = self._failures.get(app, 0) + 1
        first, longest = RETRY_SECONDS
        pause = min(longest, first * 2 ** min(tries, 16))
        if failure is not None:
            log.info("pass put off: %s: %s", app, failure.message,
                     extra={"action": "reconcile_retry", "app": app, "seconds": pause})  # fmt: skip
        asyncio.get_running_loop().call_later(pause, self.enqueue, app)

    async def _look_at(self, app: str) -> None:
        """One pass: place, observe, store what was observed, act."""
        record = self._mirror.apps.get(app)
        if record is None:
            return
        unplaced = ""
        if not record.node and not record.deleting and record.spec.desired_state != STOPPED:
            record, unplaced = await self._place(record)
        link = self._links.get(record.node)
        view = self._view(record, link, unplaced)
        if view is None:
            return
        if observe(record, view, _now()) != record:
            uid = record.uid
            observed = await self._write(lambda tx: writes.observed(tx, app, uid, view))
            if observed is None:
                return
            record = observed
        await self._act(record, view, link)

    def _view(self, record: AppRecord, link: NodeLink | None, unplaced: str) -> View | None:
        """Return what can be seen of the app; None while its node is neither heard nor given up."""
        if not record.node:
            return View(None, True, {}, unplaced)
        if link is None:
            return None
        if link.synced:
            return View(link.node, True, dict(link.instances(record.name)))
        if not link.given_up:
            return None
        told = {instance.name: instance for instance in record.status.instances}
        return View(link.node, False, told)

    async def _act(self, record: AppRecord, view: View, link: NodeLink | None) -> None:
        todo = plan(record, view)
        if link is not None:
            for stop in todo.stop:
                if await link.client.stop(stop) is None:
                    link.forget_refusal(record.name, stop.name)
            if todo.start is not None:
                await self._start(record, link, todo.start)
        if todo.remove:
            await self._write(lambda tx: writes.removed(tx, record.name, record.uid))

    async def _start(self, record: AppRecord, link: NodeLink, start: StartInstanceRequest) -> None:
        try:
            link.accepted(record.name, await link.client.start(start))
        except SupervisorError as refusal:
            if refusal.reason == "STALE_EPOCH":
                known = int(refusal.metadata.get("epoch", "0"))
                await self._write(
                    lambda tx: writes.changed(
                        tx, record.name, record.uid, lambda app: under_new_epoch(app, known)
                    )
                )
            elif refusal.reason in FINAL_REFUSALS:
                link.refuse(record.name, _refused(start, refusal))
                self.enqueue(record.name)
            else:
                raise

    async def _place(self, record: AppRecord) -> tuple[AppRecord, str]:
        """Give the app a node if there is one; else return why there is none."""
        environment = record.spec.environment
        nodes = [
            Candidate(
                name,
                link.synced,
                self._mirror.count_on(name),
                link.node.max_instances,
            )
            for name, link in self._links.items()
            if name.startswith(environment + "/nodes/")
        ]
        choice = choose(environment, nodes)
        if not choice.node:
            return record, choice.reason
        placed = await self._write(
            lambda tx: writes.placed(tx, record.name, record.uid, choice.node, choice.reason)
        )
        return placed or record, ""

    def _enqueue_unplaced(self) -> None:
        for app in list(self._unsettled):
            record = self._mirror.apps.get(app)
            if record is not None and not record.node:
                self.enqueue(app)

    # The safety net

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            for app in self._stragglers():
                self.enqueue(app)
            try:
                for expiry in writes.expire_operations(self._store, _now()):
                    await asyncio.wrap_future(expiry)
                await asyncio.to_thread(self._store.prune)
            except SupervisorError as failure:
                log.warning("sweep put off: %s", failure.message, extra={"action": "sweep_failed"})

    def _stragglers(self) -> list[str]:
        """Return unsettled apps that a pass could help now, at most SWEEP_APPS, in turn."""
        found: list[str] = []
        for app in islice(self._unsettled, 50 * SWEEP_APPS):
            record = self._mirror.apps.get(app)
            link = self._links.get(record.node) if record is not None else None
            unplaced = record is not None and not record.node
            if app not in self._failures and (unplaced or (link is not None and link.synced)):
                found.append(app)
                if len(found) == SWEEP_APPS:
                    break
        for app in found:  # to the end of the line (a dict keeps the order of insertion)
            del self._unsettled[app]
            self._unsettled[app] = None
        return found

    async def _note(self, command: Callable[[Transaction], None]) -> None:
        """Store something about a node; if the store can't, the node's next message tells it again."""
        try:
            await self._write(command)
        except SupervisorError as failure:
            log.warning("node state not stored: %s", failure.message,
                        extra={"action": "node_state_not_stored"})  # fmt: skip

    async def _write(self, command: Callable[[Transaction], T]) -> T:
        return await asyncio.wrap_future(self._store.write(command))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _follow(feed: ChangeFeed[V], position: int) -> AsyncIterator[tuple[str, V | None]]:
    """Yield each change after a position, for ever; all there is, if the feed no longer reaches back."""
    resume: int | None = position
    while True:
        try:
            async for item in feed.watch(resume, IDLE_SECONDS):
                if isinstance(item, Entry):
                    yield item.key, item.value
        except SupervisorError:
            resume = None


def _now() -> int:
    return time.time_ns() // 1000


def _is_unsettled(record: AppRecord) -> bool:
    return bool(record.status.reconciling or record.deleting)


def _refused(start: StartInstanceRequest, refusal: SupervisorError) -> Instance:
    instance = Instance(
        name=start.spec.name,
        app_uid=start.spec.app_uid,
        generation=start.spec.generation,
        epoch=start.spec.epoch,
        state=State.FAILED,
    )
    instance.last_error.reason = refusal.reason
    instance.last_error.message = refusal.message
    instance.last_error.occur_time.GetCurrentTime()
    return instance

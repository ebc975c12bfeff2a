"""Drives every app towards what is wanted: level-triggered, one pass per app at a time, for ever.

It follows the change log and the nodes' streams; a pass looks at the newest of both, stores what it
observed, and makes the calls that `plan` names. What fails is tried again with growing pauses.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
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
    StopInstanceRequest,
)
from services.control_plane.nodes.client import NodeClient
from services.control_plane.placement.placement import Candidate, choose
from services.control_plane.reconciler import writes
from services.control_plane.reconciler.node_link import NodeLink
from services.control_plane.reconciler.observation import View, observe, under_new_epoch
from services.control_plane.reconciler.plan import plan, stop_orphan
from services.control_plane.reconciler.turns import Turns
from services.control_plane.store.interface import CatalogStore, Transaction
from services.control_plane.store.records import AppRecord
from services.rpc.errors import SupervisorError
from services.rpc.feed import ChangeFeed, Entry

log = logging.getLogger("appsupervisor.reconciler")

PASSES = 64
"""Passes under way at once for the apps of one node; more wait their turn in order."""

SWEEP_SECONDS = 1.0
"""Time between looks at deadlines and at apps that are not settled: the safety net under the events."""

SWEEP_PRUNES = 10
"""Rounds of forgetting in one sweep; each forgets a bounded number of old records."""

SWEEP_APPS = 200
"""Apps that one sweep has looked at."""

SWEEP_EXPIRIES = 1_000
"""Operations that one sweep ends: they share few commits."""

RETRY_SECONDS = (0.2, 10.0)
"""First and longest pause before an app whose pass failed is looked at again."""

FINAL_REFUSALS = frozenset({"INVALID_FIELD", "ENTRYPOINT_MALFORMED", "ISOLATION_UNSUPPORTED"})
"""Refusals of a start that no retry changes: they are shown as the app's failure."""

OUTDATED = frozenset({"STALE_EPOCH", "INSTANCE_EXISTS"})
"""Refusals of a start that a new epoch resolves."""

NEW_EPOCHS = 3
"""New epochs in a row that refusals of an app's start bring about at once; then with growing pauses."""

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
        self._turns = Turns(lambda app: self._spawn(self._run_pass(app)), width=PASSES)
        self._failures: dict[str, int] = {}
        self._outdated: Counter[str] = Counter()
        self._placing: Counter[str] = Counter()
        self._retries: dict[str, asyncio.TimerHandle] = {}
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
        self._turns.close()
        for retry in self._retries.values():
            retry.cancel()
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
        self._note_heard(link, status)
        for app in self._mirror.apps_on(link.node.name):
            self.enqueue(app)
        self._enqueue_unplaced()

    def lost(self, link: NodeLink, why: str) -> None:
        """Mark the node unreachable, and the health of its apps unknown."""
        log.error("node unreachable: %s: %s", link.node.name, why,
                  extra={"action": "node.unreachable", "node": link.node.name})  # fmt: skip
        self._note_lost(link, why)
        for app in self._mirror.apps_on(link.node.name):
            self.enqueue(app)

    def changed(self, apps: Iterable[str]) -> None:
        """Look at these apps."""
        for app in apps:
            self.enqueue(app)

    # Passes

    def enqueue(self, app: str) -> None:
        """Have an app looked at, as soon as there is room; again, if it is being looked at."""
        record = self._mirror.apps.get(app)
        self._turns.add(app, record.node if record is not None else "")

    async def _run_pass(self, app: str) -> None:
        try:
            await self._look_at(app)
            await self._stop_orphans(app)
            self._settle_failures(app)
        except SupervisorError as failure:
            self._retry_later(app, failure)
        except Exception:
            log.exception("pass failed: %s", app, extra={"action": "reconcile.failed", "app": app})
            self._retry_later(app, None)
        finally:
            self._turns.done(app)

    def _retry_later(self, app: str, failure: SupervisorError | None) -> None:
        tries = self._failures[app] = self._failures.get(app, 0) + 1
        first, longest = RETRY_SECONDS
        pause = round(min(longest, first * 2 ** min(tries, 16)) * random.uniform(0.5, 1), 2)  # noqa: S311 - jitter
        if failure is not None:
            log.info("pass put off: %s: %s", app, failure.message,
                     extra={"action": "reconcile.put_off", "app": app, "seconds": pause})  # fmt: skip
        if app in self._retries:
            self._retries[app].cancel()
        self._retries[app] = asyncio.get_running_loop().call_later(pause, self._retry, app)

    def _retry(self, app: str) -> None:
        self._retries.pop(app, None)
        self.enqueue(app)

    def _settle_failures(self, app: str) -> None:
        self._failures.pop(app, None)
        retry = self._retries.pop(app, None)
        if retry is not None:
            retry.cancel()

    async def _look_at(self, app: str) -> None:
        """One pass: place, observe, store what was observed, act."""
        record = self._mirror.apps.get(app)
        if record is None:
            self._outdated.pop(app, None)
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
            hindrance = link.hindrance(record.name)
            return View(link.node, True, dict(link.instances(record.name)), hindrance=hindrance)
        if not link.given_up:
            return None
        told = {instance.name: instance for instance in record.status.instances}
        return View(link.node, False, told)

    async def _act(self, record: AppRecord, view: View, link: NodeLink | None) -> None:
        todo = plan(record, view)
        failure: SupervisorError | None = None
        if link is not None:
            for stop in todo.stop:
                failure = await self._stop(record.name, link, stop) or failure
            # A stop that fails holds up no start: an app is to serve first of all.
            if todo.start is not None:
                await self._start(record, link, todo.start)
        if failure is not None:
            raise failure
        if todo.remove:
            await self._write(lambda tx: writes.removed(tx, record.name, record.uid))

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
                if instance.state == State.STOPPING:
                    continue
                log.warning(
                    "orphan stopped: %s on %s", instance.name, name,
                    extra={"action": "instance.orphan_stopped", "instance": instance.name, "node": name},
                )  # fmt: skip
                if (failure := await self._stop(app, link, stop_orphan(instance))) is not None:
                    raise failure

    async def _start(self, record: AppRecord, link: NodeLink, start: StartInstanceRequest) -> None:
        app = record.name
        try:
            link.accepted(app, await link.client.start(start))
            self._outdated.pop(app, None)
        except SupervisorError as refusal:
            if refusal.reason in OUTDATED:
                await self._renew(record, start, refusal)
            elif refusal.reason in FINAL_REFUSALS:
                link.refuse(app, _refused(start, refusal))
                self.enqueue(app)
            else:
                if link.hinder(app, refusal.reason, refusal.message):
                    self.enqueue(app)
                raise

    async def _renew(self, record: AppRecord, start: StartInstanceRequest, refusal: SupervisorError) -> None:
        """Move the app above the epoch that its node knows; the change has it looked at again."""
        known = refusal.metadata.get("known_epoch", "")
        epoch = max(start.spec.epoch, int(known) if known.isdecimal() else 0)
        app = record.name
        self._outdated[app] += 1
        slowly = self._outdated[app] > NEW_EPOCHS
        if slowly and (app not in self._failures or app in self._retries):
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

    def _enqueue_unplaced(self) -> None:
        for app in list(self._unsettled):
            record = self._mirror.apps.get(app)
            if record is not None and not record.node:
                self.enqueue(app)

    # The safety net

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                for app in self._stragglers():
                    self.enqueue(app)
                self._note_nodes()
                expiries = list(islice(writes.expire_operations(self._store, _now()), SWEEP_EXPIRIES))
                for expiry in expiries:
                    await asyncio.wrap_future(expiry)
                for _ in range(SWEEP_PRUNES):
                    if not await asyncio.to_thread(self._store.prune):
                        break
            except SupervisorError as failure:
                log.warning("sweep put off: %s", failure.message, extra={"action": "sweep.put_off"})
            except Exception:
                # The net under everything else must not tear: what failed is tried again.
                log.exception("sweep failed", extra={"action": "sweep.failed"})

    def _stragglers(self) -> list[str]:
        """Return unsettled apps that a pass could help now, at most SWEEP_APPS, in turn."""
        found: list[str] = []
        looked_at = []
        for app in islice(self._unsettled, 50 * SWEEP_APPS):
            looked_at.append(app)
            record = self._mirror.apps.get(app)
            link = self._links.get(record.node) if record is not None else None
            unplaced = record is None or not record.node
            if app not in self._failures and (unplaced or (link is not None and link.synced)):
                found.append(app)
                if len(found) == SWEEP_APPS:
                    break
        for app in looked_at:  # to the end of the line (a dict keeps the order of insertion)
            del self._unsettled[app]
            if self._mirror.apps.get(app) is not None:
                self._unsettled[app] = None
        return found

    def _note_nodes(self) -> None:
        """Store again what could not be stored of a node when it was heard or lost."""
        for name, link in self._links.items():
            known = self._mirror.nodes.get(name)
            if known is None or known.node.incarnation != link.node.incarnation:
                continue
            if link.status is not None and link.synced and known.node.state != Node.READY:
                self._note_heard(link, link.status)
            elif link.given_up and known.node.state != Node.UNREACHABLE:
                self._note_lost(link, link.why)

    def _note_heard(self, link: NodeLink, status: RuntimeStatus) -> None:
        self._spawn(self._note(lambda tx: writes.node_heard(tx, link.node, status)))

    def _note_lost(self, link: NodeLink, why: str) -> None:
        self._spawn(self._note(lambda tx: writes.node_lost(tx, link.node, why)))

    async def _note(self, command: Callable[[Transaction], None]) -> None:
        """Store something about a node; if the store can't, a later sweep does."""
        try:
            await self._write(command)
        except SupervisorError as failure:
            log.warning("node state not stored: %s", failure.message,
                        extra={"action": "node.state_not_stored"})  # fmt: skip

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

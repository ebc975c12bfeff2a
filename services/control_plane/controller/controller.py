"""Drives every app towards what is wanted: level-triggered, one pass per app at a time, for ever.

It follows the change log and the nodes' streams and decides who passes when; a pass does the rest. What
fails is tried again with growing pauses.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from itertools import islice
from typing import Any, TypeVar

from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance, RuntimeStatus
from services.control_plane.nodes.client import NodeClient
from services.control_plane.reconciler import writes
from services.control_plane.reconciler.node_link import NodeLink
from services.control_plane.reconciler.passes import Passes
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
        self._passes = Passes(store, self._links, self.enqueue)
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

    def client_of(self, node: str) -> NodeClient | None:
        """Return the client of a node that is followed."""
        link = self._links.get(node)
        return link.client if link is not None else None

    def queue(self) -> tuple[int, int]:
        """Return how many apps wait for a pass, and how many passes are under way. Safe from any thread."""
        return self._turns.count()

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

    def left_behind(self, app: str, instance: Instance) -> None:
        """Have the app's timeline tell who holds what its instance left."""
        self._spawn(self._note(lambda tx: writes.left_behind(tx, app, instance)))

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
            await self._passes.make(app, after_pause=app in self._failures and app not in self._retries)
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
                expiries = list(islice(writes.expire_operations(self._store), SWEEP_EXPIRIES))
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


def _is_unsettled(record: AppRecord) -> bool:
    return bool(record.status.reconciling or record.deleting)

"""Decides which app is looked at, and when: follows the change log and the nodes' streams.

Level-triggered, for ever: what is not as it is wanted is looked at again. Can be started and stopped at any
time, as leadership comes and goes.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition, Instance, RuntimeStatus
from services.control_plane.controller.autoscaling import Autoscaling
from services.control_plane.controller.canaries import Canaries
from services.control_plane.controller.following import follow
from services.control_plane.controller.lease_watch import LeaseWatch
from services.control_plane.controller.relocations import Relocations
from services.control_plane.controller.resync import Resync
from services.control_plane.controller.work_queue import WorkQueue
from services.control_plane.databases.health import ServerWatch
from services.control_plane.leases import Leases
from services.control_plane.nodes.client import NodeClient
from services.control_plane.nodes.link import NodeLink
from services.control_plane.nodes.links import NodeLinks
from services.control_plane.placement.choice import is_other_use
from services.control_plane.reconciler import transactions
from services.control_plane.reconciler.app_reconciler import AppReconciler
from services.control_plane.reconciler.data_reconciler import DataReconciler
from services.control_plane.reconciler.database_travels import MoveSettings
from services.control_plane.reconciler.room import Ask, ask_of
from services.control_plane.rules.conditions import get_condition
from services.control_plane.store.interface import CatalogStore, Transaction
from services.control_plane.store.records import AppRecord, home_of
from services.control_plane.tenure import Tenure, steady_seconds
from services.rpc.background import kept_running
from services.rpc.errors import SupervisorError

if TYPE_CHECKING:
    from services.control_plane.databases.app_databases import AppDatabases

log = logging.getLogger("appsupervisor.reconciler")

SWEEP_SECONDS = 1.0
"""Time between looks at deadlines and at apps that are not settled: the safety net under the events."""

FOLLOWED = 8
"""Nodes that are begun to be followed in one turn of the loop: a connection takes 0.3 ms to make."""

GATHER_SECONDS = 0.02
"""In which nodes that join are gathered: of a thousand each would look at all apps that wait."""

GATHERS = 4
"""The same in times of what the last look took, where very many wait."""

MANY = 1_000
"""Apps that wait for a pass, while which those that wait for a node are not looked at again."""

SWEEP_PRUNES = 10
"""Rounds of forgetting in one sweep; each forgets a bounded number of old records."""

SWEEP_APPS = 200
"""Apps that one sweep has looked at."""

SWEEP_RETELLS = 10
"""Apps that one sweep has looked at although no node can take them: why is told anew then."""

SWEEP_LOOKS = 20
"""Apps that one sweep has looked at although nothing is known to be left to do: half a percent of a core."""

SWEEP_EXPIRIES = 1_000
"""Operations that one sweep ends: they share few commits."""

Command = Callable[[Transaction], Any]


class Controller:
    """Owns the links to the nodes and the queue of apps. Lives on one event loop."""

    def __init__(
        self,
        store: CatalogStore,
        tenure: Tenure | None = None,
        *,
        node_timeout: float = 5.0,
        connect: Callable[[str], NodeClient] = NodeClient,
        write: Callable[[Command], Future[Any]] | None = None,
        lease_clock: Callable[[], float] = steady_seconds,
        moves: MoveSettings | None = None,
    ) -> None:
        """`write` stores what is decided here, the store's own if it is None; a leader's checks its term.

        `tenure` is that of who leads; None of somebody who always does. `moves` is how databases are moved.
        """
        self._store = store
        self._mirror = store.mirror
        self._store_write = write or store.write
        self._leases = Leases(tenure or Tenure.endless(), lease_clock)
        self._links = NodeLinks(node_timeout, connect, self._leases)
        self._lease_watch = LeaseWatch(self._leases, self._links, self._mirror, self._note)
        self._queue: WorkQueue | None = None
        self._data = DataReconciler(self._mirror, self._links, self._store_write)
        self._data_queue: WorkQueue | None = None
        self._databases: AppDatabases | None = None
        self._number = 0
        self._moves = moves or MoveSettings()
        self._reconciler: AppReconciler | None = None
        self._resync: Resync | None = None
        self._unsettled: dict[str, int] = {}
        """Apps with something left to do, each with the sweep before its last news."""
        self._sweeps = 0
        self._short: dict[str, Ask] = {}
        """Apps that lack a place for something, as far as is stored, and what they ask of a node."""
        self._gather = GATHER_SECONDS
        self._may_take: set[str] = set()
        """Environments with a node that can be given more since the waiting were looked at."""
        self._look_at_waiting: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._followers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to follow the catalog and the nodes. Only after `close` may it be started again."""
        clock = asyncio.get_running_loop().time
        self._leases.begin()
        # A leader's beginning orders it among all that have led, also after the catalog was restored.
        self._number = self._store.now()
        reconciler = self._reconciler = AppReconciler(
            self._store, self._links, self._store_write, self._data, clock, self._app_databases, self._moves
        )
        self._queue = WorkQueue(reconciler.reconcile, self._home_of)
        self._resync = Resync(self._mirror, self._links, reconciler.former_homes, self.enqueue)
        self._data_queue = WorkQueue(self._data.reconcile, lambda node: node)
        position = self._mirror.apps.revision
        for name in self._mirror.unsettled_apps():
            if (record := self._mirror.apps.get(name)) is None:
                continue
            self._unsettled[name] = -1
            if _is_short(record):
                self._short[name] = ask_of(record)
            self.enqueue(name)
        nodes = list(self._mirror.nodes.values())
        for node in nodes:  # before any is heard: which is alone is told by all of them
            self._lease_watch.noted(node)
        for number, node in enumerate(nodes, 1):
            self._links.follow(node.node, self)
            if not number % FOLLOWED:
                await asyncio.sleep(0)
        for name in self._mirror.nodes_with_apps():
            if self._mirror.nodes.get(name) is None:
                self.changed(self._mirror.apps_on(name))
        self._followers = [
            kept_running(partial(self._follow_apps, position), "follow apps"),
            kept_running(partial(self._follow_nodes, position), "follow nodes"),
            kept_running(partial(self._follow_retained, position), "follow retained data"),
            kept_running(partial(self._follow_servers, position), "follow database servers"),
            kept_running(self._sweep, "sweep"),
            kept_running(self._lease_watch.run, "leases"),
            kept_running(
                ServerWatch(self._mirror.database_servers, self._store_write).run, "database servers"
            ),
            kept_running(Autoscaling(self._mirror, self._links, self._note, clock).run, "autoscaling"),
            kept_running(Canaries(self._mirror, self._links, self._note, self._store.now).run, "canaries"),
            kept_running(Relocations(self._mirror, self._store_write).run, "relocations"),
        ]
        if len(self._mirror.database_servers) > 0:
            self._app_databases()

    def _app_databases(self) -> AppDatabases:
        if self._databases is None:
            # With the first server: it loads psycopg, which most control planes have no use for.
            from services.control_plane.databases.app_databases import AppDatabases  # noqa: PLC0415

            clock = asyncio.get_running_loop().time
            self._databases = AppDatabases(self._mirror, clock, self._number)
            self._followers.append(kept_running(self._databases.spares.run, "spare databases"))
        return self._databases

    async def close(self) -> None:
        """Stop reconciling; what runs on the nodes is left as it is. Nothing if it isn't started."""
        queues = (self._queue, self._data_queue)
        self._queue = self._data_queue = None
        for queue in queues:
            if queue is not None:
                await queue.close()
        resync, self._resync = self._resync, None
        if resync is not None:
            resync.close()
        reconciler, self._reconciler = self._reconciler, None
        if reconciler is not None:
            await reconciler.close()
        if self._look_at_waiting is not None:
            self._look_at_waiting.cancel()
            self._look_at_waiting = None
        databases, self._databases = self._databases, None
        if databases is not None:
            await databases.close()
        for task in (*self._followers, *self._tasks):
            task.cancel()
        await asyncio.gather(*self._followers, *self._tasks, return_exceptions=True)
        self._followers.clear()
        await self._links.close()
        self._unsettled.clear()
        self._short.clear()

    def is_heard(self, node: str) -> bool:
        """Tell whether a node's stream is open now. Safe from any thread."""
        return self._links.is_heard(node)

    def client_of(self, node: str) -> NodeClient | None:
        """Return the client of a node that is followed."""
        link = self._links.get(node)
        return link.client if link is not None else None

    def queue(self) -> tuple[int, int]:
        """Return how many apps wait for a pass, and how many passes are under way. Safe from any thread."""
        queue = self._queue
        return queue.count() if queue is not None else (0, 0)

    def enqueue(self, app: str) -> None:
        """Have an app looked at, as soon as there is room; again, if it is being looked at."""
        if self._queue is not None:
            self._queue.add(app)

    def _note_stored(self, name: str, record: AppRecord | None) -> None:
        """Have an app looked at as it is stored now, unless its own pass has stored it so."""
        if self._queue is not None:
            self._queue.add(name, record.revision if record is not None else math.inf)

    def _home_of(self, app: str) -> str:
        return home_of(self._mirror.placements_of(app))

    # What the catalog tells

    async def _follow_apps(self, position: int) -> None:
        async for name, record in follow(self._mirror.apps, position):
            if record is not None and _is_unsettled(record):
                self._unsettled[name] = self._sweeps
            else:
                self._unsettled.pop(name, None)
            if record is not None and _is_short(record):
                self._short[name] = ask_of(record)
            else:
                self._short.pop(name, None)
            self._note_stored(name, record)

    async def _follow_nodes(self, position: int) -> None:
        async for name, record in follow(self._mirror.nodes, position):
            if record is None:
                self._links.forget(name)
                self._lease_watch.forget(name)
                self.changed(self._mirror.apps_on(name))
                continue
            self._links.follow(record.node, self)
            if self._lease_watch.noted(record):
                self.changed(self._mirror.apps_on(name))
            if record.node.lease_state == Node.EXPIRED:
                self.changed(self._most_missed_first(name))
            if self._links.is_heard(name) and not record.node.cordoned:
                self._may_be_given_more(name)  # it may have been uncordoned

    async def _follow_retained(self, position: int) -> None:
        async for name, _ in follow(self._mirror.retained, position):
            self._look_at_data(name.rpartition("/retainedData/")[0])

    async def _follow_servers(self, position: int) -> None:
        """Look at the apps that wait for a database server, when there is news of it."""
        async for name, _ in follow(self._mirror.database_servers, position):
            self._app_databases().spares.look()
            for app in list(self._unsettled):
                if self._mirror.database_server_of(app) == name:
                    self.enqueue(app)

    def _look_at_data(self, node: str) -> None:
        if self._data_queue is not None:
            self._data_queue.add(node)

    # What the nodes tell (LinkListener)

    def heard(self, link: NodeLink, status: RuntimeStatus, apps: Iterable[str]) -> None:
        """Mark the node ready, and look once at every app placed on it and at what else it tells of."""
        self._note_heard(link, status)
        self._data.heard(link.node.name)
        self._look_at_data(link.node.name)
        # Of a node that has lost all, the dormant ones first: each takes a moment, and is there again then.
        placed = self._mirror.apps_on(link.node.name)
        placed.sort(key=lambda app: self._mirror.state_of(app) != Instance.IDLE)
        moved: Iterable[str] = ()
        if self._reconciler is not None:  # what it forwards may have moved on while nobody led
            moved = self._reconciler.former_homes.learn(link.node.name, status.forwarding)
        if self._resync is not None:
            self._resync.heard(link, dict.fromkeys((*placed, *apps, *moved)))
        self._may_be_given_more(link.node.name)

    def lost(self, link: NodeLink, why: str) -> None:
        """Mark the node unreachable, and the health of its apps unknown."""
        log.error("node unreachable: %s: %s", link.node.name, why,
                  extra={"action": "node.unreachable", "node": link.node.name})  # fmt: skip
        self._note_lost(link, why)
        self._look_at_data(link.node.name)
        self.changed(self._most_missed_first(link.node.name))

    def left_behind(self, app: str, instance: Instance) -> None:
        """Have the app's timeline tell who holds what its instance left."""
        self._spawn(self._note(partial(transactions.left_behind, name=app, instance=instance)))

    def changed(self, apps: Iterable[str]) -> None:
        """Look at these apps."""
        for app in apps:
            self.enqueue(app)

    def _most_missed_first(self, node: str) -> list[str]:
        """Return the apps on a silent node: those that had requests to serve first, the dormant ones last."""
        link, apps = self._links.get(node), self._mirror.apps_on(node)
        if link is not None:
            apps.sort(key=lambda app: (self._mirror.state_of(app) == Instance.IDLE, -link.in_flight(app)))
        return apps

    def _may_be_given_more(self, node: str) -> None:
        """Look, in a moment, at the apps that wait for a node: of many that join together once."""
        self._may_take.add(node.partition("/nodes/")[0])
        if self._look_at_waiting is None:
            loop = asyncio.get_running_loop()
            self._look_at_waiting = loop.call_later(self._gather, self._enqueue_waiting)

    def _enqueue_waiting(self) -> None:
        self._look_at_waiting = None
        loop = asyncio.get_running_loop()
        if self._reconciler is None:
            return
        if self.queue()[0] > MANY:  # they would come again and again while nodes come and go
            self._look_at_waiting = loop.call_later(SWEEP_SECONDS, self._enqueue_waiting)
            return
        began, room = loop.time(), self._reconciler.room()
        for app in list(self._unsettled):
            ask = self._short.get(app)
            if ask is None and self._mirror.placements_of(app):
                continue
            if ask is None or room.take(app, ask):
                self.enqueue(app)
        while self._may_take:
            for record in self._lease_watch.waiting(self._may_take.pop()):
                if room.take(record.name, ask_of(record)):
                    self.enqueue(record.name)
        self._gather = max(GATHER_SECONDS, GATHERS * (loop.time() - began))

    # The safety net

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                self.changed(self._stragglers())
                if self._resync is not None and self.queue()[0] < MANY:
                    self.changed(self._resync.take(SWEEP_LOOKS))
                self._note_nodes()
                expiries = list(
                    islice(transactions.expire_operations(self._store, self._store_write), SWEEP_EXPIRIES)
                )
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

    def _stragglers(self) -> Iterable[str]:
        """Return unsettled apps that a pass could help now, at most SWEEP_APPS, in turn."""
        found: dict[str, None] = {}
        looked_at, retold = [], 0
        room = self._reconciler.room() if self._reconciler is not None else None
        for app, news in islice(self._unsettled.items(), 50 * SWEEP_APPS):
            looked_at.append((app, news))
            if news == self._sweeps:
                continue  # it goes on by itself
            homes = {it.node for it in self._mirror.placements_of(app)}
            waits = self._queue is None or self._queue.is_known(app)
            if waits or (homes and not any(map(self._links.is_heard, homes))):
                continue
            ask = self._short.get(app)
            if ask is not None and room is not None and not room.take(app, ask):
                if retold == SWEEP_RETELLS:
                    continue
                retold += 1
            found[app] = None
            if len(found) == SWEEP_APPS:
                break
        # To the end of the line (a dict keeps the order of insertion), what has its turn now behind the rest.
        looked_at.sort(key=lambda it: it[0] in found)
        for app, news in looked_at:
            del self._unsettled[app]
            if self._mirror.apps.entry(app) is not None:
                self._unsettled[app] = news
        self._sweeps += 1
        return found

    def _note_nodes(self) -> None:
        """Store what could not be stored of a node when it was heard or lost, and how much memory it uses."""
        for link in self._links.all():
            known = self._mirror.nodes.get(link.node.name)
            if known is None or known.node.incarnation != link.node.incarnation:
                continue
            if link.status is not None and link.synced and self._is_news(known.node, link.status):
                self._note_heard(link, link.status)
            elif link.synced and is_other_use(known.node, link.memory_bytes):
                told = partial(transactions.memory_told, node=link.node, used_bytes=link.memory_bytes)
                self._spawn(self._note(told))
            elif link.given_up and known.node.state != Node.UNREACHABLE:
                self._note_lost(link, link.why)

    def _is_news(self, node: Node, status: RuntimeStatus) -> bool:
        """Tell whether what is heard of a node is not stored yet, or was stored and has led to nothing."""
        return node.state != Node.READY or not self._lease_watch.is_settled(node, status)

    def _note_heard(self, link: NodeLink, status: RuntimeStatus) -> None:
        self._spawn(self._lease_watch.heard(link, status))

    def _note_lost(self, link: NodeLink, why: str) -> None:
        self._spawn(self._note(partial(transactions.node_lost, node=link.node, why=why)))

    async def _note(self, command: Callable[[Transaction], None]) -> bool:
        """Store something about a node and tell whether it is; if the store can't, a later sweep does."""
        try:
            await asyncio.wrap_future(self._store_write(command))
        except SupervisorError as failure:
            log.warning("node state not stored: %s", failure.message,
                        extra={"action": "node.state_not_stored"})  # fmt: skip
            return False
        return True

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _is_short(record: AppRecord) -> bool:
    """Tell whether an app waits for a node, if only for one of its replicas, and for nothing else."""
    if record.deleting or record.spec.desired_state == App.STOPPED or record.status.retained_data:
        return False
    scheduled = get_condition(record.status.conditions, "Scheduled")
    return scheduled is not None and scheduled.status == Condition.UNMET


def _is_unsettled(record: AppRecord) -> bool:
    return bool(record.status.reconciling or record.deleting)

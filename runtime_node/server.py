"""Composition root of a node: phases started in order, closed in reverse by one exit stack."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import psutil

from appsupervisor.fleet.v1 import fleet_pb2
from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from appsupervisor.runtime.v1.data_transfers_pb2_grpc import add_DataTransfersServicer_to_server
from appsupervisor.runtime.v1.runtime_environment_pb2_grpc import add_RuntimeEnvironmentServicer_to_server
from runtime_node import __version__, isolation
from runtime_node.data_directory import held
from runtime_node.forwarding import Carrier
from runtime_node.http import HttpFront, Router
from runtime_node.instances.code_on_disk import CodeOnDisk
from runtime_node.instances.code_place import CodePlace
from runtime_node.instances.data_directories import DataDirectories
from runtime_node.instances.databases import Databases
from runtime_node.instances.feed import InstanceFeed, duration, lease_message
from runtime_node.instances.figures import FigureSweep
from runtime_node.instances.forwards import ForwardFigures, Forwards
from runtime_node.instances.host import InstanceHost
from runtime_node.instances.housekeeping import PERIOD, Housekeeping, Traffic
from runtime_node.instances.leak_reports import LeakReports
from runtime_node.instances.lease_keeper import LeaseKeeper
from runtime_node.instances.lifecycle import Lifecycle
from runtime_node.instances.probes import Probes
from runtime_node.instances.purges import Purges
from runtime_node.instances.record import Instance, timestamp
from runtime_node.instances.registry import InstanceRegistry
from runtime_node.instances.routes import Routes
from runtime_node.instances.shared_state import SharedState
from runtime_node.instances.start_limiter import StartLimiter
from runtime_node.instances.table import InstanceTable
from runtime_node.instances.transitions import Transitions
from runtime_node.isolation import GCPolicy
from runtime_node.isolation.leaks import Canary
from runtime_node.lease import Lease, steady_seconds
from runtime_node.loader import Loader
from runtime_node.loader.listing import importable
from runtime_node.metrics import NodeMetrics
from runtime_node.name_ownership import NameOwnership
from runtime_node.process_end import end_within
from runtime_node.registration import Registration
from runtime_node.servicer import RuntimeServicer
from runtime_node.settings import Address, NodeSettings
from runtime_node.telemetry import Telemetry
from runtime_node.tiers.ahead import CodeAhead
from runtime_node.tiers.choice import Runners, Tier
from runtime_node.tiers.lag import LoopLag
from runtime_node.tiers.process.runner import ProcessRunner
from runtime_node.tiers.process.zygote import Zygote
from runtime_node.tiers.runner import AppRunner
from runtime_node.tiers.shared import SharedRunner
from runtime_node.tiers.thread import ThreadRunner
from runtime_node.travel.freezer import Freezer
from runtime_node.travel.offers import IDLE_SECONDS, Offers
from runtime_node.travel.receipts import Receipts
from runtime_node.travel.servicer import DataTransfersServicer
from runtime_node.travel.source import read_offered
from runtime_node.travel.staging import clear
from runtime_node.watchdog import Switching, Watchdog, waits
from runtime_node.watchdog.gil_holds import HoldWatch
from services.rpc.background import kept_running
from services.rpc.metrics import MetricsListener
from services.rpc.process import ending_signals
from services.rpc.server import RpcServer, Service

log = logging.getLogger("runtime_node")

RPC_GRACE = 1.0
END_GRACE = 20.0
"""Seconds beyond the shutdown timeout after which the process ends even if a part of it does not."""
AFTER_START_SECONDS = 0.002
"""In which the first request of an app that has just started is answered, most often."""
CODE_SECONDS = 2.0
"""Between two looks at which modules are here."""
BLOCKING_CALLS = 32
"""Threads for the node's own calls that wait for the disk; one that hangs must not hold up the others."""


class Node:
    """One life of a node, built by `run_node`."""

    def __init__(
        self, settings: NodeSettings, zygote: Zygote | None = None, *, owns_process: bool = False
    ) -> None:
        """`owns_process`: nothing else lives in this process, so its collector may be tuned."""
        self._owns_process = owns_process
        self.settings = settings
        self.incarnation = secrets.token_hex(8)
        # A node that stands alone needs nobody's leave: who gives its apps to others?
        self.lease = Lease(self.incarnation, endless=not settings.control_plane)
        self.started = time.time()
        self.listen = settings.listen
        self.http = settings.http_listen
        self.uid = ""
        """Identity that the node keeps in its data directory, known once it serves."""
        self.host: InstanceHost
        self.directories: DataDirectories
        self.instances: InstanceTable
        self.lifecycle: Lifecycle
        self.router: Router
        self.routes: Routes
        self.housekeeping: Housekeeping
        self.offers: Offers
        self.receipts: Receipts
        self.freezer: Freezer
        self.feed: InstanceFeed
        self.forwards: Forwards
        self.telemetry: Telemetry
        self.metrics: Address | None = None
        self.front: HttpFront
        self._modules: list[str] = []
        """Top-level names of the code that is here, as last looked at."""
        self._zygote = zygote
        self._process = psutil.Process()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Node]:
        """Serve from entering to leaving the context. Raises OSError and DataDirectoryError at the start."""
        async with AsyncExitStack() as stack:
            # 1. The data directory, which belongs to one node at a time, and tells which node this is.
            self.uid = stack.enter_context(held(self.settings.data_dir))
            databases = Databases(self.settings.data_dir)
            await asyncio.to_thread(databases.finish_purges)
            await asyncio.to_thread(clear, databases)
            # 2. The logs of apps: from here on what they print and log is theirs.
            table = InstanceTable(self.settings.max_instances)
            self.feed = InstanceFeed(self.settings.node_name, self.incarnation, steady_seconds)
            self.telemetry = Telemetry(
                self.settings, table, memory=self.memory, streams=lambda: self.feed.streams,
                forwarded=self._forwarded,
            )  # fmt: skip
            await asyncio.to_thread(self.telemetry.logs.finish_purges)
            self.telemetry.logs.start()
            stack.push_async_callback(_quietly, "logs", self.telemetry.logs.close)
            # 3. The front: the listener's loop, which SHARED apps run on too, and who watches it.
            self.router = router = Router(
                self.settings.base_domain,
                path_hosts=self.settings.path_hosts,
                hosts_only=self.settings.hosts_only,
            )
            watchdog = await self._start_front(stack, router)
            # 4. The core, with the tiers in which it runs apps.
            self._start_core(stack, table, databases, watchdog)
            # 5. The API, ended only after its streams have told how every instance ended.
            await self._start_api(stack)
            # 6. Those who hear of it: metrics, and the control plane.
            if self.settings.metrics_listen is not None and self.telemetry.metrics is not None:
                self._serve_metrics(stack, self.settings.metrics_listen, self.telemetry.metrics)
            if self.settings.control_plane:
                ownership = NameOwnership(
                    self.settings.node_name, self.host, router, self.settings.shutdown_timeout
                )
                await self._list_code()
                _kept_running(stack, self._follow_code, "code")
                registration = Registration(
                    self.settings.control_plane, self._registration, self.feed, ownership
                )
                _kept_running(stack, registration.run, "registration")
            log.info(
                "node %s serves gRPC on %s and HTTP on http://%s",
                self.settings.node_name, self.listen, self.http,
                extra={"action": "node.ready", "grpc": self.listen, "http": self.http,
                       "incarnation": self.incarnation},
            )  # fmt: skip
            yield self
            # Before the first instance ends: who asks for one that is gone is told to come again, not 404.
            self.front.begin_draining()
            log.info("draining", extra={"action": "node.draining", "instances": len(table)})

    async def _start_front(self, stack: AsyncExitStack, router: Router) -> Watchdog:
        isolation.install()
        waits.install()
        watchdog = Watchdog(HoldWatch(), Switching()) if self._owns_process else Watchdog()
        stack.push_async_callback(asyncio.to_thread, watchdog.close)
        watchdog.start()
        listen = self.settings.http_listen
        self.front = front = HttpFront(
            listen.host, listen.port, router, trusted_proxies=self.settings.trusted_proxies
        )
        isolation.attach(front.loop)
        isolation.guard_loop(front.loop)
        isolation.keep_settings_apart(front.loop)
        stack.push_async_callback(_quietly, "front", lambda: front.stop(RPC_GRACE))
        self.http = Address(listen.host, (await front.start())[1])
        watchdog.watch(front.loop)
        stack.callback(watchdog.unwatch, front.loop)
        return watchdog

    def _start_core(
        self, stack: AsyncExitStack, table: InstanceTable, databases: Databases, watchdog: Watchdog
    ) -> None:
        settings, telemetry = self.settings, self.telemetry
        self.instances = table
        loader = Loader(settings.app_dirs)
        stack.callback(loader.close)
        code = CodeOnDisk(loader.code_of, table)
        stack.callback(code.close)
        self.offers = offers = Offers(databases)
        stack.push_async_callback(_quietly, "offers", offers.close_all)
        purges = Purges(databases, lambda app, uid: _forget(telemetry.logs.purge, offers, receipts, app, uid))
        place = CodePlace(settings.node_name, loader.app_dirs)
        self.receipts = receipts = Receipts(
            databases, table, read_offered, is_doomed=purges.wants,
            code_ahead=CodeAhead(loader, place.located).fetch,
        )  # fmt: skip
        stack.push_async_callback(_quietly, "receipts", receipts.close)
        carrier = Carrier(self.front.loop, settings.node_name)
        stack.push_async_callback(_quietly, "forwarding", partial(_on, self.front.loop, carrier.close))
        self.forwards = Forwards(carrier)
        self.routes = routes = Routes(self.router, self.forwards)
        registry = InstanceRegistry(table, self.feed, routes, purges, telemetry)
        transitions = Transitions(registry.changed, registry.serving)
        leaks = LeakReports(table, transitions)
        traffic = Traffic()
        collector = GCPolicy(lambda: traffic.quiet, leaks.told)
        if self._owns_process:
            collector.install()
            stack.callback(collector.uninstall)
        # Now that the node has set all that it sets itself.
        shared_state = SharedState(table, transitions, PERIOD)
        runners = self._runners(self.front, loader, collector, watchdog, shared_state)
        for runner in runners.values():
            stack.push_async_callback(_quietly, "tier", runner.close)
        probes = Probes(self.front.loop, settings.base_domain, transitions.reassess)
        stack.push_async_callback(_quietly, "probes", probes.close)
        self.lifecycle = Lifecycle(
            runners=Runners(runners, loader), databases=databases,
            start_limiter=StartLimiter(settings.concurrent_starts), probes=probes, registry=registry,
            transitions=transitions, leaks=leaks, watchdog=watchdog, find=table.find, running=table.running,
            place=place, code=code,
            on_ready=partial(_follow_up, collector, shared_state),
        )  # fmt: skip
        self.host = InstanceHost(
            table=table, registry=registry, lifecycle=self.lifecycle, purges=purges, feed=self.feed,
            code=code, on_fault=telemetry.fault,
            lease=self.lease, on_accepted=partial(_accepted, offers, receipts, routes, table),
            came_under=receipts.epoch,
        )  # fmt: skip
        self.freezer = Freezer(offers, table, self.lifecycle, routes, databases)
        _kept_running(stack, partial(_close_idle, offers), "offers")
        self.directories = DataDirectories(databases, table, purges, telemetry.logs.purge)
        self.housekeeping = Housekeeping(
            table.running, self.lifecycle, FigureSweep(self.feed.measured), traffic,
            memory=self.memory, memory_budget=settings.memory_budget_bytes, measured=self.feed.used,
            after=partial(_every_second, collector if self._owns_process else None, shared_state, registry),
        )  # fmt: skip
        _kept_running(stack, self.housekeeping.run, "housekeeping")

    async def _start_api(self, stack: AsyncExitStack) -> None:
        keeper = LeaseKeeper(self.lease, self.host)
        _kept_running(stack, keeper.run, "lease")
        service = Service(
            "appsupervisor.runtime.v1.RuntimeEnvironment",
            add_RuntimeEnvironmentServicer_to_server,
            RuntimeServicer(
                self.host, self.directories, self.feed, self.telemetry.tails, self.status, keeper
            ),
        )
        transfers = Service(
            "appsupervisor.runtime.v1.DataTransfers",
            add_DataTransfersServicer_to_server,
            DataTransfersServicer(self.offers, self.freezer, self.receipts, self.lease),
        )
        server = RpcServer([service, transfers], self.telemetry.health, is_node=True)
        listen = self.settings.listen
        self.listen = Address(listen.host, await server.start(str(listen)))
        stack.push_async_callback(_quietly, "api", lambda: server.stop(RPC_GRACE))
        stack.push_async_callback(_quietly, "instances", self._end_instances)

    def _serve_metrics(self, stack: AsyncExitStack, address: Address, metrics: NodeMetrics) -> None:
        listener = MetricsListener(
            address.host, address.port, metrics, or_another=self.settings.metrics_port_may_vary
        )
        stack.push_async_callback(_quietly, "metrics", lambda: asyncio.to_thread(listener.close))
        listener.start()
        self.metrics = Address(address.host, listener.port)
        log.info("metrics on http://%s/metrics", self.metrics, extra={"action": "node.metrics"})

    async def _end_instances(self) -> None:
        left = await self.host.shutdown(self.settings.shutdown_timeout)
        if left:
            log.error("instances did not end in time", extra={"action": "node.cut_off", "instances": left})
        self.feed.close()
        self.telemetry.close_streams()

    def _runners(
        self,
        front: HttpFront,
        loader: Loader,
        collector: GCPolicy,
        watchdog: Watchdog,
        shared_state: SharedState,
    ) -> dict[Tier, AppRunner]:
        def released(instance: str, suspects: Sequence[Canary]) -> None:
            collector.stopped(freed=not suspects, instance=instance, suspects=suspects)
            shared_state.look(instance)

        runners: dict[Tier, AppRunner] = {}
        shared = SharedRunner(loader, front.loop, LoopLag(front.loop).read, released)
        runners[shared.tier] = shared
        thread = ThreadRunner(loader, front.loop, released, watchdog)
        runners[thread.tier] = thread
        if self._zygote is not None:
            process = ProcessRunner(self._zygote, self.telemetry.logs.output)
            runners[process.tier] = process
        return runners

    def status(self) -> pb.RuntimeStatus:
        """Return who this node is and what it carries."""
        return pb.RuntimeStatus(
            node=self.settings.node_name,
            incarnation=self.incarnation,
            version=__version__,
            python_version=platform.python_version(),
            http_address=self._http_address(),
            base_domain=self.settings.base_domain,
            monotonic_time=duration(self.feed.clock()),
            instance_count=len(self.instances),
            max_instances=self.settings.max_instances,
            start_time=timestamp(self.started),
            memory_bytes=self.memory(),
            draining=self.instances.draining,
            node_uid=self.uid,
            lease=lease_message(self.lease),
            forwarding=self.forwards.message(),
        )

    def _forwarded(self) -> ForwardFigures:
        return self.forwards.figures()

    def memory(self) -> int:
        """Return the resident bytes of the node and all its processes."""
        total = 0
        for process in (self._process, *self._process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def _advertised(self, bound: Address, told: Address | None) -> str:
        if told is not None:
            return str(Address(told.host, told.port or bound.port))
        if bound.host in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
            return str(Address(socket.gethostname(), bound.port))
        return str(bound)

    def _http_address(self) -> str:
        told = self.settings.advertise
        host = Address(told.host, 0) if told is not None else None
        return self._advertised(self.http, self.settings.advertise_http or host)

    async def _list_code(self) -> None:
        self._modules = await asyncio.to_thread(importable, self.settings.app_dirs)

    async def _follow_code(self) -> None:
        while True:
            await asyncio.sleep(CODE_SECONDS)
            await self._list_code()

    def _registration(self) -> fleet_pb2.RegisterNodeRequest:
        settings = self.settings
        return fleet_pb2.RegisterNodeRequest(
            parent=f"environments/{settings.environment}",
            node_id=settings.node,
            node=fleet_pb2.Node(
                name=settings.node_name,
                address=self._advertised(self.listen, settings.advertise),
                http_address=self._http_address(),
                base_domain=settings.base_domain,
                labels=settings.labels,
                zone=settings.zone,
                version=__version__,
                max_instances=settings.max_instances,
                memory_bytes=settings.memory_budget_bytes or 0,
                incarnation=self.incarnation,
                uid=self.uid,
                modules=self._modules,
                serves_http2=True,
            ),
        )


async def run_node(settings: NodeSettings, zygote: Zygote | None) -> None:
    """Run a node until SIGTERM, SIGINT or SIGHUP; a second signal ends the process at once."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(BLOCKING_CALLS, thread_name_prefix="node"))

    def end() -> None:
        if ended.is_set():
            log.warning("ended at once by a second signal", extra={"action": "node.killed"})
            os._exit(1)
        ended.set()

    for number in ending_signals():
        loop.add_signal_handler(number, end)
    async with Node(settings, zygote, owns_process=True).serving():
        await ended.wait()
        end_within(settings.shutdown_timeout + END_GRACE)
    log.info("ended", extra={"action": "node.ended"})


def _accepted(
    offers: Offers, receipts: Receipts, routes: Routes, table: InstanceTable, instance: Instance
) -> None:
    offers.thaw(instance.uid)
    if receipts.settle(instance.uid):
        routes.came_back(instance, table.of_app(instance.app))


async def _forget(
    remove_log: Callable[[str, str], Awaitable[None]], offers: Offers, receipts: Receipts, app: str, uid: str
) -> None:
    """Remove what is kept of an app beside its data directory."""
    await offers.close(uid)
    await receipts.discard(uid)
    await remove_log(app, uid)


async def _close_idle(offers: Offers) -> None:
    while True:
        await asyncio.sleep(IDLE_SECONDS / 6)
        await offers.close_idle()


def _follow_up(collector: GCPolicy, shared_state: SharedState, instance: Instance) -> None:
    """See, in a moment, to what a start leaves behind: first the requests that wait for the app have the
    interpreter."""
    loop = asyncio.get_running_loop()
    loop.call_later(AFTER_START_SECONDS, _started, collector, shared_state, instance)


def _started(collector: GCPolicy, shared_state: SharedState, instance: Instance) -> None:
    collector.started()
    shared_state.started(instance)


def _every_second(collector: GCPolicy | None, shared_state: SharedState, registry: InstanceRegistry) -> None:
    if collector is not None:
        collector.tick()
    shared_state.look()
    registry.sweep()


def _kept_running(stack: AsyncExitStack, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
    task = kept_running(work, name)

    async def end() -> None:
        task.cancel()
        await asyncio.wait({task})

    stack.push_async_callback(end)


async def _on(loop: asyncio.AbstractEventLoop, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Do something on another loop, which is given a while to answer."""
    async with asyncio.timeout(RPC_GRACE):
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(), loop))


async def _quietly(what: str, close: Any) -> None:
    """Close one part; a fault is logged and the others are closed all the same."""
    try:
        await close()
    except Exception:
        log.exception("closing failed", extra={"action": "node.close_fault", "part": what})

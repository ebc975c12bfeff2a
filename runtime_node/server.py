"""Composition root of a node: phases started in order, closed in reverse by one exit stack."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import platform
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from appsupervisor.fleet.v1 import fleet_pb2
from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from appsupervisor.runtime.v1.runtime_environment_pb2_grpc import add_RuntimeEnvironmentServicer_to_server
from runtime_node import __version__, isolation
from runtime_node.http import HttpFront, Router
from runtime_node.instances.databases import Databases
from runtime_node.instances.feed import InstanceFeed, duration
from runtime_node.instances.figures import FigureSweep
from runtime_node.instances.host import InstanceHost
from runtime_node.instances.housekeeping import PERIOD, Housekeeping
from runtime_node.instances.lifecycle import Lifecycle
from runtime_node.instances.probes import Probes
from runtime_node.instances.record import Instance, timestamp
from runtime_node.instances.routes import Routes
from runtime_node.instances.start_limiter import StartLimiter
from runtime_node.instances.transitions import Hooks
from runtime_node.isolation import GCPolicy
from runtime_node.isolation.drift import Drift
from runtime_node.isolation.leaks import Canary
from runtime_node.loader import Loader
from runtime_node.metrics import NodeMetrics
from runtime_node.observation import Observation
from runtime_node.registration import Registration
from runtime_node.servicer import RuntimeServicer
from runtime_node.settings import Address, NodeSettings
from runtime_node.tiers.choice import Runners, Tier
from runtime_node.tiers.lag import LoopLag
from runtime_node.tiers.process.runner import ProcessRunner
from runtime_node.tiers.process.zygote import Zygote
from runtime_node.tiers.runner import AppRunner
from runtime_node.tiers.shared import SharedRunner
from runtime_node.tiers.thread import ThreadRunner
from runtime_node.watchdog import Switching, Watchdog, waits
from runtime_node.watchdog.gil_holds import HoldWatch
from services.rpc.metrics import MetricsListener
from services.rpc.server import RpcServer, Service

log = logging.getLogger("runtime_node")

RPC_GRACE = 1.0
_TOGETHER = (pb.InstanceSpec.SHARED, pb.InstanceSpec.THREAD)
"""The tiers whose apps share this process."""

BLOCKING_CALLS = 32
"""Threads for the node's own calls that wait for the disk; one that hangs must not hold up the others."""


class DataDirectoryTaken(Exception):  # noqa: N818 - says what is
    """Another node runs on the same data directory."""


class Node:
    """One life of a node, built by `run_node`."""

    def __init__(
        self, settings: NodeSettings, zygote: Zygote | None = None, *, owns_process: bool = False
    ) -> None:
        """`owns_process`: nothing else lives in this process, so its collector may be tuned."""
        self._owns_process = owns_process
        self.settings = settings
        self.incarnation = secrets.token_hex(8)
        self.started = time.time()
        self.listen = settings.listen
        self.http = settings.http_listen
        self.host: InstanceHost
        self.feed: InstanceFeed
        self.observation: Observation
        self.metrics: Address | None = None
        self.front: HttpFront
        self.housekeeping: Housekeeping
        self._zygote = zygote
        self._process = psutil.Process()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Node]:
        """Serve from entering to leaving the context. Raises OSError and DataDirectoryTaken at the start."""
        async with AsyncExitStack() as stack:
            # 1. The data directory, which belongs to one node at a time.
            stack.enter_context(data_directory_lock(self.settings.data_dir))
            databases = Databases(self.settings.data_dir)
            await asyncio.to_thread(databases.finish_purges)
            # 2. The logs of apps: from here on what they print and log is theirs.
            self.observation = Observation(self.settings)
            await asyncio.to_thread(self.observation.logs.finish_purges)
            self.observation.logs.start()
            stack.push_async_callback(_quietly, "logs", self.observation.logs.close)
            # 3. The front: the listener's loop, which SHARED apps run on too, and who watches it.
            router = Router(
                self.settings.base_domain,
                path_hosts=self.settings.path_hosts,
                hosts_only=self.settings.hosts_only,
            )
            watchdog = await self._start_front(stack, router)
            # 4. The core, with the tiers in which it runs apps.
            self.feed = InstanceFeed(self.settings.node_name, self.incarnation)
            self._start_core(stack, router, databases, watchdog)
            # 5. The API, ended only after its streams have told how every instance ended.
            await self._start_api(stack)
            # 6. Those who hear of it: metrics, and the control plane.
            if self.settings.metrics_listen is not None:
                self._serve_metrics(stack, self.settings.metrics_listen)
            if self.settings.control_plane:
                registration = Registration(self.settings.control_plane, self._registration, self.feed)
                _background(stack, registration.run())
            log.info(
                "node %s serves gRPC on %s and HTTP on http://%s",
                self.settings.node_name, self.listen, self.http,
                extra={"action": "node.ready", "grpc": self.listen, "http": self.http,
                       "incarnation": self.incarnation},
            )  # fmt: skip
            yield self
            self.front.begin_draining()
            log.info("draining", extra={"action": "node.draining", "instances": len(self.host)})

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
        self, stack: AsyncExitStack, router: Router, databases: Databases, watchdog: Watchdog
    ) -> None:
        settings, observed = self.settings, self.observation
        loader = Loader(settings.app_dirs)
        stack.callback(loader.close)
        collector = GCPolicy(lambda: self.housekeeping.quiet, self._leaked)
        if self._owns_process:
            collector.install()
            stack.callback(collector.uninstall)
        # Now that the node has set all that it sets itself.
        self._drift = Drift(lambda: self.host.at_work(_TOGETHER, 2 * PERIOD))
        runners = self._runners(self.front, loader, collector, watchdog)
        for runner in runners.values():
            stack.push_async_callback(_quietly, "tier", runner.close)
        self.host = observed.host = InstanceHost(
            feed=self.feed, routes=Routes(router), databases=databases,
            max_instances=settings.max_instances, observer=observed.observer,
        )  # fmt: skip
        probes = Probes(self.front.loop, settings.base_domain, self.host.reassess)
        stack.push_async_callback(_quietly, "probes", probes.close)
        self.host.lifecycle = Lifecycle(
            runners=Runners(runners, loader), databases=databases,
            start_limiter=StartLimiter(settings.concurrent_starts),
            probes=probes, watchdog=watchdog,
            hooks=Hooks(
                self.host.changed, self.host.gone, self.host.serving, partial(self._started, collector)
            ),
        )  # fmt: skip
        watchdog.on_unclaimed = partial(self.host.lifecycle.blame, lambda: list(self.host.running.values()))
        self.housekeeping = Housekeeping(
            self.host, self.host.lifecycle, FigureSweep(self.feed.measured),
            memory=self.memory, memory_budget=settings.memory_budget_bytes,
            after=partial(self._every_second, collector),
        )  # fmt: skip
        _background(stack, self.housekeeping.run())

    async def _start_api(self, stack: AsyncExitStack) -> None:
        service = Service(
            "appsupervisor.runtime.v1.RuntimeEnvironment",
            add_RuntimeEnvironmentServicer_to_server,
            RuntimeServicer(self.host, self.feed, self.observation.tails, self.status),
        )
        server = RpcServer([service], self.observation.health)
        listen = self.settings.listen
        self.listen = Address(listen.host, await server.start(str(listen)))
        stack.push_async_callback(_quietly, "api", lambda: server.stop(RPC_GRACE))
        stack.push_async_callback(_quietly, "instances", self._end_instances)

    def _serve_metrics(self, stack: AsyncExitStack, address: Address) -> None:
        observed = self.observation
        observed.metrics = NodeMetrics(
            self.host, observed.logs, memory=self.memory, streams=lambda: self.feed.streams
        )  # fmt: skip
        listener = MetricsListener(address.host, address.port, observed.metrics)
        stack.push_async_callback(_quietly, "metrics", lambda: asyncio.to_thread(listener.close))
        listener.start()
        self.metrics = Address(address.host, listener.port)
        log.info("metrics on http://%s/metrics", self.metrics, extra={"action": "node.metrics"})

    async def _end_instances(self) -> None:
        left = await self.host.shutdown(self.settings.shutdown_timeout)
        if left:
            log.error("instances did not end in time", extra={"action": "node.cut_off", "instances": left})
        self.feed.close()
        self.observation.close_streams()

    def _runners(
        self, front: HttpFront, loader: Loader, collector: GCPolicy, watchdog: Watchdog
    ) -> dict[Tier, AppRunner]:
        def released(instance: str, suspects: Sequence[Canary]) -> None:
            collector.stopped(freed=not suspects, instance=instance, suspects=suspects)
            self._restore(instance)

        runners: dict[Tier, AppRunner] = {}
        shared = SharedRunner(loader, front.loop, LoopLag(front.loop).read, released)
        runners[shared.tier] = shared
        thread = ThreadRunner(loader, front.loop, released, watchdog)
        runners[thread.tier] = thread
        if self._zygote is not None:
            process = ProcessRunner(self._zygote, self.observation.logs.output)
            runners[process.tier] = process
        return runners

    def _started(self, collector: GCPolicy, instance: Instance) -> None:
        collector.started()
        if instance.run is not None and instance.run.tier in _TOGETHER:
            self._restore(instance.name)

    def _every_second(self, collector: GCPolicy) -> None:
        if self._owns_process:
            collector.tick()
        self._restore()

    def _restore(self, *at: str) -> None:
        """Put back what apps have changed for all; `at` has just started or ended."""
        restored = self._drift.look(at)
        for name, values in restored.by_instance.items():
            self.host.restored(name, values)
        if restored.unknown:
            log.warning(
                "put back what one of several apps has changed for all: %s", ", ".join(restored.unknown),
                extra={"action": "node.restored", "suspects": restored.suspects},
            )  # fmt: skip

    def _leaked(self, name: str, holders: Sequence[str]) -> None:
        self.host.leaked(name, holders)

    def status(self) -> pb.RuntimeStatus:
        """Return who this node is and what it carries."""
        return pb.RuntimeStatus(
            node=self.settings.node_name,
            incarnation=self.incarnation,
            version=__version__,
            python_version=platform.python_version(),
            http_address=self._advertised(self.http),
            base_domain=self.settings.base_domain,
            monotonic_time=duration(self.feed.clock()),
            instance_count=len(self.host),
            max_instances=self.settings.max_instances,
            start_time=timestamp(self.started),
            memory_bytes=self.memory(),
            draining=self.host.draining,
        )

    def memory(self) -> int:
        """Return the resident bytes of the node and all its processes."""
        total = 0
        for process in (self._process, *self._process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def _advertised(self, bound: Address) -> str:
        host = self.settings.advertise.rpartition(":")[0] or self.settings.advertise
        if not host and bound.host in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
            host = socket.gethostname()
        return str(Address(host.strip("[]"), bound.port)) if host else str(bound)

    def _registration(self) -> fleet_pb2.RegisterNodeRequest:
        settings = self.settings
        address = settings.advertise if ":" in settings.advertise else self._advertised(self.listen)
        return fleet_pb2.RegisterNodeRequest(
            parent=f"environments/{settings.environment}",
            node_id=settings.node,
            node=fleet_pb2.Node(
                name=settings.node_name,
                address=address,
                http_address=self._advertised(self.http),
                base_domain=settings.base_domain,
                labels=settings.labels,
                version=__version__,
                max_instances=settings.max_instances,
                incarnation=self.incarnation,
            ),
        )


async def run_node(settings: NodeSettings, zygote: Zygote | None) -> None:
    """Run a node until SIGTERM or SIGINT; a second signal ends the process at once."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(BLOCKING_CALLS, thread_name_prefix="node"))

    def end() -> None:
        if ended.is_set():
            log.warning("ended at once by a second signal", extra={"action": "node.killed"})
            os._exit(1)
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    async with Node(settings, zygote, owns_process=True).serving():
        await ended.wait()
    log.info("ended", extra={"action": "node.ended"})


@contextlib.contextmanager
def data_directory_lock(directory: Path) -> Any:
    """Hold the data directory for this process. Raises DataDirectoryTaken while another one holds it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (directory / "node.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(100).strip() or "unknown"
            raise DataDirectoryTaken(
                f"{directory} is in use by another node (process {holder}); give this one its own --data-dir"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _background(stack: AsyncExitStack, work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(work)

    async def end() -> None:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled() and (fault := task.exception()) is not None:
            log.error("a task of the node had failed", exc_info=fault, extra={"action": "node.fault"})

    stack.push_async_callback(end)


async def _quietly(what: str, close: Any) -> None:
    """Close one part; a fault is logged and the others are closed all the same."""
    try:
        await close()
    except Exception:
        log.exception("closing failed", extra={"action": "node.close_fault", "part": what})

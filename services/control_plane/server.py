"""The composition root of the control plane: everything is made here, started in order, closed in reverse."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial

from google.longrunning.operations_pb2_grpc import add_OperationsServicer_to_server

from appsupervisor.catalog.v1.app_catalog_pb2_grpc import add_AppCatalogServicer_to_server
from appsupervisor.catalog.v1.certificates_pb2_grpc import add_CertificatesServicer_to_server
from appsupervisor.catalog.v1.retained_data_pb2_grpc import add_DataCatalogServicer_to_server
from appsupervisor.fleet.v1.fleet_pb2_grpc import add_FleetServicer_to_server
from services.control_plane.catalog.batches import BatchCommands
from services.control_plane.catalog.commands import AppCommands
from services.control_plane.catalog.queries import AppQueries
from services.control_plane.catalog.retained_data import RetainedDataService
from services.control_plane.catalog.timelines import AppTimelines
from services.control_plane.certificates.certificates import CertificateService
from services.control_plane.controller.batches import BatchRunner
from services.control_plane.controller.controller import Controller
from services.control_plane.duties import LeaderDuties
from services.control_plane.fleet.database_servers import DatabaseServers
from services.control_plane.fleet.environment_commands import EnvironmentCommands
from services.control_plane.fleet.fleet import FleetService
from services.control_plane.fleet.node_commands import NodeCommands
from services.control_plane.health import AppHealth
from services.control_plane.leadership import Leadership
from services.control_plane.metrics import ControlPlaneMetrics
from services.control_plane.nodes.figures import FigureReader
from services.control_plane.nodes.pool import NodePool
from services.control_plane.nodes.tails import AppTails
from services.control_plane.operations.service import OperationService
from services.control_plane.reconciler.database_travels import MoveSettings
from services.control_plane.servicers.app_catalog import CatalogServicer
from services.control_plane.servicers.certificates import CertificatesServicer
from services.control_plane.servicers.data_catalog import DataCatalogServicer
from services.control_plane.servicers.fleet import FleetServicer
from services.control_plane.servicers.fresh import FreshReads, FreshServicer
from services.control_plane.servicers.operations import OperationsServicer
from services.control_plane.settings import Settings
from services.control_plane.store.interface import CatalogStore
from services.control_plane.store.sql_store import open_store
from services.rpc.metrics import Collector, MetricsListener
from services.rpc.process import ending_signals, settle_collector
from services.rpc.server import RpcServer, Service

log = logging.getLogger("appsupervisor.control_plane")


class ControlPlane:
    """A running control plane. `port` is the one it listens on."""

    def __init__(self, settings: Settings, on_fatal: Callable[[BaseException], None] | None = None) -> None:
        """`on_fatal` is called, from any thread, when the store can't go on: the process should end."""
        self._settings = settings
        self._on_fatal = on_fatal
        self._stack = AsyncExitStack()
        self.port = 0
        self.metrics_port = 0
        self.leadership: Leadership | None = None
        """This replica's part in who leads, once it has started."""

    async def start(self) -> None:
        """Start in phases; if one fails, those before it are closed and the failure is raised."""
        async with AsyncExitStack() as stack:
            # 1. The store: migrated, loaded.
            store = await asyncio.to_thread(open_store, self._settings.database_url, on_fatal=self._on_fatal)
            stack.push_async_callback(asyncio.to_thread, store.close)
            # 2. The core.
            operations = OperationService(store)
            nodes = NodePool(store.mirror)
            figures = FigureReader(nodes)
            duties = LeaderDuties(
                store,
                partial(
                    Controller,
                    node_timeout=self._settings.node_timeout,
                    moves=MoveSettings(self._settings.postgres_bin_dir, self._settings.database_move_timeout),
                ),
                lambda led: BatchRunner(led, AppCommands(led, figures)),
            )
            await operations.start()
            # 3. Calls, from outside and, once it listens, from nodes.
            tails, queries = AppTails(store.mirror, nodes), AppQueries(store, figures)
            commands = AppCommands(store, figures)
            timelines, health = AppTimelines(store), AppHealth(store.mirror)
            server = RpcServer(
                services(
                    store, commands, operations, queries, timelines, tails, self._settings.gateway_token
                ),
                health.resources,
            )
            self.port = await server.start(self._settings.listen)
            stack.push_async_callback(server.stop, self._settings.drain_timeout)
            # Those who watch or wait are sent off first: the drain would wait for them in vain.
            stack.push_async_callback(operations.close)
            stack.callback(store.mirror.apps.close)
            stack.callback(store.mirror.nodes.close)
            stack.callback(store.mirror.certificates.close)
            stack.callback(tails.close)
            health.start()
            stack.push_async_callback(health.close)
            if self._settings.metrics_listen:
                self._serve_metrics(
                    stack,
                    ControlPlaneMetrics(
                        store,
                        duties.queue,
                        watchers=lambda: queries.watches.count + timelines.watches.count,
                        tails=lambda: tails.streams,
                    ),
                    server.pipeline.figures,
                )
            # 4. The leader's work last: what it does can be watched from its first step.
            leadership = Leadership(
                store.seat,
                f"{self._settings.listen.rpartition(':')[0]}:{self.port}",
                on_elected=duties.begin,
                on_lost=duties.end,
            )
            stack.push_async_callback(leadership.close)
            await leadership.start()
            self.leadership = leadership
            self._stack = stack.pop_all()
        # What was loaded stays: a collection need not walk it (85 ms at 10,000 apps, in every request's way).
        settle_collector()
        host = self._settings.listen.rpartition(":")[0]
        apps = len(store.mirror.apps)
        log.info(
            "control plane serves gRPC on %s:%d, %d apps in the catalog", host, self.port, apps,
            extra={"action": "control_plane.ready"},
        )  # fmt: skip

    def _serve_metrics(self, stack: AsyncExitStack, *collectors: Collector) -> None:
        host, _, port = self._settings.metrics_listen.rpartition(":")
        listener = MetricsListener(
            host.strip("[]"), int(port), *collectors, or_another=self._settings.metrics_port_may_vary
        )
        stack.push_async_callback(asyncio.to_thread, listener.close)
        listener.start()
        self.metrics_port = listener.port
        log.info("metrics on http://%s:%d/metrics", host, listener.port,
                 extra={"action": "control_plane.metrics"})  # fmt: skip

    async def close(self) -> None:
        """Close everything in reverse; goes on past a failure and raises it at the end."""
        await self._stack.aclose()


TURN_SECONDS = 0.001
"""How long the calls' loop and the store's writer wait for each other's turn of the interpreter: with the
usual 5 ms, 64 clients create two thirds as many apps."""


def services(
    store: CatalogStore,
    commands: AppCommands,
    operations: OperationService,
    queries: AppQueries,
    timelines: AppTimelines,
    tails: AppTails,
    gateway_token: str = "",
) -> list[Service]:
    """Return the services of the control plane over its core."""
    catalog = CatalogServicer(commands, BatchCommands(store, commands), queries, timelines, tails)
    data = DataCatalogServicer(RetainedDataService(store))
    is_heard = store.mirror.is_heard
    fleet = FleetServicer(
        store,
        FleetService(store, is_heard),
        EnvironmentCommands(store),
        NodeCommands(store, is_heard),
        DatabaseServers(store),
    )
    certificates = CertificatesServicer(store, CertificateService(store), gateway_token)
    servicers = [
        ("appsupervisor.catalog.v1.AppCatalog", add_AppCatalogServicer_to_server, catalog),
        ("appsupervisor.catalog.v1.Certificates", add_CertificatesServicer_to_server, certificates),
        ("appsupervisor.catalog.v1.DataCatalog", add_DataCatalogServicer_to_server, data),
        ("appsupervisor.fleet.v1.Fleet", add_FleetServicer_to_server, fleet),
        ("google.longrunning.Operations", add_OperationsServicer_to_server, OperationsServicer(operations)),
    ]
    if store.seat.exclusive:  # nobody else writes: what isn't here isn't anywhere
        return [Service(name, add, servicer) for name, add, servicer in servicers]
    reads = FreshReads(store)
    return [Service(name, add, FreshServicer(servicer, store, reads)) for name, add, servicer in servicers]


async def serve(settings: Settings) -> None:
    """Run until SIGTERM, SIGINT or SIGHUP, then drain. A second signal ends the process at once.

    Raises what ended the store, if it could not go on: acknowledged writes are safe, a new process
    starts from them.
    """
    sys.setswitchinterval(TURN_SECONDS)
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    fatal: list[BaseException] = []

    def end(failure: BaseException) -> None:
        fatal.append(failure)
        loop.call_soon_threadsafe(stopping.set)

    numbers = ending_signals()

    def stop() -> None:
        stopping.set()
        for number in numbers:
            loop.remove_signal_handler(number)

    for number in numbers:
        loop.add_signal_handler(number, stop)
    control_plane = ControlPlane(settings, end)
    await control_plane.start()
    await stopping.wait()
    log.info("control plane stops", extra={"action": "control_plane.stopping"})
    await control_plane.close()
    if fatal:
        raise fatal[0]

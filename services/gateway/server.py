"""The composition root of the gateway: everything is made here, started in order, closed in reverse."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import AsyncExitStack, closing

from services.gateway.envoy import Envoy, find_envoy
from services.gateway.listener import HTTPS_NAME, NAME, ListenerSpec, https_listener, listener
from services.gateway.lookups import HostLookups
from services.gateway.metrics import GatewayMetrics
from services.gateway.proxyless import ProxylessApps
from services.gateway.settings import Settings, split_address
from services.gateway.subscriber import Certificates, Subscriber, ended
from services.gateway.table import RoutingTable
from services.gateway.tls import CertificateTable
from services.gateway.xds.cache import LISTENER, SECRET, ResourceCache
from services.gateway.xds.servicer import SERVICE, DiscoveryServicer, register
from services.rpc.background import kept_running
from services.rpc.metrics import MetricsListener
from services.rpc.ports import bind_free_port
from services.rpc.process import ending_signals
from services.rpc.server import RpcServer, Service

log = logging.getLogger("appsupervisor.gateway")

LARGEST_REQUEST = 64 * 1024 * 1024
"""An Envoy that comes back tells each version that it has: some 40 bytes for each name of each app."""
XDS_GRACE = 1.0


class Gateway:
    """A running gateway. Envoy serves the apps at `port` and `https_port`; Envoys ask at `xds_port`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self.port = 0
        self.https_port = 0
        self.xds_port = 0
        self.metrics_port = 0
        self.envoy: Envoy | None = None
        """The Envoy that it runs."""

    async def start(self) -> None:
        """Start in phases; if one fails, those before it are closed and the failure is raised."""
        settings = self._settings
        async with AsyncExitStack() as stack:
            # 1. What is told. Without an Envoy of ours nobody can have looked for a free port.
            program = await asyncio.to_thread(find_envoy, settings.envoy_path) if settings.envoy else ""
            host, port = split_address(settings.listen)
            self.port = port or _free_port(host)
            cache = ResourceCache()
            cache.put(LISTENER, NAME, listener(self._listener_spec(host, self.port)))
            if settings.https_listen:
                https_host, https_port = split_address(settings.https_listen)
                self.https_port = https_port or _free_port(https_host)
                cache.put(
                    LISTENER, HTTPS_NAME, https_listener(self._listener_spec(https_host, self.https_port))
                )
            certificates = CertificateTable(lambda name: recertified(name))  # noqa: PLW0108 - made below
            table = RoutingTable(
                cache,
                settings.base_domain.split(","),
                is_covered=certificates.covers,
                https_port=settings.redirect_port(self.https_port),
            )

            def recertified(name: str) -> None:
                cache.changed(SECRET, name)
                table.recertified(name)

            proxyless = ProxylessApps(table, lambda host: lookups.addresses(host))  # noqa: PLW0108 - made below
            lookups = HostLookups(proxyless.hosts, proxyless.host_changed)
            servicer = DiscoveryServicer(cache, proxyless.cache)
            # 2. Envoys may ask, and wait for an answer until apps and nodes are known.
            server = RpcServer(
                [Service(SERVICE, register, servicer)], servicer.health, max_request_bytes=LARGEST_REQUEST
            )
            self.xds_port = await server.start(settings.xds_listen)
            server.set_serving(False, SERVICE)
            stack.push_async_callback(server.stop, XDS_GRACE)
            stack.callback(servicer.close)
            stack.push_async_callback(ended, kept_running(lookups.run, "nodes' host names"))

            def ready() -> None:
                cache.open()
                proxyless.cache.open()
                server.set_serving(True, SERVICE)
                counts = {"apps": len(table.apps), "nodes": len(table.nodes)}
                log.info("apps and nodes are known", extra={"action": "gateway.complete", **counts})

            keyed = Certificates(
                certificates, settings.gateway_token, lambda: cache.serve_secrets(certificates)
            )
            subscriber = Subscriber(
                settings.control_plane.split(","), table, ready, keyed if settings.https_listen else None
            )
            stack.push_async_callback(subscriber.close)
            await subscriber.start()
            # 3. Our own Envoy: the first to end, while what it asks is still answered.
            if program:
                self.envoy = Envoy(
                    program,
                    node_id=f"{socket.gethostname()}-{self.xds_port}",
                    xds_address=_reachable(settings.xds_listen, self.xds_port),
                    workers=settings.envoy_workers,
                    max_connections=settings.max_connections,
                )
                stack.push_async_callback(self.envoy.stop, settings.drain_timeout)
                self.envoy.start()
            if settings.metrics_listen:
                await self._serve_metrics(stack, GatewayMetrics(
                    cache, proxyless.cache, table, servicer, subscriber,
                    starts=lambda: self.envoy.starts if self.envoy else 0,
                    admin=self.envoy.admin if self.envoy else None,
                ), server)  # fmt: skip
            self._stack = stack.pop_all()
        log.info(
            "gateway serves xDS on %s:%d, apps on %s:%d", *split_address(settings.xds_listen)[:1],
            self.xds_port, host, self.port, extra={"action": "gateway.ready"},
        )  # fmt: skip
        if self.https_port:
            log.info("apps over HTTPS on port %d", self.https_port, extra={"action": "gateway.https"})

    def _listener_spec(self, host: str, port: int) -> ListenerSpec:
        settings = self._settings
        return ListenerSpec(
            host,
            port,
            base_domains=tuple(settings.base_domain.split(",")),
            path_hosts=tuple(filter(None, settings.path_host.split(","))),
            access_log=settings.access_log,
        )

    async def _serve_metrics(self, stack: AsyncExitStack, metrics: GatewayMetrics, server: RpcServer) -> None:
        host, port = split_address(self._settings.metrics_listen)
        served = MetricsListener(
            host, port, metrics, server.pipeline.figures, or_another=self._settings.metrics_port_may_vary
        )
        stack.push_async_callback(asyncio.to_thread, served.close)
        served.start()
        self.metrics_port = served.port
        log.info("metrics on http://%s:%d/metrics", host, served.port, extra={"action": "gateway.metrics"})

    async def close(self) -> None:
        """Close everything in reverse; goes on past a failure and raises it at the end."""
        await self._stack.aclose()


def _free_port(host: str) -> int:
    """Return a port that is free now; Envoy takes it, and takes it again after it has ended."""
    with closing(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)) as probe:
        return bind_free_port(probe, host)


def _reachable(listen: str, port: int) -> str:
    """Return the address at which this machine reaches what listens there."""
    host, _ = split_address(listen)
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
        host = "127.0.0.1" if "." in host else "::1"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def serve(settings: Settings) -> None:
    """Run until SIGTERM, SIGINT or SIGHUP, then drain. A second signal ends the process at once."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    numbers = ending_signals()

    def stop() -> None:
        stopping.set()
        for number in numbers:
            loop.remove_signal_handler(number)

    for number in numbers:
        loop.add_signal_handler(number, stop)
    gateway = Gateway(settings)
    await gateway.start()
    await stopping.wait()
    log.info("gateway stops", extra={"action": "gateway.stopping"})
    await gateway.close()

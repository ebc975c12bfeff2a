"""The gateway's figures as Prometheus metrics, its Envoy's among them, computed when scraped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import islice

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from services.gateway.admin import EnvoyAdmin
from services.gateway.subscriber import Subscriber
from services.gateway.table import RoutingTable
from services.gateway.xds.cache import ENDPOINTS, KINDS, ResourceCache
from services.gateway.xds.messages import TYPE_PREFIX
from services.gateway.xds.on_demand import OnDemandCache
from services.gateway.xds.servicer import DiscoveryServicer

PREFIX = "appsupervisor_gateway"
MAX_DOMAINS = 10_000
"""Told at most: what one scrape may cost has a bound."""
_OF_AN_APP = r"upstream_rq_(total|active|pending_overflow|retry|[0-9]xx)|circuit_breakers|outlier_detection"
_OF_ENVOY = (
    r"^(http\.edge\.downstream_(rq|cx)|cluster\.environments|server\.(memory|uptime|live)"
    rf"|cluster\.apps/[^.]+\.({_OF_AN_APP}))"
)
"""Which of Envoy's own figures are told along: it has thousands."""


class GatewayMetrics:
    """Collects the metrics of one gateway. `admin` is that of the Envoy that it runs, if it runs one."""

    def __init__(
        self,
        cache: ResourceCache,
        on_demand: OnDemandCache,
        table: RoutingTable,
        servicer: DiscoveryServicer,
        subscriber: Subscriber,
        *,
        starts: Callable[[], int],
        admin: EnvoyAdmin | None,
    ) -> None:
        self._cache = cache
        self._on_demand = on_demand
        self._table = table
        self._servicer = servicer
        self._subscriber = subscriber
        self._starts = starts
        self._admin = admin

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of now."""
        now = time.monotonic()
        for name, text, value in (
            ("apps", "Apps that are known.", len(self._table.apps)),
            ("nodes", "Nodes that are known.", len(self._table.nodes)),
            ("complete", "1 once apps and nodes have been told by the control plane.", self._cache.complete),
            ("envoys", "Envoys that are connected.", len(self._servicer.sessions)),
            (
                "envoys_refusing",
                "Of these, those that did not accept what they were told last.",
                sum(session.refusal is not None for session in self._servicer.sessions),
            ),
            ("grpc_clients", "Streams of gRPC clients that are open.", len(self._servicer.clients)),
            (
                "grpc_clients_refusing",
                "Of these, those that did not accept what they were told last.",
                sum(session.refusal is not None for session in self._servicer.clients),
            ),
            ("grpc_resources", "Resources that gRPC clients follow.", len(self._on_demand)),
            ("envoy_starts", "How often the gateway's own Envoy was started.", self._starts()),
        ):
            yield GaugeMetricFamily(f"{PREFIX}_{name}", text, value=value)
        silence = GaugeMetricFamily(
            f"{PREFIX}_watch_silence_seconds", "Time since a watch told anything.", labels=["watch"]
        )
        for watch in self._subscriber.watches:
            if watch.last_heard:
                silence.add_metric([watch.name], now - watch.last_heard)
        yield silence
        domains = GaugeMetricFamily(
            f"{PREFIX}_domain_info",
            "Which app a domain leads to, by the names that access logs and nodes' metrics have.",
            labels=["domain", "app"],
        )
        for domain, app in islice(self._table.domains(), MAX_DOMAINS):
            domains.add_metric([domain, app], 1)
        yield domains
        sent = CounterMetricFamily(f"{PREFIX}_xds_messages", "Messages sent.", labels=["kind"])
        refused = CounterMetricFamily(
            f"{PREFIX}_xds_refusals",
            "Messages that an Envoy or a gRPC client did not accept.",
            labels=["kind"],
        )
        for kind in (*KINDS, ENDPOINTS):
            short = kind.rpartition(".")[2]
            sent.add_metric([short], self._servicer.sent[TYPE_PREFIX + kind])
            refused.add_metric([short], self._servicer.refusals[short])
        yield sent
        yield refused
        yield CounterMetricFamily(
            f"{PREFIX}_xds_sent_bytes", "Bytes of these messages.", value=self._servicer.sent_bytes
        )
        if self._admin is not None:
            yield from self._envoy(self._admin)

    def _envoy(self, admin: EnvoyAdmin) -> Iterable[Metric]:
        try:
            text = admin.metrics(_OF_ENVOY)
        except OSError:
            return
        yield from text_string_to_metric_families(text)

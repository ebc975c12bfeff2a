"""The node's figures as Prometheus metrics, computed when scraped from what the node keeps anyway.

At most `MAX_APPS` apps have series of their own, the first by name; the others are summed as `app="other"`.
Dormant apps that never ran have none. Called on the metrics listener's threads: reads, never waits.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance as InstanceMessage
from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec
from runtime_node.instances.forwards import ForwardFigures
from runtime_node.instances.record import LEAKED, Instance
from runtime_node.instances.table import InstanceTable
from runtime_node.logs.app_logs import AppLogs

MAX_APPS = 1_000
OTHER = "other"
PREFIX = "appsupervisor_app"

COUNTERS = {
    "requests": "Requests answered.",
    "errors": "Requests answered with 5xx by the app, or broken off by it.",
    "requests_shed": "Requests refused with 503 because the queue was full.",
    "request_timeouts": "Requests ended with 504.",
    "cpu_seconds": "CPU time used since the last start; only where it can be told apart (THREAD, PROCESS).",
    "restarts": "Starts by the restart policy or by command.",
    "rescues": "Requests that were interrupted because they blocked the event loop.",
    "log_lines": "Lines logged or printed and kept.",
    "log_lines_dropped": "Lines logged or printed too fast to be kept.",
}
GAUGES = {
    "requests_in_flight": "Requests being served.",
    "requests_queued": "Requests waiting.",
    "websockets": "WebSockets open.",
    "memory_bytes": "Memory; only where it can be told apart (PROCESS).",
    "instances": "Instances on this node.",
    "instances_serving": "Instances that serve and do not fail their probe, or that the next request wakes.",
    "instances_leaking": "Instances that left something behind at a stop.",
}
# Of several instances the worst is told, not the sum.
WORST = {
    "loop_lag_seconds": "Largest delay of the event loop in the last reporting period.",
    "p50": "",
    "p99": "",
}


@dataclass(slots=True)
class _App:
    tier: str = ""
    sums: Counter[str] = field(default_factory=Counter)
    worst: dict[str, float] = field(default_factory=dict)

    def add(self, other: _App) -> None:
        self.sums.update(other.sums)
        for name, value in other.worst.items():
            self.worst[name] = max(value, self.worst.get(name, 0.0))


class NodeMetrics:
    """Collects the metrics of one node. `memory` returns its bytes, `streams` its open watch streams,
    `forwarded` what it has forwarded."""

    def __init__(
        self,
        table: InstanceTable,
        logs: AppLogs,
        *,
        memory: Callable[[], int],
        streams: Callable[[], int],
        forwarded: Callable[[], ForwardFigures],
        max_apps: int = MAX_APPS,
    ) -> None:
        self._table = table
        self._logs = logs
        self._memory = memory
        self._streams = streams
        self._forwarded = forwarded
        self._max_apps = max_apps
        self._lock = threading.Lock()
        self._retired: dict[str, Counter[str]] = {}
        self._shown: frozenset[str] = frozenset()

    def gone(self, instance: Instance) -> None:
        """Keep the counts of an instance that has ended: its app's totals must not fall."""
        counts = _counts(instance)
        app = instance.app
        rest = any(other is not instance for other in self._table.of_app(app))
        with self._lock:
            if rest:
                self._retired.setdefault(app, Counter()).update(counts)
                return
            # The app is not here any more, and with it go its series; those of the sum must not fall.
            counts.update(self._retired.pop(app, Counter()))
            if app not in self._shown:
                self._retired.setdefault(OTHER, Counter()).update(counts)

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of now."""
        began = time.perf_counter()
        instances = self._table.all()
        apps, states = self._apps(instances)
        shown = sorted(apps)[: self._max_apps]
        rest = _App()
        for name in sorted(apps)[self._max_apps :]:
            rest.add(apps[name])
        with self._lock:
            self._shown = frozenset(shown)
            if OTHER in self._retired:
                rest.sums.update(self._retired[OTHER])
        rows = [(name, apps[name]) for name in shown]
        if rest.sums:
            rows.append((OTHER, rest))
        yield from _families(rows)
        yield from self._node(states)
        duration = GaugeMetricFamily(
            "appsupervisor_node_scrape_seconds", "Time that this scrape took so far."
        )
        duration.add_metric([], time.perf_counter() - began)
        yield duration

    def _apps(self, instances: Iterable[Instance]) -> tuple[dict[str, _App], Counter[tuple[str, str]]]:
        apps: dict[str, _App] = {}
        states: Counter[tuple[str, str]] = Counter()
        uids: dict[str, set[str]] = {}
        for instance in instances:
            run, past = instance.run, instance.history
            tier = InstanceSpec.IsolationTier.Name(run.tier) if run is not None and run.tier else ""
            states[InstanceMessage.State.Name(instance.state), tier] += 1
            if run is None and past is None:
                continue
            name = instance.app
            app = apps.setdefault(name, _App())
            app.tier = tier or app.tier
            app.sums.update(_counts(instance))
            _add_present(app, instance)
            uids.setdefault(name, set()).add(instance.uid)
        with self._lock:
            retired = {name: Counter(counts) for name, counts in self._retired.items() if name in apps}
        for name, counts in retired.items():
            apps[name].sums.update(counts)
        for name, app in apps.items():
            for uid in uids[name]:
                lines = self._logs.counts(name, uid)
                app.sums["log_lines"] += lines.lines
                app.sums["log_lines_dropped"] += lines.dropped
        return apps, states

    def _node(self, states: Counter[tuple[str, str]]) -> Iterable[Metric]:
        family = GaugeMetricFamily(
            "appsupervisor_node_instances", "Instances by state and tier.", labels=["state", "tier"]
        )
        for (state, tier), count in sorted(states.items()):
            family.add_metric([state, tier], count)
        yield family
        forwarded = self._forwarded()
        for name, text, count in (
            ("forwarded_requests", "Requests that were carried to another node.", forwarded.requests),
            ("forward_failures", "Requests that no other node answered to the end.", forwarded.failures),
        ):
            counter = CounterMetricFamily(f"appsupervisor_node_{name}", text)
            counter.add_metric([], count)
            yield counter
        for name, text, value in (
            ("max_instances", "The most instances that the node accepts.", self._table.max_instances),
            ("memory_bytes", "Resident memory of the node and its processes.", self._memory()),
            ("watch_streams", "WatchInstances streams open.", self._streams()),
            ("draining", "1 once the node has begun to shut down.", int(self._table.draining)),
            ("forwarding_apps", "Apps that have moved away and are forwarded.", forwarded.apps),
            ("log_lines_lost", "Lines of instances that had ended already.", self._logs.lost),
        ):
            family = GaugeMetricFamily(f"appsupervisor_node_{name}", text)
            family.add_metric([], value)
            yield family


def _counts(instance: Instance) -> Counter[str]:
    """Return what only ever rises over an instance's life."""
    gate, past = instance.gate.figures(), instance.history
    counts = Counter(
        requests=gate.requests, errors=gate.errors, requests_shed=gate.shed, request_timeouts=gate.timeouts
    )
    if past is not None:
        counts.update(restarts=past.restart_count, rescues=past.rescue_count)
        if past.figures is not None and past.figures.HasField("cpu_time"):
            spent = past.figures.cpu_time
            counts["cpu_seconds"] = spent.seconds + spent.nanos / 1e9  # type: ignore[assignment]
    return counts


def _add_present(app: _App, instance: Instance) -> None:
    gate, past = instance.gate.figures(), instance.history
    serving = instance.state == InstanceMessage.IDLE or (
        instance.state == InstanceMessage.RUNNING and instance.health != InstanceMessage.Health.UNHEALTHY
    )
    app.sums.update(
        requests_in_flight=gate.in_flight,
        requests_queued=gate.queued,
        websockets=gate.websockets,
        instances=1,
        instances_serving=int(serving),
        instances_leaking=int(instance.has_condition(LEAKED)),
    )
    worst = {"p50": gate.latency_p50, "p99": gate.latency_p99} if gate.requests else {}
    figures = past.figures if past is not None else None
    if figures is not None and instance.state == InstanceMessage.RUNNING:
        app.sums["memory_bytes"] += figures.memory_bytes
        if figures.HasField("loop_lag"):
            worst["loop_lag_seconds"] = figures.loop_lag.seconds + figures.loop_lag.nanos / 1e9
    app.add(_App(worst=worst))


def _families(rows: list[tuple[str, _App]]) -> Iterable[Metric]:
    labels = ["app", "tier"]
    for name, text in COUNTERS.items():
        counter = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
        for app, figures in rows:
            if name in figures.sums:
                counter.add_metric([app, figures.tier], figures.sums[name])
        yield counter
    for name, text in GAUGES.items():
        gauge = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
        for app, figures in rows:
            if name in figures.sums:
                gauge.add_metric([app, figures.tier], figures.sums[name])
        yield gauge
    lag = GaugeMetricFamily(f"{PREFIX}_loop_lag_seconds", WORST["loop_lag_seconds"], labels=labels)
    latency = GaugeMetricFamily(
        f"{PREFIX}_request_latency_seconds",
        "Latency over the last reporting period with requests; of several instances the worst.",
        labels=[*labels, "quantile"],
    )
    for app, figures in rows:
        if "loop_lag_seconds" in figures.worst:
            lag.add_metric([app, figures.tier], figures.worst["loop_lag_seconds"])
        for key, quantile in (("p50", "0.5"), ("p99", "0.99")):
            if key in figures.worst:
                latency.add_metric([app, figures.tier, quantile], figures.worst[key])
    yield lag
    yield latency

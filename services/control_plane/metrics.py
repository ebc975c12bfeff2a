"""The control plane's figures as Prometheus metrics, computed when scraped. Reads, never waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance
from services.control_plane.store.interface import CatalogStore

PREFIX = "appsupervisor_control_plane"


class ControlPlaneMetrics:
    """Collects the metrics of one control plane. The callables return streams open now."""

    def __init__(
        self,
        store: CatalogStore,
        queue: Callable[[], tuple[int, int]],
        *,
        watchers: Callable[[], int],
        tails: Callable[[], int],
    ) -> None:
        self._store = store
        self._queue = queue
        self._watchers = watchers
        self._tails = tails

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of now."""
        apps = GaugeMetricFamily(f"{PREFIX}_apps", "Apps by state and health.", labels=["state", "health"])
        for labels, count in sorted(self._apps().items()):
            apps.add_metric(labels, count)
        yield apps
        nodes = GaugeMetricFamily(f"{PREFIX}_nodes", "Registered nodes by state.", labels=["state"])
        states = Counter(Node.State.Name(record.node.state) for record in self._store.mirror.nodes.values())
        for state, count in sorted(states.items()):
            nodes.add_metric([state], count)
        yield nodes
        ends = GaugeMetricFamily(
            f"{PREFIX}_certificate_expire_time_seconds",
            "When certificates end to be valid, since the Unix epoch.",
            labels=["certificate"],
        )
        for record in self._store.mirror.certificates.values():
            ends.add_metric([record.name], record.certificate.expire_time.ToSeconds())
        yield ends
        waiting, running = self._queue()
        for name, text, value in (
            ("open_operations", "Operations that are not done.", self._store.mirror.count_open_operations()),
            ("reconcile_waiting", "Apps that wait for a pass.", waiting),
            ("reconcile_running", "Passes under way.", running),
            ("app_watchers", "WatchApps and WatchAppEvents streams open.", self._watchers()),
            ("log_streams", "TailAppLogs streams open.", self._tails()),
            ("revision", "Newest revision of the catalog.", self._store.mirror.apps.revision),
        ):
            gauge = GaugeMetricFamily(f"{PREFIX}_{name}", text)
            gauge.add_metric([], value)
            yield gauge
        # Their ratio is the size of a batch.
        commits, commands = self._store.written()
        for name, text, value in (
            ("store_commits", "Commits of the catalog.", commits),
            ("store_commands", "Commands that were carried out in them.", commands),
        ):
            counter = CounterMetricFamily(f"{PREFIX}_{name}", text)
            counter.add_metric([], value)
            yield counter

    def _apps(self) -> Counter[tuple[str, str]]:
        named: Counter[tuple[str, str]] = Counter()
        for (state, health), count in self._store.mirror.count_states().items():
            named[_name(Instance.State, state), _name(Instance.Health, health)] += count
        return named


def _name(enum: object, value: int) -> str:
    # A catalog written by a newer version may hold values that this one does not know.
    return str(enum.Name(value)) if value in enum.values() else str(value)  # type: ignore[attr-defined]

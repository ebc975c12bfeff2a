"""What can be seen of a node's apps beside their state: their logs, their health, their figures as metrics.

Put together here; none of it decides anything about an instance.
"""

from __future__ import annotations

from collections.abc import Callable

from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance as InstanceMessage
from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceError, InstanceSpec
from runtime_node.context import hidden_in
from runtime_node.instances.forwards import ForwardFigures
from runtime_node.instances.record import Instance
from runtime_node.instances.table import InstanceTable
from runtime_node.logs.app_logs import AppLogs, LogSource
from runtime_node.logs.echo import echo_to_log
from runtime_node.logs.tail import Tails
from runtime_node.metrics import NodeMetrics
from runtime_node.settings import NodeSettings
from services.rpc.health import ResourceHealth

RAISED_AT_START = frozenset({"APP_FACTORY_FAILED", "APP_STARTUP_FAILED", "ENTRYPOINT_IMPORT_FAILED"})
"""Failures with an exception that nothing else has put into the app's log."""


class Telemetry:
    """Logs, health and metrics of one node's apps."""

    def __init__(
        self,
        settings: NodeSettings,
        table: InstanceTable,
        *,
        memory: Callable[[], int],
        streams: Callable[[], int],
        forwarded: Callable[[], ForwardFigures],
    ) -> None:
        """`memory` returns the node's bytes, `streams` its open watches, `forwarded` what it forwards."""
        self._table = table
        self.logs = AppLogs(
            settings.data_dir / "logs",
            self._source,
            echo=echo_to_log() if settings.echo_app_logs else None,
        )
        self._failures: dict[str, InstanceError] = {}
        """By instance: the failed start that its log tells of."""
        self.tails = Tails(self.logs, self._newest_uid, self._is_here)
        self.health = ResourceHealth(self._serves)
        self.metrics: NodeMetrics | None = None
        if settings.metrics_listen is not None:
            self.metrics = NodeMetrics(table, self.logs, memory=memory, streams=streams, forwarded=forwarded)

    def close_streams(self) -> None:
        """End the streams of this side, once they have told all there is."""
        self.tails.close()
        self.health.close()

    def _serves(self, name: str) -> bool | None:
        """Tell whether requests to an instance, or to an app, are answered by it; None if it is unknown."""
        app, slash, _ = name.removeprefix("apps/").partition("/")
        if not name.startswith("apps/"):
            return None
        if slash:
            instance = self._table.find(name)
            return None if instance is None else _answers(instance)
        instances = self._table.of_app(app)
        return any(map(_answers, instances)) if instances else None

    def fault(self, name: str, stack: str) -> None:
        """An exception left an instance's app. Any thread; does not wait."""
        # A guest tells its own faults, with the app's stack instead of its proxy's.
        instance = self._table.find(name)
        run = None if instance is None else instance.run
        if run is None or run.tier != InstanceSpec.PROCESS:
            self.logs.write_fault(name, stack)

    def _source(self, name: str) -> LogSource | None:
        instance = self._table.find(name)
        if instance is None:
            return None
        return LogSource(instance.app, instance.uid, hidden_in(instance.spec()))

    def _newest_uid(self, app: str) -> str:
        instances = self._table.of_app(app)
        return instances[-1].uid if instances else ""

    def _is_here(self, name: str) -> bool:
        return self._table.find(name) is not None

    def _log_failure(self, instance: Instance) -> None:
        """Put the traceback of an app that did not start into its log, once."""
        error = instance.history.last_error if instance.history is not None else None
        if instance.state != InstanceMessage.FAILED or error is None or error.reason not in RAISED_AT_START:
            return
        if self._failures.get(instance.name) is not error:
            self._failures[instance.name] = error
            self.logs.write_fault(instance.name, error.detail)

    def changed(self, instance: Instance) -> None:
        """An instance is new, or its state, health or conditions have changed."""
        self._log_failure(instance)
        if instance.state == InstanceMessage.IDLE:
            self.logs.forget(instance.name, instance.app, instance.uid)
        if self.health.watched:
            self.health.changed(instance.name)
            self.health.changed(f"apps/{instance.app}")

    def gone(self, instance: Instance) -> None:
        """An instance has ended and is not here any more."""
        self._failures.pop(instance.name, None)
        self.changed(instance)
        if self.metrics is not None:
            self.metrics.gone(instance)
        self.logs.forget(instance.name, instance.app, instance.uid)
        self.tails.look()


def _answers(instance: Instance) -> bool:
    # A dormant one is well: the next request starts it.
    if instance.state == InstanceMessage.IDLE:
        return True
    return instance.state == InstanceMessage.RUNNING and instance.health != InstanceMessage.Health.UNHEALTHY

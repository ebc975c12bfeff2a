"""What can be seen of a node's apps beside their state: their logs, their health, their figures as metrics.

Put together here and handed the host; none of it decides anything about an instance.
"""

from __future__ import annotations

from appsupervisor.runtime.v1.runtime_environment_pb2 import IsolationTier
from runtime_node.instances.host import InstanceHost, LogHooks
from runtime_node.instances.record import Instance
from runtime_node.logs.app_logs import AppLogs, Speaker
from runtime_node.logs.echo import echo_of_stderr
from runtime_node.logs.tail import Tails
from runtime_node.settings import NodeSettings


class Observation:
    """The observing side of one node. `host` is set once there is one, before any instance."""

    def __init__(self, settings: NodeSettings) -> None:
        self.host: InstanceHost
        self.logs = AppLogs(
            settings.data_dir / "logs",
            self._speaker,
            echo=echo_of_stderr() if settings.echo_app_logs else None,
        )
        self.tails = Tails(self.logs, self._newest_uid, self._is_here)
        self.hooks = LogHooks(self._fault, self._quiet, self.logs.purge)

    def _fault(self, name: str, stack: str) -> None:
        # A guest tells its own faults, with the app's stack instead of its proxy's.
        instance = self.host.find(name)
        life = None if instance is None else instance.life
        if life is None or life.tier != IsolationTier.PROCESS:
            self.logs.write_fault(name, stack)

    def _speaker(self, name: str) -> Speaker | None:
        instance = self.host.find(name)
        if instance is None:
            return None
        return Speaker(instance.app, instance.uid, tuple(instance.spec().secret_env.values()))

    def _newest_uid(self, app: str) -> str:
        instances = self.host.of_app(app)
        return instances[-1].uid if instances else ""

    def _is_here(self, name: str) -> bool:
        return self.host.find(name) is not None

    def _quiet(self, instance: Instance) -> None:
        self.logs.forget(instance.name, instance.app, instance.uid)
        self.tails.look()

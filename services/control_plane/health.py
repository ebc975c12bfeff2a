"""grpc.health.v1 of apps, from the catalog: an app can be used if its node says so and can be heard."""

from __future__ import annotations

import asyncio

from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition, Instance
from services.control_plane.store.mirror import Mirror
from services.rpc.background import kept_running
from services.rpc.errors import SupervisorError
from services.rpc.feed import Entry
from services.rpc.health import ResourceHealth

IDLE_SECONDS = 60.0


class AppHealth:
    """Answers for `apps/{app}`; `resources` is what the server asks."""

    def __init__(self, mirror: Mirror) -> None:
        self._apps = mirror.apps
        self.resources = ResourceHealth(self._serves)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to follow the catalog."""
        self._task = kept_running(self._follow, "app health")

    async def close(self) -> None:
        """Tell every watch that nothing can be used any more, and end."""
        self.resources.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _serves(self, name: str) -> bool | None:
        record = self._apps.get(name)
        if record is None:
            return None
        status = record.status
        if status.state == Instance.IDLE:
            # The health of a dormant app is not known; that of its node is what its condition tells.
            return any(c.type == "Ready" and c.status == Condition.MET for c in status.conditions)
        return status.state == Instance.RUNNING and status.health in (
            Instance.Health.HEALTHY,
            Instance.Health.DEGRADED,
        )

    async def _follow(self) -> None:
        while True:
            try:
                async for item in self._apps.watch(self._apps.revision, IDLE_SECONDS):
                    if isinstance(item, Entry):
                        self.resources.changed(item.key)
            except SupervisorError as ended:
                if ended.reason == "SHUTTING_DOWN":
                    return

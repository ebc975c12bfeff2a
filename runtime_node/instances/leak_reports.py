"""Notes what a stopped instance left in memory, by its holders: in its conditions, or in the node's log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance as InstanceMessage
from runtime_node.instances.record import LEAKED, Instance
from runtime_node.instances.table import InstanceTable
from runtime_node.instances.transitions import Transitions

log = logging.getLogger("runtime_node.instances")

MAX_TEXT = 2000


class LeakReports:
    """Belongs to the control loop."""

    def __init__(
        self, table: InstanceTable, transitions: Transitions, wall: Callable[[], float] = time.time
    ) -> None:
        self._table = table
        self._transitions = transitions
        self._wall = wall

    def told(self, name: str, holders: Sequence[str]) -> None:
        """Something of a former run of an instance is in memory still, held by what is named."""
        instance = self._table.find(name)
        if instance is not None:
            self.record(instance, holders)
            return
        log.warning(
            "Left behind: %s", "; ".join(holders), extra={"action": "instance.leaked", "instance": name}
        )

    def record(self, instance: Instance, holders: Sequence[str]) -> None:
        """A former run of an instance left something behind."""
        text = ("Left behind: " + "; ".join(holders))[:MAX_TEXT]
        instance.set_condition(LEAKED, True, "APP_LEAKED", text, self._wall())
        self._transitions.log(instance, "leaked", level=logging.WARNING, message=text)
        self._transitions.reassess(instance, tell=instance.state != InstanceMessage.STOPPING)

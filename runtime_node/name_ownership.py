"""What a node does that has lost its name to another one: it serves nobody any more, and says why.

Otherwise two nodes would answer for the same apps, each from data of its own.
"""

from __future__ import annotations

import asyncio
import logging

from runtime_node.http.problems import Problem
from runtime_node.http.router import Router
from runtime_node.instances.host import InstanceHost
from services.rpc.errors import SupervisorError

log = logging.getLogger("runtime_node.registration")

REASON = "NODE_NAME_TAKEN"
_PROBLEM = Problem(
    503, REASON, "Another node has this node's name now; this one serves no apps any more.", close=True
)


class NameOwnership:
    """Hears how registrations end. Belongs to the control loop."""

    def __init__(self, node: str, host: InstanceHost, router: Router, stop_timeout: float) -> None:
        """`stop_timeout` is the time, in seconds, for draining all apps when the name is lost."""
        self._node = node
        self._host = host
        self._router = router
        self._stop_timeout = stop_timeout
        self._had = False
        self._lost = False
        self._stopping: asyncio.Task[int] | None = None

    def confirmed(self) -> None:
        """The node has its name."""
        self._had = True
        if self._lost:
            self._lost = False
            self._host.refuse_starts(None)
            self._router.refuse(None)
            log.warning("the node has its name again", extra={"action": "node.name_regained"})

    def refused(self, reason: str, message: str) -> None:
        """The node was refused: a name that it had is lost if another identity has it."""
        if reason != REASON or not self._had or self._lost:
            return
        self._lost = True
        self._router.refuse(_PROBLEM)
        self._host.refuse_starts(SupervisorError(REASON, _PROBLEM.detail, resource=self._node))
        self._stopping = asyncio.create_task(self._host.stop_all(self._stop_timeout))
        log.error(
            "the node has lost its name and stops serving its apps: %s", message,
            extra={"action": "node.name_lost", "node": self._node},
        )  # fmt: skip

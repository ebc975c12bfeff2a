"""One node as the reconciler hears it: the watch stream kept alive, and what it last told.

The link never decides anything: it keeps the view and tells which apps may have changed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1.runtime_environment_pb2 import (
    Instance,
    RuntimeStatus,
    WatchInstancesResponse,
)
from services.control_plane.nodes.client import NodeClient
from services.rpc.errors import SupervisorError

log = logging.getLogger("appsupervisor.reconciler")

Message = WatchInstancesResponse


class LinkListener(Protocol):
    """What a link tells its owner."""

    def heard(self, link: NodeLink, status: RuntimeStatus) -> None:
        """The node has told all that it runs, in this connection."""

    def lost(self, link: NodeLink, why: str) -> None:
        """The node has not been heard for its time limit."""

    def changed(self, apps: Iterable[str]) -> None:
        """Something about these apps has changed on the node."""


class NodeLink:
    """Follows one incarnation of one node until closed."""

    def __init__(
        self,
        node: Node,
        listener: LinkListener,
        *,
        timeout: float,
        connect: Callable[[str], NodeClient] = NodeClient,
    ) -> None:
        self.node = node
        self.client = connect(node.address)
        self.synced = False
        """The view is complete and the stream is open."""
        self.given_up = False
        """The node was not heard for `timeout` seconds; false again once it is."""
        self._listener = listener
        self._timeout = timeout
        self._apps: dict[str, dict[str, Instance]] = {}
        self._incoming: dict[str, dict[str, Instance]] | None = None
        self._refused: dict[str, Instance] = {}
        self._deadline: asyncio.TimerHandle | None = None
        self._why = "it has not answered yet"
        self._task = asyncio.create_task(self._follow(), name=f"link {node.name}")

    def instances(self, app: str) -> dict[str, Instance]:
        """Return the app's instances on this node by name, with a start that the node refused."""
        found = self._apps.get(app, {})
        refused = self._refused.get(app)
        if refused is not None and refused.name not in found:
            return {**found, refused.name: refused}
        return found

    def apps(self) -> set[str]:
        """Return the apps that have an instance here."""
        return set(self._apps)

    def accepted(self, app: str, instance: Instance) -> None:
        """Note what the node answered, unless its stream was quicker."""
        self._refused.pop(app, None)
        self._apps.setdefault(app, {}).setdefault(instance.name, instance)

    def refuse(self, app: str, instance: Instance) -> None:
        """Note a start that the node refused, as a failed instance that isn't there."""
        self._refused[app] = instance

    def forget_refusal(self, app: str, name: str) -> None:
        """Forget the refused start of an instance that has been stopped."""
        if app in self._refused and self._refused[app].name == name:
            del self._refused[app]
            self._listener.changed((app,))

    async def close(self) -> None:
        """End the stream and the channel."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._deadline is not None:
            self._deadline.cancel()
        await self.client.close()

    async def _follow(self) -> None:
        """Keep a stream open for ever; the pauses between tries grow until one succeeds."""
        while True:
            retrying = AsyncRetrying(
                retry=retry_if_exception_type(SupervisorError),
                wait=wait_random_exponential(multiplier=0.1, max=2),
            )
            await retrying(self._connect_once)

    async def _connect_once(self) -> None:
        """Hear the node until its stream breaks; raises SupervisorError if it was never heard."""
        self._deadline = self._deadline or self._later()
        try:
            status = await self.client.status()
            if status.incarnation != self.node.incarnation:
                raise SupervisorError(
                    "NODE_UNREACHABLE", f"Another incarnation answers at {self.node.address}."
                )
            self._incoming = {}
            async for message in self.client.watch(silence=self._timeout / 2):
                self._take(message)
                if message.type == Message.SYNCED:
                    self._deadline.cancel()
                    self._listener.heard(self, status)
        except SupervisorError as broken:
            self._why = broken.message
            if not self.synced:
                raise
            self.synced = False
            self._deadline = self._later()
            log.warning(
                "node lost: %s: %s", self.node.name, broken.message,
                extra={"action": "node_stream_broken", "node": self.node.name},
            )  # fmt: skip

    def _later(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(self._timeout, self._give_up)

    def _take(self, message: Message) -> None:
        """Apply one message to the view."""
        if message.type == Message.SYNCED:
            before = set(self._apps)
            self._apps, self._incoming = self._incoming or {}, None
            self.synced, self.given_up = True, False
            self._listener.changed(before | set(self._apps))
            return
        if message.type not in (Message.UPSERT, Message.DELETE):
            return
        instance = message.instance
        app = instance.name.partition("/instances/")[0]
        apps = self._apps if self._incoming is None else self._incoming
        if message.type == Message.UPSERT:
            instance.ClearField("figures")
            known = apps.setdefault(app, {})
            same = known.get(instance.name) == instance
            known[instance.name] = instance
        else:
            same = apps.get(app, {}).pop(instance.name, None) is None
            if not apps.get(app, True):
                del apps[app]
        if self._incoming is None and not same:
            self._listener.changed((app,))

    def _give_up(self) -> None:
        if not self.synced and not self.given_up:
            self.given_up = True
            self._listener.lost(self, self._why)

"""One node as the control plane hears it: the watch stream kept alive, and what it last told.

The link never decides anything: it keeps the view and tells which apps may have changed.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1 import data_transfers_pb2 as transfers
from appsupervisor.runtime.v1.runtime_environment_pb2 import (
    ClaimDataDirectoryRequest,
    DataDirectory,
    Instance,
    InstanceFigures,
    RuntimeStatus,
    StartInstanceRequest,
    StopInstanceRequest,
    WatchInstancesResponse,
)
from services.control_plane.leases import Leases
from services.control_plane.nodes.beginnings import Beginnings
from services.control_plane.nodes.client import NodeClient
from services.control_plane.nodes.renewals import LeaseRenewals
from services.control_plane.nodes.silence import STALL
from services.rpc.background import background
from services.rpc.errors import SupervisorError

log = logging.getLogger("appsupervisor.reconciler")

Message = WatchInstancesResponse

PASSING = frozenset({Instance.PENDING, Instance.STARTING, Instance.STOPPING})
PASSING_SECONDS = 0.03
"""After which a state that passes is news: most starts and stops are over before, and are stored once."""

PASSING_TOGETHER, LONGEST_PASSING_SECONDS = 4, 1.0
"""Of more instances than so many at once each is longer on its way, in proportion, for so long at most."""

CLOCK_SLACK = 0.01
"""Seconds by which a loop's timer may fire early."""


class LinkListener(Protocol):
    """What a link tells its owner."""

    def heard(self, link: NodeLink, status: RuntimeStatus, apps: Iterable[str]) -> None:
        """The node has told all that it runs, in this connection; `apps` have something there, or had."""

    def lost(self, link: NodeLink, why: str) -> None:
        """The node has not been heard for its time limit."""

    def left_behind(self, app: str, instance: Instance) -> None:
        """An instance has ended and left something on the node: its `last_error` names the holder."""

    def changed(self, apps: Iterable[str]) -> None:
        """Something about these apps has changed on the node."""


class NodeLink:
    """Follows one incarnation of one node until closed."""

    def __init__(
        self,
        node: Node,
        listener: LinkListener,
        *,
        leases: Leases,
        timeout: float,
        silence: float,
        connect: Callable[[str], NodeClient] = NodeClient,
        beginnings: Beginnings | None = None,
        hosts: dict[str, tuple[NodeLink, ...]] | None = None,
        figures: Mapping[str, dict[str, InstanceFigures]] | None = None,
    ) -> None:
        """The node's stream counts as broken once it was silent for `silence` seconds.

        It begins in its turn among `beginnings`. `hosts` tells which links show something of an app; the link
        keeps its own part of it. In `figures` it puts those of the apps that are there, by instance.
        """
        self.node = node
        self.name = node.name
        self.client = connect(node.address)
        self.synced = False
        """The view is complete and the stream is open."""
        self.session = 0
        """Number of the stream: what was learnt in one may not hold in another."""
        self.given_up = False
        """The node was not heard for `timeout` seconds; false again once it is."""
        self._listener = listener
        self._renewals = LeaseRenewals(node, self.client, leases)
        self._term = leases.term
        self._timeout = timeout
        self._silence = silence
        self._hosts = hosts if hosts is not None else {}
        self._alone = (self,)
        """What `hosts` has of nearly all apps that are here, once for all of them."""
        self._figures = figures if figures is not None else {}
        self._apps: dict[str, dict[str, Instance]] = {}
        self._incoming: dict[str, dict[str, Instance]] | None = None
        self.status: RuntimeStatus | None = None
        """What the node said of itself when it was last heard."""
        self.memory_bytes = 0
        """What the node said that it uses, with its last heartbeat; 0 if it does not say."""
        self.why = "It has not answered yet."
        """Why it is not heard, one sentence."""
        self._refused: dict[str, Instance] = {}
        self._hindered: dict[str, tuple[str, str]] = {}
        self._passing: set[str] = set()
        """Instances in a state that passes."""
        self._in_flight: dict[str, dict[str, int]] = {}
        """Requests of instances that have some, by app."""
        self._deadline: asyncio.TimerHandle | None = None
        self._beginnings = beginnings or Beginnings()
        self._begun: Callable[[], None] = _nothing
        self._heard_at = math.inf
        """When it was heard last, or when it was to be for the first time."""
        self._task = background(self._follow(), f"link {node.name}")

    @property
    def is_missing(self) -> bool:
        """Whether the node is not heard now, nor was within its time limit."""
        if self.synced:
            return False
        return self.given_up or asyncio.get_running_loop().time() >= self._heard_at + self._timeout

    @property
    def forwards(self) -> bool:
        """Whether the node forwards requests for what has moved away from it."""
        return self.status is not None and self.status.HasField("forwarding")

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

    def in_flight(self, app: str) -> int:
        """Return how many requests of an app are in flight or queued here, as last told."""
        return sum(self._in_flight.get(app, {}).values())

    @property
    def passing_seconds(self) -> float:
        """After how long a state that passes is news here, in seconds."""
        # Those that start together wait for each other: told of each on its way, a lost node's apps would be
        # stored twice as often, and be up later for it.
        together = max(1, len(self._passing) // PASSING_TOGETHER)
        return min(PASSING_SECONDS * together, LONGEST_PASSING_SECONDS)

    def _note_passing(self, instance: Instance, *, gone: bool = False) -> None:
        if instance.state in PASSING and not gone:
            self._passing.add(instance.name)
        else:
            self._passing.discard(instance.name)

    def _note_figures(self, figures: Mapping[str, InstanceFigures]) -> None:
        for name, told in figures.items():
            self._note_in_flight(name, told.in_flight_count + told.queued_count)
            if self._figures and (kept := self._figures.get(name.partition("/instances/")[0])) is not None:
                kept[name] = told

    def _forget_figures(self, instance: Instance, *, gone: bool) -> None:
        if gone or instance.state != Instance.RUNNING:
            self._note_in_flight(instance.name, 0)

    def _note_in_flight(self, name: str, count: int) -> None:
        app = name.partition("/instances/")[0]
        if count:
            self._in_flight.setdefault(app, {})[name] = count
        elif app in self._in_flight:
            self._in_flight[app].pop(name, None)
            if not self._in_flight[app]:
                del self._in_flight[app]

    def accepted(self, app: str, instance: Instance) -> None:
        """Note what the node answered, unless its stream was quicker."""
        self._refused.pop(app, None)
        self._hindered.pop(app, None)
        instance.ClearField("figures")
        self._note_passing(self._apps.setdefault(app, {}).setdefault(instance.name, instance))
        self._index(app)

    def refuse(self, app: str, instance: Instance) -> None:
        """Note a start that the node refused, as a failed instance that isn't there."""
        self._refused[app] = instance
        self._index(app)
        self._listener.changed((app,))

    def hindrance(self, app: str) -> tuple[str, str] | None:
        """Return why the app's last command was not carried out: a reason and a sentence."""
        return self._hindered.get(app)

    def hinder(self, app: str, reason: str, message: str) -> None:
        """Note why a command was not carried out, for now."""
        # Not its words: they may differ each time, and each piece of news is a pass.
        news = self._hindered.get(app, ("", ""))[0] != reason
        self._hindered[app] = (reason, message)
        if news:
            self._listener.changed((app,))

    def forget(self, app: str, name: str) -> None:
        """Note that an instance which was to be stopped is not there, refused or not."""
        self._hindered.pop(app, None)
        known = self._apps.get(app, {})
        gone = known.pop(name, None) is not None
        self._passing.discard(name)
        if not known:
            self._apps.pop(app, None)
        if app in self._refused and self._refused[app].name == name:
            del self._refused[app]
            gone = True
        self._index(app)
        if gone:
            self._listener.changed((app,))

    async def start(self, request: StartInstanceRequest) -> Instance:
        """Have this life of the node start an instance, under the leader's term."""
        request.term, request.incarnation = self._term, self.node.incarnation
        return await self.client.start(request)

    async def stop(self, request: StopInstanceRequest) -> Instance | None:
        """Have the node stop an instance, under the leader's term; None when it isn't there."""
        request.term = self._term
        return await self.client.stop(request)

    async def claim(self, request: ClaimDataDirectoryRequest) -> DataDirectory:
        """Have the node hand data over to another app, under the leader's term."""
        request.term = self._term
        return await self.client.claim(request)

    async def offer(self, request: transfers.OfferDataRequest) -> transfers.OfferDataResponse:
        """Have the node offer an app's data, under the leader's term."""
        request.term = self._term
        return await self.client.offer(request)

    async def freeze(
        self, request: transfers.FreezeDataRequest, stop_seconds: float
    ) -> transfers.FreezeDataResponse:
        """Have the node stop an app whose data is offered, under the leader's term."""
        request.term = self._term
        return await self.client.freeze(request, stop_seconds)

    async def receive(
        self, request: transfers.ReceiveDataRequest, *, rest: bool = False
    ) -> transfers.ReceiveDataResponse:
        """Have the node receive an app's data, or tell how far it is, under the leader's term."""
        request.term = self._term
        return await self.client.receive(request, rest=rest)

    async def release(self, request: transfers.ReleaseDataRequest) -> transfers.ReleaseDataResponse:
        """Have the node end an offer, under the leader's term."""
        request.term = self._term
        return await self.client.release(request)

    def _index(self, app: str) -> None:
        """Have `hosts` tell of the app what the view shows now."""
        links = self._hosts.get(app, ())
        shows = app in self._apps or app in self._refused
        if shows == (self in links):
            return
        others = tuple(link for link in links if link is not self)
        if shows:
            self._hosts[app] = (*others, self) if others else self._alone
        elif others:
            self._hosts[app] = others
        else:
            del self._hosts[app]

    def end(self) -> None:
        """Show nothing any more, from now on; `close` waits for the rest."""
        self._task.cancel()
        self._begun()
        self.synced = False
        self._apps, self._refused, known = {}, {}, {*self._apps, *self._refused}
        for app in known:
            self._index(app)

    async def close(self) -> None:
        """End the stream and the channel."""
        self.end()
        self._renewals.close()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._deadline is not None:
            self._deadline.cancel()
        await self.client.close()

    async def _follow(self) -> None:
        """Keep a stream open for ever; the pauses between tries grow until one has lasted."""
        self._begun = await self._beginnings.turn()
        self._heard_at = asyncio.get_running_loop().time()
        while True:
            retrying = AsyncRetrying(
                retry=retry_if_exception_type(SupervisorError),
                wait=wait_random_exponential(multiplier=0.1, max=2),
            )
            try:
                await retrying(self._connect_once)
            except Exception:
                log.exception(
                    "link failed: %s",
                    self.node.name,
                    extra={"action": "node.link_failed", "node": self.node.name},
                )
                self._broken("The control plane failed to follow it.")
                await asyncio.sleep(1)

    async def _connect_once(self) -> None:
        """Hear the node until its stream breaks; raises SupervisorError if it was not heard for long."""
        if self._deadline is None:
            self._expect()
        began = asyncio.get_running_loop().time()
        try:
            status = await self.client.status()
            self._check(status.incarnation)
            self._incoming = {}
            self.session += 1
            async for message in self.client.watch(silence=self._silence, term=self._term):
                self._check(message.incarnation)
                self._heard_at = asyncio.get_running_loop().time()
                if message.type == Message.HEARTBEAT:
                    self.memory_bytes = message.memory_bytes
                if message.type == Message.HEARTBEAT and self.synced:
                    self._renewals.answer(message)
                    self._note_figures(message.figures)
                if message.type in (Message.UPSERT, Message.REMOVE):
                    self._note_instances(message)
                elif message.type == Message.SYNCED:
                    apps = self._sync()
                    self._begun()
                    if self._deadline is not None:
                        self._deadline.cancel()
                    self.status = status
                    self._listener.heard(self, status, apps)
        except SupervisorError as broken:
            self._broken(broken.message)
            if asyncio.get_running_loop().time() - began < self._timeout:
                raise

    def _check(self, incarnation: str) -> None:
        if incarnation not in ("", self.node.incarnation):
            raise SupervisorError(
                "NODE_UNREACHABLE",
                f"Another incarnation answers at {self.node.address}.",
                metadata={"address": self.node.address},
            )

    def _broken(self, why: str) -> None:
        """Note that the stream is not open, and give the node until its time limit."""
        self.why = why
        if not self.synced:
            return
        self.synced = False
        self._expect()
        log.warning("node lost: %s: %s", self.node.name, why,
                    extra={"action": "node.stream_broken", "node": self.node.name})  # fmt: skip

    def _expect(self) -> None:
        """Give the node up unless it is heard again in time, counted from when it last was."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = asyncio.get_running_loop().call_at(self._heard_at + self._timeout, self._give_up)

    def _sync(self) -> set[str]:
        """Take the snapshot that has come for the view; return the apps that are in one of the two."""
        self._in_flight.clear()  # the next heartbeat tells all
        self._passing.clear()
        apps = set(self._apps)
        self._apps, self._incoming = self._incoming or {}, None
        apps |= self._apps.keys()
        self._hindered.clear()
        self.synced, self.given_up = True, False
        for app in apps:
            self._index(app)
            for instance in self._apps.get(app, {}).values():
                self._note_passing(instance)
        return apps

    def _note_instances(self, message: Message) -> None:
        view = self._apps if self._incoming is None else self._incoming
        news: dict[str, bool] = {}
        for instance in message.instances or (message.instance,):
            app = instance.name.partition("/instances/")[0]
            self._forget_figures(instance, gone=message.type == Message.REMOVE)
            self._note_passing(instance, gone=message.type == Message.REMOVE)
            if message.type == Message.UPSERT:
                instance.ClearField("figures")
                known = view.setdefault(app, {})
                same = known.get(instance.name) == instance
                known[instance.name] = instance
            else:
                same = view.get(app, {}).pop(instance.name, None) is None
                if not view.get(app, True):
                    del view[app]
                if instance.last_error.reason == "APP_LEAKED":
                    self._listener.left_behind(app, instance)
            if not same:
                passing = message.type == Message.UPSERT and instance.state in PASSING
                news[app] = news.get(app, True) and passing
        if self._incoming is None and news:
            for app in news:
                self._index(app)
            self._tell(news)

    def _tell(self, news: Mapping[str, bool]) -> None:
        """Tell which apps have changed: in a moment of those that only pass from state to state."""
        if told := [app for app, passing in news.items() if not passing]:
            self._listener.changed(told)
        if later := [app for app, passing in news.items() if passing]:
            asyncio.get_running_loop().call_later(self.passing_seconds, self._tell_passing, later)

    def _tell_passing(self, apps: Iterable[str]) -> None:
        shown = ((app, self._apps.get(app, {}).values()) for app in apps)
        if still := [app for app, instances in shown if any(it.state in PASSING for it in instances)]:
            self._listener.changed(still)

    def _give_up(self) -> None:
        if self.synced or self.given_up:
            return
        now, due = asyncio.get_running_loop().time(), self._heard_at + self._timeout
        if now > due + STALL:
            self._heard_at = now - self._timeout + STALL  # this loop stood still: what has come is read first
        if now < self._heard_at + self._timeout - CLOCK_SLACK:
            self._expect()  # it is being heard: its snapshot is long
            return
        self.given_up = True
        self._listener.lost(self, self.why)


def _nothing() -> None:
    """End no turn: it has none yet."""

"""Nodes and the lines to them, in virtual time: calls and answers that get lost, a stream that is late."""

from __future__ import annotations

import asyncio
import inspect
import random
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from typing import Any

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.fleet.v1.fleet_pb2 import Node, RegisterNodeRequest
from appsupervisor.runtime.v1 import data_transfers_pb2 as transfers
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.control_plane.catalog.commands import AppCommands
from services.control_plane.catalog.retained_data import RetainedDataService
from services.control_plane.controller.controller import Controller
from services.control_plane.fleet.fleet import FleetService
from services.control_plane.nodes.client import CALL_SECONDS, NodeClient
from services.rpc.errors import SupervisorError
from services.rpc.pipeline.call import Caller
from tests.fakes.runtime_node import Behaviour, Disk, FakeNode
from tests.virtual_time import REAL_SECONDS

NODE = "environments/default/nodes/fake-1"
ME = Caller("test", 1e6)
BAD, SLOW = "bad:app", "slow:app"
COMMIT_SECONDS = (0.0, 0.0, 0.0, 0.001, 0.01, 0.05)
"""How long a commit may take."""
BEHAVIOURS = {
    BAD: Behaviour(ready_after=0.05, fails=("APP_FACTORY_FAILED", "it is bad")),
    SLOW: Behaviour(ready_after=2.0, stop_after=1.0),
}


class VirtualStore:
    """A store whose commits take virtual time, and are of as many commands each, as chance will have it.

    Its writer's thread works only while the loop waits for it: the same draws give the same course.
    """

    def __init__(self, store: Any, chance: random.Random) -> None:
        self._store = store
        self._chance = chance
        self._queue: deque[tuple[Any, dict[str, Any], Future[Any]]] = deque()

    def write(self, command: Any, **under: Any) -> Future[Any]:
        told: Future[Any] = Future()
        self._queue.append((command, under, told))
        if len(self._queue) == 1:
            self._commit_later()
        return told

    def _commit_later(self) -> None:
        asyncio.get_running_loop().call_later(self._chance.choice(COMMIT_SECONDS), self._commit)

    def _commit(self) -> None:
        count = self._chance.choice((1, len(self._queue)))
        jobs = [self._queue.popleft() for _ in range(count)]
        if self._queue:
            self._commit_later()
        with self._held() if count > 1 else nullcontext():  # so they share a batch
            written = [(told, self._store.write(command, **under)) for command, under, told in jobs]
        for told, future in written:
            failure = future.exception(REAL_SECONDS)
            if not told.set_running_or_notify_cancel():
                continue
            if failure is not None:
                told.set_exception(failure)
            else:
                told.set_result(future.result())

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Keep the writer from taking what is written meanwhile."""
        busy, go = threading.Event(), threading.Event()

        def hold(_: Any) -> None:
            busy.set()
            go.wait(REAL_SECONDS)

        self._store.write(hold)
        busy.wait(REAL_SECONDS)
        yield
        go.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class Untold:
    """Nodes that tell nothing of their instances beside what they stream."""

    async def with_figures(self, apps: Sequence[pb.App], seconds: float) -> list[pb.App]:
        return list(apps)


class World:
    """A control plane, a node that lives again and again on one disk, and a bad line between them."""

    def __init__(
        self,
        store: Any,
        chance: random.Random,
        node: str = NODE,
        disk: Disk | None = None,
        behaviours: dict[str, Behaviour] | None = None,
    ) -> None:
        self.store = VirtualStore(store, random.Random(chance.getrandbits(32)))
        self.chance = chance
        self.name = node
        self.disk = disk or Disk(uid="6b4d1a52-0b5e-4e1e-8f43-2f5d9b1c7a10")
        self.lost_requests = self.lost_answers = 0.0
        """Share of the calls whose request, or answer, gets lost."""
        self.delay = 0.0
        """Seconds by which a message of the stream may be late."""
        self.places: dict[str, World] = {}
        """By address: what the same control plane sees of this node and of others that have joined."""
        self.port = 7401
        self.behaviours = {**BEHAVIOURS, **(behaviours or {})}
        self.cut = False
        """Nothing passes."""
        self.withheld = False
        """The stream tells that the node lives, and nothing of its instances yet."""
        self.calls = 0
        self.started: list[rt.InstanceSpec] = []
        self.commands = AppCommands(self.store, Untold())  # type: ignore[arg-type]
        self.retained = RetainedDataService(self.store)  # type: ignore[arg-type]
        self.controller = self._controller()
        self.fleet = FleetService(self.store, lambda name: False)  # type: ignore[arg-type]
        self.node = self._life()

    def _controller(self) -> Controller:
        return Controller(
            self.store,  # type: ignore[arg-type]
            connect=lambda address: Line(self.places.get(address, self), address),
            lease_clock=lambda: asyncio.get_running_loop().time(),
        )

    def _life(self) -> FakeNode:
        self.node = FakeNode(self.name, behaviours=dict(self.behaviours), disk=self.disk)
        self.node.address = f"127.0.0.1:{self.port}"
        self.ended = asyncio.Event()
        return self.node

    async def start(self) -> None:
        """Register the node, and begin to reconcile."""
        await self.register()
        await self.controller.start()

    async def join(self, other: World) -> None:
        """Have the node of another world join this one's control plane."""
        other.port = self.port + len(self.places) + 1
        other.node.address = f"127.0.0.1:{other.port}"
        self.places[other.node.address] = other
        await other.register()

    def sites(self) -> list[World]:
        """Return this world and those that have joined it."""
        return [self, *self.places.values()]

    async def register(self) -> None:
        """Have the node's present life tell who it is."""
        environment, _, node = self.name.partition("/nodes/")
        request = RegisterNodeRequest(parent=environment, node_id=node)
        request.node.CopyFrom(
            Node(
                address=self.node.address,
                http_address="127.0.0.1:80",
                incarnation=self.node.incarnation,
                uid=self.disk.uid,
            )
        )
        await self.fleet.register_node(request, ME)

    async def restart_node(self) -> None:
        """End the node as a killed process does, and begin another life of it."""
        await self.node.kill()
        self.ended.set()
        self._life()
        await self.register()

    async def restart_controller(self) -> None:
        """Let another term begin."""
        await self.controller.close()
        await self.controller.start()

    def app(self, name: str) -> pb.App | None:
        """Return an app as the API shows it."""
        record = self.store.mirror.apps.get(name)
        return record.public if record is not None else None

    async def until(self, test: Any, seconds: float = 600.0) -> None:
        """Let virtual time pass until something holds."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + seconds
        while not test():
            assert clock() < deadline, "never came about"
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        await self.controller.close()
        for site in self.sites():
            await site.node.kill()


class Line(NodeClient):
    """A client whose calls go to the node's present life without a network, or get lost."""

    def __init__(self, world: World, address: str) -> None:
        self._world = world
        self._address = address
        self._closed = asyncio.Event()

    async def status(self) -> rt.RuntimeStatus:
        return await self._call(lambda node: node.status())

    async def start(self, request: rt.StartInstanceRequest) -> rt.Instance:
        self._world.calls += 1
        self._world.started.append(request.spec)
        found = await self._call(
            lambda node: node.start_instance(
                request.spec, start_now=request.start_now, term=request.term, incarnation=request.incarnation
            )
        )
        return _copy(found)

    async def stop(self, request: rt.StopInstanceRequest) -> rt.Instance | None:
        self._world.calls += 1
        found = await self._call(lambda node: node.stop_instance(request))
        return _copy(found) if found is not None else None

    async def renew(self, request: rt.RenewLeaseRequest, *, answered: bool = True) -> rt.Lease:
        return await self._call(lambda node: node.renew_lease(request))

    async def directories(self, parent: str) -> AsyncIterator[rt.DataDirectory]:
        # A question changes nothing there: it is not counted, a new leader asks it.
        request = rt.ListDataDirectoriesRequest(parent=parent, page_size=1000)
        page = await self._call(lambda node: node.list_data_directories(request))
        for directory in page.data_directories:
            yield directory

    async def claim(self, request: rt.ClaimDataDirectoryRequest) -> rt.DataDirectory:
        self._world.calls += 1
        return await self._call(lambda node: node.claim_data_directory(request))

    async def offer(self, request: transfers.OfferDataRequest) -> transfers.OfferDataResponse:
        self._world.calls += 1
        return await self._call(lambda node: node.transfers.offer(request))

    async def freeze(
        self, request: transfers.FreezeDataRequest, stop_seconds: float
    ) -> transfers.FreezeDataResponse:
        self._world.calls += 1
        return await self._call(lambda node: node.transfers.freeze(request))

    async def receive(
        self, request: transfers.ReceiveDataRequest, *, rest: bool = False
    ) -> transfers.ReceiveDataResponse:
        self._world.calls += 1
        return await self._call(lambda node: node.transfers.receive(request))

    async def release(self, request: transfers.ReleaseDataRequest) -> transfers.ReleaseDataResponse:
        self._world.calls += 1
        return await self._call(lambda node: node.transfers.release(request))

    async def watch(self, silence: float, term: int = 0) -> AsyncIterator[rt.WatchInstancesResponse]:
        ended = asyncio.ensure_future(self._world.ended.wait())
        request = rt.WatchInstancesRequest(term=term)
        request.heartbeat_interval.FromMilliseconds(int(silence * 1000 / 3))
        try:
            async for message in self._heard(self._world.node.feed.watch(request), silence, ended):
                yield message
        finally:
            ended.cancel()

    async def _heard(
        self, messages: AsyncIterator[rt.WatchInstancesResponse], silence: float, ended: asyncio.Future[Any]
    ) -> AsyncIterator[rt.WatchInstancesResponse]:
        world = self._world
        late: list[rt.WatchInstancesResponse] = []
        while True:
            step = asyncio.ensure_future(anext(messages))
            try:
                async with asyncio.timeout(silence):
                    await asyncio.wait({step, ended}, return_when=asyncio.FIRST_COMPLETED)
                if ended.done():
                    raise self._broken("it ended")
                if world.delay:
                    await asyncio.sleep(world.chance.uniform(0, world.delay))
                if world.cut:
                    raise self._broken("it is cut")
            except TimeoutError:
                raise self._broken("it was silent") from None
            finally:
                step.cancel()
            message = rt.WatchInstancesResponse()
            message.CopyFrom(step.result())
            late.append(message)
            if message.type != message.HEARTBEAT and message.type != message.SYNCED and world.withheld:
                continue
            if world.withheld:
                yield late.pop()
                continue
            while late:
                yield late.pop(0)

    async def close(self) -> None:
        self._closed.set()

    async def _call(self, call: Any) -> Any:
        world, chance = self._world, self._world.chance
        await asyncio.sleep(chance.uniform(0, 0.01))
        if world.cut or chance.random() < world.lost_requests:
            await asyncio.sleep(CALL_SECONDS)
            raise self._broken("it did not answer")
        node = world.node
        answer = call(node)
        if inspect.isawaitable(answer):
            answer = await answer
        if chance.random() < world.lost_answers:
            await asyncio.sleep(CALL_SECONDS)
            raise self._broken("it did not answer")
        await asyncio.sleep(chance.uniform(0, 0.01))
        if node is not world.node:
            raise self._broken("it ended")
        return answer

    def _broken(self, why: str) -> SupervisorError:
        return SupervisorError("NODE_UNREACHABLE", f"The node cannot be heard: {why}.")


def _copy(instance: rt.Instance) -> rt.Instance:
    copy = rt.Instance()
    copy.CopyFrom(instance)
    return copy

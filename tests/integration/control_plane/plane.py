"""A control plane in this process on a free port, its clients, and waits on what it tells."""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
from google.longrunning import operations_pb2
from google.longrunning.operations_pb2_grpc import OperationsStub
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.catalog.v1.app_catalog_pb2_grpc import AppCatalogStub
from appsupervisor.fleet.v1 import fleet_pb2
from appsupervisor.fleet.v1.fleet_pb2_grpc import FleetStub
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition
from services.control_plane import server
from services.control_plane.server import ControlPlane
from services.control_plane.settings import Settings
from services.control_plane.store.interface import CatalogStore
from services.control_plane.store.sql_store import open_store
from services.rpc.status import reason_of
from tests.eventually import WITHIN, eventually
from tests.fakes.runtime_node import Disk, FakeNode

NODE = "environments/default/nodes/fake-1"


class Plane:
    """A control plane that can be stopped and started again on the same catalog."""

    def __init__(
        self, directory: Path, *, node_timeout: float = 2.0, drain_timeout: float = 2.0, url: str = ""
    ) -> None:
        self.url = url or f"sqlite:///{directory}/catalog.db"
        self.node_timeout = node_timeout
        self.drain_timeout = drain_timeout
        self.port = 0
        self.nodes: list[FakeNode] = []
        self.disks: dict[str, Disk] = {}
        """By node: a new life of one finds what the one before has left."""
        self._running: ControlPlane | None = None

    @property
    def running(self) -> ControlPlane:
        assert self._running is not None
        return self._running

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        settings = Settings(
            listen="127.0.0.1:0",
            database_url=self.url,
            node_timeout=self.node_timeout,
            drain_timeout=self.drain_timeout,
        )
        self._running = ControlPlane(settings)
        with patch.object(server, "open_store", self._open):
            await self._running.start()
        self.port = self._running.port
        self.channel = grpc.aio.insecure_channel(self.address)
        self.apps: Any = AppCatalogStub(self.channel)
        self.fleet: Any = FleetStub(self.channel)
        self.operations: Any = OperationsStub(self.channel)

    def _open(self, url: str, **options: Any) -> CatalogStore:
        self.store = open_store(url, **options)
        return self.store

    async def stop(self) -> None:
        if self._running is not None:
            await self.channel.close()
            await self._running.close()
            self._running = None

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def close(self) -> None:
        await self.stop()
        await asyncio.gather(*(node.kill() for node in self.nodes))

    async def node(self, name: str = NODE, **fields: Any) -> FakeNode:
        """Start a fake node, register it, and wait until it is ready."""
        fields.setdefault("disk", self.disks.setdefault(name, Disk()))
        node = FakeNode(name, **fields)
        await node.start()
        self.nodes.append(node)
        await eventually(lambda: self._registered(node))
        await self.node_state(name, fleet_pb2.Node.READY)
        return node

    async def _registered(self, node: FakeNode) -> bool:
        """Register as nodes do: again, until the silence of the name's former bearer is noticed."""
        try:
            await node.register(self.address)
        except grpc.aio.AioRpcError as refused:
            if reason_of(refused) != "NODE_NAME_TAKEN":
                raise
            return False
        return True

    async def node_state(self, name: str, state: int) -> fleet_pb2.Node:
        async def look() -> fleet_pb2.Node:
            return await self.fleet.GetNode(fleet_pb2.GetNodeRequest(name=name))

        return await eventually(look, lambda node: node.state == state)

    async def create(self, app_id: str, *, wait: bool = True, **fields: Any) -> Any:
        """Create an app; return it once its operation is done, or else the operation."""
        app = pb.App(**{"entrypoint": "shop:create_app", **fields})
        operation = await self.apps.CreateApp(pb.CreateAppRequest(app=app, app_id=app_id))
        return await self.done(operation) if wait else operation

    async def update(self, name: str, paths: Iterable[str], **fields: Any) -> operations_pb2.Operation:
        request = pb.UpdateAppRequest(app=pb.App(name=name, **fields))
        request.update_mask.paths.extend(paths)
        return await self.apps.UpdateApp(request)

    async def wait(self, operation: operations_pb2.Operation, seconds: float = WITHIN) -> Any:
        limit = Duration()
        limit.FromMilliseconds(int(seconds * 1000))
        request = operations_pb2.WaitOperationRequest(name=operation.name, timeout=limit)
        return await self.operations.WaitOperation(request, timeout=seconds + 5)

    async def done(self, operation: operations_pb2.Operation) -> pb.App:
        """Wait for an operation that has to succeed, and return its app."""
        ended = await self.wait(operation)
        assert ended.done, ended
        assert not ended.HasField("error"), ended.error
        return response(ended)

    async def failed(self, operation: operations_pb2.Operation) -> str:
        """Wait for an operation that has to fail, and return its reason."""
        ended = await self.wait(operation)
        assert ended.HasField("error"), ended
        return reason(ended.error)

    async def get(self, name: str) -> pb.App:
        return await self.apps.GetApp(pb.GetAppRequest(name=name))

    async def app(self, name: str, test: Callable[[pb.App], bool]) -> pb.App:
        """Wait until an app is as `test` says."""
        return await eventually(lambda: self.get(name), test)

    async def events(self, name: str) -> list[pb.AppEvent]:
        request = pb.ListAppEventsRequest(parent=name, page_size=1000)
        return list((await self.apps.ListAppEvents(request)).app_events)


def condition(app: pb.App, kind: str) -> Condition:
    return next((c for c in app.conditions if c.type == kind), Condition())


def response(operation: operations_pb2.Operation) -> pb.App:
    app = pb.App()
    assert operation.response.Unpack(app), operation
    return app


def metadata(operation: operations_pb2.Operation) -> pb.OperationMetadata:
    found = pb.OperationMetadata()
    assert operation.metadata.Unpack(found), operation
    return found


def reason(status: Any) -> str:
    info = ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info):
            return info.reason
    return ""

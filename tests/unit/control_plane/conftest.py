"""The control plane's servicers over a real store, called without a network."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2
from google.longrunning.operations_pb2_grpc import add_OperationsServicer_to_server
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, PreconditionFailure, ResourceInfo, RetryInfo
from google.rpc.status_pb2 import Status

from appsupervisor.catalog.v1 import app_catalog_pb2, certificates_pb2, retained_data_pb2
from appsupervisor.catalog.v1.app_catalog_pb2_grpc import add_AppCatalogServicer_to_server
from appsupervisor.catalog.v1.certificates_pb2_grpc import add_CertificatesServicer_to_server
from appsupervisor.catalog.v1.retained_data_pb2_grpc import add_DataCatalogServicer_to_server
from appsupervisor.fleet.v1 import fleet_pb2
from appsupervisor.fleet.v1.fleet_pb2_grpc import add_FleetServicer_to_server
from services.control_plane.catalog.batches import BatchCommands
from services.control_plane.catalog.commands import AppCommands
from services.control_plane.catalog.queries import AppQueries
from services.control_plane.catalog.retained_data import RetainedDataService
from services.control_plane.catalog.timelines import AppTimelines
from services.control_plane.certificates.certificates import CertificateService
from services.control_plane.fleet.database_servers import DatabaseServers
from services.control_plane.fleet.environment_commands import EnvironmentCommands
from services.control_plane.fleet.fleet import FleetService
from services.control_plane.fleet.node_commands import NodeCommands
from services.control_plane.nodes.client import NodeClient
from services.control_plane.nodes.figures import FigureReader
from services.control_plane.nodes.pool import NodePool
from services.control_plane.nodes.tails import AppTails
from services.control_plane.operations.service import OperationService
from services.control_plane.servicers.app_catalog import CatalogServicer
from services.control_plane.servicers.certificates import CertificatesServicer
from services.control_plane.servicers.data_catalog import DataCatalogServicer
from services.control_plane.servicers.fleet import FleetServicer
from services.control_plane.servicers.operations import OperationsServicer
from services.control_plane.store.interface import CatalogStore
from services.control_plane.store.sql_store import open_store
from services.rpc.pipeline.methods import Methods
from services.rpc.pipeline.pipeline import Pipeline
from services.rpc.status import DETAILS_KEY
from tests.fakes.runtime_node import FakeNode

SERVICES = {
    name: descriptor
    for module in (app_catalog_pb2, certificates_pb2, retained_data_pb2, fleet_pb2, operations_pb2)
    for name, descriptor in module.DESCRIPTOR.services_by_name.items()
}


GATEWAY_TOKEN = "t" * 32


class Refusal(Exception):  # noqa: N818 - not a fault: what a test expects
    """A call that was answered with an error, with its details by type."""

    def __init__(self, code: grpc.StatusCode, message: str, status: Status) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.status = status
        self.info = ErrorInfo()
        self.bad_request = BadRequest()
        self.precondition = PreconditionFailure()
        self.resource = ResourceInfo()
        self.retry = RetryInfo()
        for detail in status.details:
            for kind in (self.info, self.bad_request, self.precondition, self.resource, self.retry):
                if detail.Is(kind.DESCRIPTOR):
                    detail.Unpack(kind)

    @property
    def fields(self) -> set[str]:
        return {violation.field for violation in self.bad_request.field_violations}


class Context:
    """What a servicer sees of a call that comes over no network."""

    def __init__(self, metadata: tuple[tuple[str, str], ...]) -> None:
        self._metadata = metadata
        self.trailers: dict[str, bytes] = {}
        self.refused: tuple[grpc.StatusCode, str] | None = None

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def peer(self) -> str:
        return "ipv4:192.0.2.1:5"

    def time_remaining(self) -> float:
        return 20.0

    async def abort(self, code: grpc.StatusCode, message: str, trailers: Any) -> None:
        self.refused = code, message
        self.trailers = dict(trailers)
        raise grpc.aio.AbortError


class Server:
    """Calls a unary method by its short name; raises Refusal."""

    def __init__(self, store: CatalogStore, heard: set[str], loop: asyncio.AbstractEventLoop) -> None:
        self.store = store
        self.heard = heard
        self.loop = loop
        self.methods = Methods(Pipeline())
        figures = FigureReader(NodePool(store.mirror))
        add_AppCatalogServicer_to_server(
            CatalogServicer(
                AppCommands(store, figures),
                BatchCommands(store, AppCommands(store, figures)),
                AppQueries(store, figures),
                AppTimelines(store),
                AppTails(store.mirror, NodePool(store.mirror)),
            ),
            self.methods,
        )
        add_DataCatalogServicer_to_server(DataCatalogServicer(RetainedDataService(store)), self.methods)
        certificates = CertificatesServicer(store, CertificateService(store), GATEWAY_TOKEN)
        add_CertificatesServicer_to_server(certificates, self.methods)
        is_heard = heard.__contains__
        fleet = FleetServicer(
            store,
            FleetService(store, is_heard),
            EnvironmentCommands(store),
            NodeCommands(store, is_heard),
            DatabaseServers(store),
        )
        add_FleetServicer_to_server(fleet, self.methods)
        add_OperationsServicer_to_server(OperationsServicer(OperationService(store)), self.methods)

    def __call__(self, method: str, request: Message, **metadata: str) -> Any:
        (found,) = (
            found for service in SERVICES.values() for found in service.methods if found.name == method
        )
        handler: Any = self.methods.service(Details(f"/{found.containing_service.full_name}/{method}"))
        context = Context(tuple((key.replace("_", "-"), value) for key, value in metadata.items()))
        try:
            data = self.loop.run_until_complete(handler.unary_unary(request.SerializeToString(), context))
        except grpc.aio.AbortError:
            assert context.refused is not None
            raise Refusal(*context.refused, Status.FromString(context.trailers[DETAILS_KEY])) from None
        return GetMessageClass(found.output_type).FromString(data)


class Details:
    """What gRPC tells of a call before its method is known."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.invocation_metadata = ()


@pytest.fixture
def heard() -> set[str]:
    """Names of the nodes whose streams are open."""
    return set()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CatalogStore]:
    store = open_store(f"sqlite:///{tmp_path}/catalog.db")
    yield store
    store.close()


@pytest.fixture
def server(store: CatalogStore, heard: set[str]) -> Iterator[Server]:
    with asyncio.Runner() as runner:
        yield Server(store, heard, runner.get_loop())


Refused = Callable[..., Refusal]


@pytest.fixture
def refused(server: Server) -> Refused:
    """Return a function that makes a call which has to be refused."""

    def call(method: str, request: Message, **metadata: str) -> Refusal:
        with pytest.raises(Refusal) as refusal:
            server(method, request, **metadata)
        return refusal.value

    return call


@pytest.fixture
async def node() -> AsyncIterator[FakeNode]:
    """Give a node of its own, which plays its apps."""
    node = FakeNode()
    await node.start()
    yield node
    await node.kill()


@pytest.fixture
async def client(node: FakeNode) -> AsyncIterator[NodeClient]:
    """Give a client of `node`."""
    client = NodeClient(node.address)
    yield client
    await client.close()

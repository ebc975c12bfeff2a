"""The control plane's servicers over a real store, called without a network."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc_testing
import pytest
from google.longrunning import operations_pb2
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, PreconditionFailure, ResourceInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_testing._server import _servicer_context

from appsupervisor.catalog.v1 import app_catalog_pb2
from appsupervisor.fleet.v1 import fleet_pb2
from services.control_plane.catalog.commands import AppCommands
from services.control_plane.catalog.queries import AppQueries
from services.control_plane.fleet.fleet import FleetService
from services.control_plane.nodes.tails import AppTails
from services.control_plane.operations.service import OperationService
from services.control_plane.servicers.app_catalog import CatalogServicer
from services.control_plane.servicers.fleet import FleetServicer
from services.control_plane.servicers.operations import OperationsServicer
from services.control_plane.store.interface import CatalogStore
from services.control_plane.store.sql_store import open_store
from services.rpc.guard import Guarded
from services.rpc.status import DETAILS_KEY

SERVICES = {
    name: descriptor
    for module in (app_catalog_pb2, fleet_pb2, operations_pb2)
    for name, descriptor in module.DESCRIPTOR.services_by_name.items()
}


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


class Server:
    """Calls a unary method by its short name; raises Refusal."""

    def __init__(self, store: CatalogStore, heard: set[str]) -> None:
        self.store = store
        self.heard = heard
        self.trailers: list[Any] = []
        servicers = {
            "AppCatalog": CatalogServicer(
                AppCommands(store), AppQueries(store), AppTails(store.mirror, lambda node: None)
            ),
            "Fleet": FleetServicer(FleetService(store, heard.__contains__)),
            "Operations": OperationsServicer(OperationService(store)),
        }
        self._server = grpc_testing.server_from_dictionary(
            {SERVICES[name]: Guarded(servicer) for name, servicer in servicers.items()},
            grpc_testing.strict_real_time(),
        )

    def __call__(self, method: str, request: Message, **metadata: str) -> Any:
        (descriptor,) = (
            found for service in SERVICES.values() for found in service.methods if found.name == method
        )
        pairs = tuple((key.replace("_", "-"), value) for key, value in metadata.items())
        call = self._server.invoke_unary_unary(descriptor, pairs, request, 20)
        response, _, code, message = call.termination()
        if code is grpc.StatusCode.OK:
            return response
        raise Refusal(code, message, Status.FromString(dict(self.trailers.pop())[DETAILS_KEY]))


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
def server(store: CatalogStore, heard: set[str], monkeypatch: pytest.MonkeyPatch) -> Server:
    # The testing context knows no peer.
    monkeypatch.setattr(_servicer_context.ServicerContext, "peer", lambda self: "ipv4:192.0.2.1:5")
    server = Server(store, heard)
    # It also drops the trailers of a call that is aborted, which a real one sends.
    monkeypatch.setattr(
        _servicer_context.ServicerContext,
        "set_trailing_metadata",
        lambda self, trailers: server.trailers.append(trailers),
    )
    return server


Refused = Callable[..., Refusal]


@pytest.fixture
def refused(server: Server) -> Refused:
    """Return a function that makes a call which has to be refused."""

    def call(method: str, request: Message, **metadata: str) -> Refusal:
        with pytest.raises(Refusal) as refusal:
            server(method, request, **metadata)
        return refusal.value

    return call

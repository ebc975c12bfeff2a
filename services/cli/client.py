"""Calls a control plane: deadlines, pages, operations that are waited for. Errors leave as CliError."""

from __future__ import annotations

import getpass
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc
from google.longrunning import operations_pb2 as lro
from google.longrunning.operations_pb2_grpc import OperationsStub

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.catalog.v1 import retained_data_pb2 as retained
from appsupervisor.catalog.v1.app_catalog_pb2_grpc import AppCatalogStub
from appsupervisor.catalog.v1.certificates_pb2_grpc import CertificatesStub
from appsupervisor.catalog.v1.retained_data_pb2_grpc import DataCatalogStub
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from appsupervisor.fleet.v1.fleet_pb2_grpc import FleetStub
from services.cli.contexts import Context
from services.cli.errors import CliError, Exit, from_rpc, from_status
from services.cli.targets import target_of

T = TypeVar("T")


class Page(Protocol):
    """What every list method answers (AIP-158), beside its elements."""

    next_page_token: str


P = TypeVar("P", bound=Page)

CALL_SECONDS = 30.0
"""Deadline of a call that answers at once."""
LOOK_SECONDS = 0.5
"""How often an operation that is waited for tells how far it is."""
PAGE = 1000

OPTIONS = (("grpc.max_receive_message_length", 64 * 1024 * 1024), ("grpc.enable_retries", 1))


class Client:
    """One control plane, from the first call to `close`."""

    def __init__(self, context: Context) -> None:
        self.address = context.address
        target = target_of(context.address)
        if context.ca:
            roots = grpc.ssl_channel_credentials(Path(context.ca).read_bytes())
            self._channel = grpc.secure_channel(target, roots, options=OPTIONS)
        else:
            self._channel = grpc.insecure_channel(target, options=OPTIONS)
        self.catalog = AppCatalogStub(self._channel)
        self.certificates = CertificatesStub(self._channel)
        self.data = DataCatalogStub(self._channel)
        self.fleet = FleetStub(self._channel)
        self._operations = OperationsStub(self._channel)
        self._metadata = (("x-actor", _actor()),)

    def close(self) -> None:
        """End the connection; streams end with it."""
        self._channel.close()

    def call(self, method: Callable[..., T], request: object, *, timeout: float = CALL_SECONDS) -> T:
        """Make one call. Raises CliError."""
        try:
            return method(request, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as failure:
            raise from_rpc(failure, self.address) from None

    def pages(self, method: Callable[..., P], request: Any) -> Iterator[P]:
        """Yield the pages of a list, one call each. Raises CliError."""
        while True:
            page = self.call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def stream(self, method: Callable[..., Any], request: object) -> Iterator[Any]:
        """Yield a stream's messages for as long as it lasts. Raises CliError."""
        try:
            yield from method(request, metadata=self._metadata)
        except grpc.RpcError as failure:
            raise from_rpc(failure, self.address) from None

    def app(self, name: str, *, full: bool = False) -> catalog.App:
        """Return an app by its id or resource name; `full` with figures. Raises CliError."""
        return self.call(self.catalog.GetApp, catalog.GetAppRequest(name=app_name(name), view=_view(full)))

    def apps(self, filter_text: str = "", order_by: str = "", *, full: bool = False) -> Iterator[catalog.App]:
        """Yield all apps that match, page by page; `full` with figures."""
        request = catalog.ListAppsRequest(
            page_size=PAGE, filter=filter_text, order_by=order_by, view=_view(full)
        )
        for page in self.pages(self.catalog.ListApps, request):
            yield from page.apps

    def retained_data(self, filter_text: str = "") -> Iterator[retained.RetainedData]:
        """Yield all that deleted apps have left and that matches."""
        request = retained.ListRetainedDataRequest(
            parent="environments/-/nodes/-", page_size=PAGE, filter=filter_text
        )
        while True:
            page = self.call(self.data.ListRetainedData, request)
            yield from page.retained_data
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def nodes(self, environment: str = "-") -> Iterator[fleet.Node]:
        """Yield the nodes of an environment, `-` for all."""
        request = fleet.ListNodesRequest(parent=f"environments/{environment}", page_size=PAGE)
        for page in self.pages(self.fleet.ListNodes, request):
            yield from page.nodes

    def environments(self) -> Iterator[fleet.Environment]:
        """Yield all environments."""
        request = fleet.ListEnvironmentsRequest(page_size=PAGE)
        for page in self.pages(self.fleet.ListEnvironments, request):
            yield from page.environments

    def events(self, app: str, limit: int) -> list[catalog.AppEvent]:
        """Return an app's newest events, newest first."""
        request = catalog.ListAppEventsRequest(parent=app_name(app), page_size=limit)
        return list(self.call(self.catalog.ListAppEvents, request).app_events)

    def operations(self) -> Iterator[lro.Operation]:
        """Yield the operations that are kept, oldest first."""
        request = lro.ListOperationsRequest(name="operations", page_size=PAGE)
        for page in self.pages(self._operations.ListOperations, request):
            yield from page.operations

    def operation(self, name: str) -> lro.Operation:
        """Return an operation by its id or resource name."""
        return self.call(self._operations.GetOperation, lro.GetOperationRequest(name=operation_name(name)))

    def cancel(self, name: str) -> None:
        """Ask for an operation to be given up."""
        self.call(self._operations.CancelOperation, lro.CancelOperationRequest(name=operation_name(name)))

    def wait(
        self,
        operation: lro.Operation,
        timeout: float,
        told: Callable[[lro.Operation], None] = lambda _: None,
    ) -> lro.Operation:
        """Wait until an operation is done, at most `timeout` seconds; `told` hears how far it is.

        Raises CliError TIMED_OUT when the time is up: the operation goes on.
        """
        deadline = time.monotonic() + timeout
        while not operation.done:
            left = deadline - time.monotonic()
            if left <= 0:
                raise CliError(
                    f"{operation.name} is not done after {timeout:g} s; it goes on.",
                    Exit.TIMED_OUT,
                    remedy=f"`appsupervisor wait {operation.name}` comes back to it.",
                )
            request = lro.WaitOperationRequest(name=operation.name)
            request.timeout.FromMilliseconds(int(min(LOOK_SECONDS, left) * 1000))
            operation = self.call(self._operations.WaitOperation, request)
            told(operation)
        return operation

    def result(self, operation: lro.Operation) -> catalog.App:
        """Return the app of an operation that is done. Raises CliError with what it failed of."""
        if operation.HasField("error"):
            raise from_status(operation.error)
        app = catalog.App()
        operation.response.Unpack(app)
        return app

    def node_result(self, operation: lro.Operation) -> fleet.Node:
        """Return the node of a drain that is done. Raises CliError with what it failed of."""
        if operation.HasField("error"):
            raise from_status(operation.error)
        node = fleet.Node()
        operation.response.Unpack(node)
        return node


Metadata = catalog.OperationMetadata | fleet.DrainNodeMetadata | fleet.RebalanceEnvironmentMetadata


def metadata_of(operation: lro.Operation) -> Metadata:
    """Return what an operation tells of itself."""
    if is_drain(operation):
        return drain_of(operation)
    if operation.metadata.Is(fleet.RebalanceEnvironmentMetadata.DESCRIPTOR):
        return rebalance_of(operation)
    metadata = catalog.OperationMetadata()
    operation.metadata.Unpack(metadata)
    return metadata


def notice_of(operation: lro.Operation) -> str:
    """Return what is worth knowing beside an operation's result, one sentence; mostly empty."""
    metadata = metadata_of(operation)
    return metadata.notice if isinstance(metadata, catalog.OperationMetadata) else ""


def is_drain(operation: lro.Operation) -> bool:
    """Tell a drain of a node from an operation on an app."""
    return bool(operation.metadata.Is(fleet.DrainNodeMetadata.DESCRIPTOR))


def drain_of(operation: lro.Operation) -> fleet.DrainNodeMetadata:
    """Return what a drain tells of itself."""
    metadata = fleet.DrainNodeMetadata()
    operation.metadata.Unpack(metadata)
    return metadata


def rebalance_of(operation: lro.Operation) -> fleet.RebalanceEnvironmentMetadata:
    """Return what a rebalance tells of itself."""
    metadata = fleet.RebalanceEnvironmentMetadata()
    operation.metadata.Unpack(metadata)
    return metadata


def environment_name(text: str) -> str:
    """Return an environment's resource name, given by it or by its id."""
    return text if "/" in text else f"environments/{text}"


def node_name(text: str) -> str:
    """Return a node's resource name, given by it, by `ENVIRONMENT/ID`, or by its id in `default`."""
    if text.startswith("environments/"):
        return text
    environment, slash, node = text.partition("/")
    return f"environments/{environment}/nodes/{node}" if slash else f"environments/default/nodes/{text}"


def subject_of(operation: lro.Operation) -> str:
    """Return what an operation is about: a name's last part, or how many apps."""
    about = metadata_of(operation)
    if about.target or not isinstance(about, catalog.OperationMetadata):
        return short(about.target)
    return f"{about.batch.total_count} apps"


def app_name(text: str) -> str:
    """Return the resource name of an app that was given by it or by its id."""
    return text if text.startswith("apps/") else f"apps/{text}"


def operation_name(text: str) -> str:
    """Return the resource name of an operation that was given by it or by its id."""
    return text if text.startswith("operations/") else f"operations/{text}"


def short(name: str) -> str:
    """Return the last part of a resource name."""
    return name.rpartition("/")[2]


def _view(full: bool) -> catalog.App.View.ValueType:
    return catalog.App.FULL if full else catalog.App.VIEW_UNSPECIFIED


def _actor() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "appsupervisor"

"""Creates a tenant's app, waits until it serves, prints its address: tenant.py ADDRESS NAME ENTRYPOINT."""

import sys

import grpc
from google.longrunning.operations_pb2 import WaitOperationRequest
from google.longrunning.operations_pb2_grpc import OperationsStub
from google.protobuf.duration_pb2 import Duration

from appsupervisor.catalog.v1.app_catalog_pb2 import App, CreateAppRequest
from appsupervisor.catalog.v1.app_catalog_pb2_grpc import AppCatalogStub


def main(address: str, name: str, entrypoint: str) -> None:
    with grpc.insecure_channel(address) as channel:
        # With a request id the call may be repeated after any failure: the app is created once.
        request = CreateAppRequest(app_id=name, app=App(entrypoint=entrypoint), request_id=f"tenant-{name}")
        operation = AppCatalogStub(channel).CreateApp(request, timeout=10)
        operation = OperationsStub(channel).WaitOperation(
            WaitOperationRequest(name=operation.name, timeout=Duration(seconds=60)), timeout=70
        )
    if not operation.done:
        sys.exit(f"{operation.name} is not done after a minute; it goes on")
    if operation.HasField("error"):
        sys.exit(f"{name} does not run: {operation.error.message}")
    app = App()
    operation.response.Unpack(app)
    print(app.uri)


if __name__ == "__main__":
    main(*sys.argv[1:])

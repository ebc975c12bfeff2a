"""Takes an app through its life: create, wait, watch, resume, read an error's details, delete.

Usage: client.py HOST:PORT APP_ID ENTRYPOINT. Prints one JSON line per step.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.catalog.v1.app_catalog_pb2_grpc import AppCatalogStub
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance

DEADLINE = 60  # seconds for any one call


class Client:
    """What a program does with the catalog."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.apps = AppCatalogStub(channel)
        self.operations = operations_pb2_grpc.OperationsStub(channel)

    def wait(self, operation: operations_pb2.Operation) -> catalog.App:
        """Return the app that an operation ends with; fails with the operation's error."""
        while not operation.done:
            request = operations_pb2.WaitOperationRequest(name=operation.name, timeout=Duration(seconds=10))
            operation = self.operations.WaitOperation(request, timeout=DEADLINE)
        if operation.HasField("error"):
            raise SystemExit(f"{operation.name} failed: {operation.error.message}")
        app = catalog.App()
        assert operation.response.Unpack(app), operation.response.type_url
        return app

    def watch(self, name: str, resume_token: str = "") -> Iterator[catalog.WatchAppsResponse]:
        """Yield what happens to one app; from the start, or from exactly after a token."""
        request = catalog.WatchAppsRequest(filter=f'name = "{name}"', resume_token=resume_token)
        call = self.apps.WatchApps(request, timeout=DEADLINE)
        try:
            yield from call
        finally:
            call.cancel()


@contextmanager
def refused(step: str) -> Iterator[None]:
    """Report the details of the error that the block is to end with."""
    try:
        yield
    except grpc.RpcError as error:
        status = rpc_status.from_call(error)
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        for detail in status.details if status else ():
            for known in (info, bad):
                detail.Unpack(known)
        report(
            step, reason=info.reason, domain=info.domain, fields=sorted(v.field for v in bad.field_violations)
        )
    else:
        raise SystemExit(f"{step}: the call succeeded")


def report(step: str, **facts: object) -> None:
    """Print what a step has found."""
    print(json.dumps({"step": step, **facts}), flush=True)


def run(channel: grpc.Channel, app_id: str, entrypoint: str) -> None:
    """Do every step once."""
    client, name = Client(channel), f"apps/{app_id}"

    wanted = catalog.App(entrypoint=entrypoint, labels={"client": "python"})
    request = catalog.CreateAppRequest(app_id=app_id, app=wanted, request_id=f"create-{app_id}")
    app = client.wait(client.apps.CreateApp(request, timeout=DEADLINE))
    report("created", name=app.name, state=Instance.State.Name(app.state))

    synced = catalog.WatchAppsResponse()
    for message in client.watch(name):
        if message.type == catalog.WatchAppsResponse.UPSERT:
            report("watched", name=message.app.name)
        elif message.type == catalog.WatchAppsResponse.SYNCED:
            synced = message
            break

    change = catalog.App(name=name, display_name="Changed")
    update = catalog.UpdateAppRequest(app=change, update_mask=FieldMask(paths=["display_name"]))
    client.wait(client.apps.UpdateApp(update, timeout=DEADLINE))
    for message in client.watch(name, synced.resume_token):
        assert message.revision > synced.revision, "what was told before is told again"
        if message.app.display_name:
            report("resumed", name=message.app.name, displayName=message.app.display_name)
            break

    with refused("refused"):
        bad = catalog.CreateAppRequest(app_id="Not An Id", app=catalog.App(entrypoint="nonsense"))
        client.apps.CreateApp(bad, timeout=DEADLINE)

    delete = catalog.DeleteAppRequest(name=name, data_policy=catalog.DeleteAppRequest.DROP)
    app = client.wait(client.apps.DeleteApp(delete, timeout=DEADLINE))
    report("deleted", name=app.name)
    with refused("gone"):
        client.apps.GetApp(catalog.GetAppRequest(name=name), timeout=DEADLINE)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit("usage: client.py HOST:PORT APP_ID ENTRYPOINT")
    with grpc.insecure_channel(sys.argv[1]) as only_channel:
        run(only_channel, *sys.argv[2:])

"""Both servers offer what their protos declare: by reflection, and to clients in other languages."""

import json
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from services.rpc.reflection import SERVICES as REFLECTION
from tests.conftest import RunTool
from tests.e2e.stack import DEADLINE, ROOT, Stack, eventually
from tests.e2e.traffic import ask, delete

STANDARD = {"grpc.health.v1.Health", "grpc.channelz.v1.Channelz", *REFLECTION}
CONTROL_PLANE = {
    "appsupervisor.catalog.v1.AppCatalog",
    "appsupervisor.fleet.v1.Fleet",
    "google.longrunning.Operations",
}
NODE = {"appsupervisor.runtime.v1.RuntimeEnvironment"}


def declared_methods(channel: grpc.Channel, service: str) -> list[descriptor_pb2.MethodDescriptorProto]:
    database = ProtoReflectionDescriptorDatabase(channel)
    file = database.FindFileContainingSymbol(service)
    return next(list(one.method) for one in file.service if f"{file.package}.{one.name}" == service)


@pytest.mark.parametrize("side", ["control plane", "node"])
def test_every_declared_method_is_served(shared_stack: Stack, side: str) -> None:
    on_node = side == "node"
    address = shared_stack.node_address() if on_node else shared_stack.address
    with grpc.insecure_channel(address) as channel:
        services = set(ProtoReflectionDescriptorDatabase(channel).get_services())
        assert services >= (NODE if on_node else CONTROL_PLANE) | STANDARD
        for service in services - STANDARD:
            for method in declared_methods(channel, service):
                # An empty request is refused or harmless everywhere; somebody has to answer it.
                call = channel.unary_stream(f"/{service}/{method.name}")(b"", timeout=DEADLINE)
                try:
                    next(call)
                    call.cancel()
                except StopIteration:
                    pass
                except grpc.RpcError as error:
                    code = error.code()  # type: ignore[attr-defined]
                    assert code is not grpc.StatusCode.UNIMPLEMENTED, f"{service}.{method.name}"


@pytest.mark.parametrize("side", ["control plane", "node"])
def test_health_tells_that_it_serves(shared_stack: Stack, side: str) -> None:
    address = shared_stack.node_address() if side == "node" else shared_stack.address
    with grpc.insecure_channel(address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.tool("grpcurl")
def test_grpcurl_lists_describes_and_calls_both_servers(shared_stack: Stack, run_tool: RunTool) -> None:
    for address, services in ((shared_stack.address, CONTROL_PLANE), (shared_stack.node_address(), NODE)):
        listed = run_tool("grpcurl", "-plaintext", address, "list")
        assert services <= set(listed.stdout.split()), listed.stderr
        for service in services:
            described = run_tool("grpcurl", "-plaintext", address, "describe", service)
            assert "rpc " in described.stdout, described.stderr
            method = described.stdout.split("rpc ")[1].split()[0]
            described = run_tool("grpcurl", "-plaintext", address, "describe", f"{service}.{method}")
            assert f"rpc {method} " in described.stdout, described.stderr
    status = "appsupervisor.runtime.v1.RuntimeEnvironment/GetRuntimeStatus"
    answer = run_tool("grpcurl", "-plaintext", shared_stack.node_address(), status)
    assert json.loads(answer.stdout)["node"] == "environments/default/nodes/node-1"


@pytest.mark.tool("grpcurl")
def test_grpcurl_shows_the_reason_of_an_error(shared_stack: Stack, run_tool: RunTool) -> None:
    get = "appsupervisor.catalog.v1.AppCatalog/GetApp"
    answer = run_tool("grpcurl", "-plaintext", "-d", '{"name": "apps/nobody"}', shared_stack.address, get)
    assert answer.returncode != 0
    assert "NotFound" in answer.stderr
    assert '"reason": "APP_NOT_FOUND"' in answer.stderr
    assert '"domain": "appsupervisor.dev"' in answer.stderr


@pytest.mark.tool("grpcurl")
def test_grpcurl_prints_the_same_by_reflection_as_by_proto(
    shared_stack: Stack, run_tool: RunTool, tmp_path: Path
) -> None:
    protoset = tmp_path / "protoset"
    written = run_tool.python(str(ROOT / "protos/generate.py"), "--descriptor-set", str(protoset))
    assert written.returncode == 0, written.stderr
    shared_stack.create("printed", "notes:create_app", labels={"demo_of": "printing"})
    by_reflection = ["grpcurl", "-plaintext", shared_stack.address]
    by_proto = ["grpcurl", "-plaintext", "-protoset", str(protoset), shared_stack.address]
    services = run_tool("grpcurl", "-protoset", str(protoset), "list").stdout.split()
    symbols = [
        *sorted(set(services) & CONTROL_PLANE),
        *(
            "appsupervisor.catalog.v1.App",
            "appsupervisor.runtime.v1.Instance",
            "google.longrunning.Operation",
        ),
    ]
    for symbol in symbols:
        told = run_tool(*by_reflection, "describe", symbol).stdout
        assert "//" in told, "its comments are told, too"
        assert told == run_tool(*by_proto[:-1], "describe", symbol).stdout
    for method in (
        "appsupervisor.catalog.v1.AppCatalog/ListAppEvents",
        "google.longrunning.Operations/ListOperations",
    ):
        asked = ["-d", '{"parent": "apps/printed"}' if "Events" in method else "{}"]
        told = run_tool(*by_reflection[:-1], *asked, by_reflection[-1], method).stdout
        assert "apps/printed" in told
        assert told == run_tool(*by_proto[:-1], *asked, by_proto[-1], method).stdout


def test_figures_and_events_of_an_app_on_a_real_node_are_told(guest_stack: Stack) -> None:
    app_id = "measured"
    guest_stack.create(app_id, "behaviours:ready")
    for _ in range(5):
        assert ask(guest_stack, app_id, "/").status == 200

    def counted() -> bool:
        page = guest_stack.apps.ListApps(
            catalog.ListAppsRequest(filter=f"name = apps/{app_id}", view=catalog.App.FULL), timeout=DEADLINE
        )
        return page.apps[0].instances[0].figures.request_count >= 5

    eventually(counted, "the node has told of the requests")
    assert not guest_stack.get(app_id).instances[0].HasField("figures")
    request = catalog.WatchAppEventsRequest(parent=f"apps/{app_id}", tail_count=10)
    stream = guest_stack.apps.WatchAppEvents(request, timeout=DEADLINE)
    told = []
    for message in stream:
        if message.type == catalog.WatchAppEventsResponse.SYNCED:
            break
        told.append(message.app_event.type)
    assert told[0] == "Created"
    delete(guest_stack, app_id)
    while "Deleted" not in told:
        told.append(next(stream).app_event.type)
    stream.cancel()
    assert told.index("DeleteRequested") < told.index("Deleted")

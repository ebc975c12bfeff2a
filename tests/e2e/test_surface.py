"""Both servers offer what their protos declare: by reflection, and to clients in other languages."""

import json
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.conftest import RunTool
from tests.e2e.stack import ROOT, Stack

CLIENTS = Path(__file__).with_name("clients")
STANDARD = {"grpc.health.v1.Health", "grpc.channelz.v1.Channelz", "grpc.reflection.v1alpha.ServerReflection"}
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
                call = channel.unary_stream(f"/{service}/{method.name}")(b"", timeout=5)
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
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
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


def assert_whole_life(output: str, app: str) -> None:
    steps = [json.loads(line) for line in output.splitlines()]
    assert [step["step"] for step in steps] == ["created", "read", "deleted"]
    assert {step["name"] for step in steps} == {f"apps/{app}"}
    assert [step["state"] for step in steps[:2]] == ["RUNNING", "RUNNING"]


@pytest.mark.tool("go", "protoc-gen-go", "protoc-gen-go-grpc")
@pytest.mark.timeout(300)  # the first build compiles grpc-go
def test_a_generated_go_client_takes_an_app_through_its_life(
    shared_stack: Stack, run_tool: RunTool, tmp_path: Path
) -> None:
    for file in (CLIENTS / "go").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    protos = ROOT / "protos"
    sources = [str(path.relative_to(protos)) for path in (protos / "appsupervisor").rglob("*.proto")]
    outputs = [f"--go_out={tmp_path}", f"--go-grpc_out={tmp_path}"]
    outputs += ["--go_opt=module=appsupervisor.dev", "--go-grpc_opt=module=appsupervisor.dev"]
    protoc = ["-m", "grpc_tools.protoc", "-I.", "-Ithird_party"]
    generated = run_tool.python(*protoc, *outputs, *sources, cwd=protos)
    assert generated.returncode == 0, generated.stderr
    built = run_tool("go", "build", "-o", "client", ".", timeout=240)
    assert built.returncode == 0, built.stderr
    ran = run_tool(str(tmp_path / "client"), shared_stack.address, "from-go", "notes:create_app")
    assert ran.stderr.strip() == "appsupervisor/APP_NOT_FOUND"
    assert_whole_life(ran.stdout, "from-go")


@pytest.mark.tool("node", "proto-loader-gen-types")
def test_a_node_client_takes_an_app_through_its_life(shared_stack: Stack, run_tool: RunTool) -> None:
    ran = run_tool(
        "node",
        str(CLIENTS / "node/client.cjs"),
        str(ROOT / "protos"),
        shared_stack.address,
        "from-node",
        "notes:create_app",
        NODE_PATH=str(run_tool.folder_of("proto-loader-gen-types").parent),
    )
    assert ran.stderr.strip() == "NOT_FOUND"
    assert_whole_life(ran.stdout, "from-node")

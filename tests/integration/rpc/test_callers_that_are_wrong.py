"""Nothing that a caller does wrong writes a traceback, takes memory without bound, or lacks a reason."""

import logging
from typing import Any

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2
from grpc_channelz.v1.channelz_pb2_grpc import ChannelzStub
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from appsupervisor.fleet.v1 import fleet_pb2
from appsupervisor.fleet.v1.fleet_pb2_grpc import FleetStub
from services.rpc.server import MAX_REQUEST_BYTES
from services.rpc.status import reason_of

S = grpc.StatusCode
Response = health_pb2.HealthCheckResponse
SERVICES = {
    "appsupervisor.fleet.v1.Fleet": fleet_pb2.DESCRIPTOR.services_by_name["Fleet"],
    "grpc.health.v1.Health": health_pb2.DESCRIPTOR.services_by_name["Health"],
    "grpc.channelz.v1.Channelz": channelz_pb2.DESCRIPTOR.services_by_name["Channelz"],
}


@pytest.fixture(autouse=True)
def no_traceback(caplog: pytest.LogCaptureFixture) -> Any:
    """Fail a test in which anything was logged as an error."""
    with caplog.at_level(logging.WARNING):
        yield
    assert [record.getMessage() for record in caplog.records] == []


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value


async def test_health_lists_the_services_and_checks_what_is_known(channel: grpc.aio.Channel) -> None:
    health: Any = HealthStub(channel)
    listed = (await health.List(health_pb2.HealthListRequest())).statuses
    assert {name: one.status for name, one in listed.items()} == {
        "": Response.SERVING,
        "appsupervisor.fleet.v1.Fleet": Response.SERVING,
    }
    for name, status in (("", "SERVING"), ("apps/shop", "SERVING"), ("apps/ill", "NOT_SERVING")):
        found = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert Response.ServingStatus.Name(found.status) == status
    for name, reason in (("no.Service", "SERVICE_NOT_FOUND"), ("apps/none", "APP_NOT_FOUND")):
        refused = await refusal(health.Check(health_pb2.HealthCheckRequest(service=name)))
        assert (refused.code(), reason_of(refused)) == (S.NOT_FOUND, reason)
    watch = health.Watch(health_pb2.HealthCheckRequest(service="apps/none"))
    assert (await watch.read()).status == Response.SERVICE_UNKNOWN
    watch.cancel()


@pytest.mark.parametrize(
    "path", ["/appsupervisor.fleet.v1.Fleet/Nope", "/no.Service/Method", "/nothing", "//", "/a/b/c"]
)
async def test_an_unknown_method_is_unimplemented_with_a_reason(channel: grpc.aio.Channel, path: str) -> None:
    refused = await refusal(channel.unary_unary(path)(b"x"))
    assert (refused.code(), reason_of(refused)) == (S.UNIMPLEMENTED, "METHOD_NOT_FOUND")
    refused = await refusal(channel.unary_stream(path)(b"x").read())
    assert reason_of(refused) == "METHOD_NOT_FOUND"


@pytest.mark.parametrize(
    "path", [f"/{name}/{method.name}" for name, service in SERVICES.items() for method in service.methods]
)
async def test_bytes_that_are_no_message_are_refused_by_every_method(
    channel: grpc.aio.Channel, path: str
) -> None:
    call = channel.unary_stream(path)(b"\x0a\xff\xff\xff\xff\xff")
    refused = await refusal(call.read())
    assert (refused.code(), reason_of(refused)) == (S.INVALID_ARGUMENT, "MALFORMED_REQUEST")
    assert dict(refused.trailing_metadata() or ())["x-request-id"]


async def test_channelz_answers_for_what_it_does_not_know(channel: grpc.aio.Channel) -> None:
    channelz: Any = ChannelzStub(channel)
    assert (await channelz.GetServers(channelz_pb2.GetServersRequest())).server
    refused = await refusal(channelz.GetServer(channelz_pb2.GetServerRequest(server_id=99_999_999)))
    assert refused.code() is S.NOT_FOUND


async def test_a_request_beyond_a_mebibyte_is_refused_and_one_below_is_not(channel: grpc.aio.Channel) -> None:
    fleet: Any = FleetStub(channel)
    request = fleet_pb2.GetNodeRequest(name="x" * (MAX_REQUEST_BYTES - 100))
    assert len((await fleet.GetNode(request)).name) == len(request.name)
    request = fleet_pb2.GetNodeRequest(name="x" * (MAX_REQUEST_BYTES + 1))
    assert (await refusal(fleet.GetNode(request))).code() is S.RESOURCE_EXHAUSTED


async def test_a_request_that_unpacks_to_very_much_is_refused(channel: grpc.aio.Channel) -> None:
    call = channel.unary_unary("/appsupervisor.fleet.v1.Fleet/GetNode")
    request = fleet_pb2.GetNodeRequest(name="x" * (32 << 20)).SerializeToString()
    refused = await refusal(call(request, compression=grpc.Compression.Gzip))
    assert refused.code() is S.RESOURCE_EXHAUSTED


async def test_a_caller_that_goes_away_at_any_moment_writes_nothing(channel: grpc.aio.Channel) -> None:
    fleet: Any = FleetStub(channel)
    for _ in range(50):
        fleet.GetNode(fleet_pb2.GetNodeRequest(name="x")).cancel()
    assert (await fleet.GetNode(fleet_pb2.GetNodeRequest(name="x"))).name == "x"

"""Both versions of reflection tell the contract as protoc does, and answer what makes no sense."""

import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import grpc
import pytest
import pytest_asyncio
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2 as pb

from appsupervisor.catalog.v1.app_catalog_pb2_grpc import AppCatalogServicer, add_AppCatalogServicer_to_server
from services.rpc.reflection import SERVICES
from services.rpc.server import RpcServer, Service

CATALOG = "appsupervisor.catalog.v1.AppCatalog"
Ask: TypeAlias = "Callable[..., grpc.aio.StreamStreamCall]"
EXTENSION = pb.ExtensionRequest(containing_type="google.protobuf.FieldOptions", extension_number=1052)
QUESTIONS = {
    "services": {"list_services": ""},
    "file": {"file_by_filename": "google/longrunning/operations.proto"},
    "service": {"file_containing_symbol": CATALOG},
    "method": {"file_containing_symbol": f"{CATALOG}.CreateApp"},
    "message": {"file_containing_symbol": "appsupervisor.runtime.v1.Instance.State"},
    "reflection": {"file_containing_symbol": "grpc.reflection.v1.ServerReflection"},
    "extension": {"file_containing_extension": EXTENSION},
    "extensions": {"all_extension_numbers_of_type": "google.protobuf.FieldOptions"},
}
WITHOUT_ANSWER = {
    "no such file": ({"file_by_filename": "nothing.proto"}, grpc.StatusCode.NOT_FOUND),
    "no such symbol": ({"file_containing_symbol": "no.such.Symbol"}, grpc.StatusCode.NOT_FOUND),
    "no such type": ({"all_extension_numbers_of_type": "no.such.Type"}, grpc.StatusCode.NOT_FOUND),
    "no question": ({"host": "me"}, grpc.StatusCode.INVALID_ARGUMENT),
}


@pytest_asyncio.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    server = RpcServer([Service(CATALOG, add_AppCatalogServicer_to_server, AppCatalogServicer())])
    port = await server.start("127.0.0.1:0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(0)


async def ask(
    channel: grpc.aio.Channel, service: str, *questions: bytes
) -> list[pb.ServerReflectionResponse]:
    method = channel.stream_stream(
        f"/{service}/ServerReflectionInfo", response_deserializer=pb.ServerReflectionResponse.FromString
    )
    return [answer async for answer in method(iter(questions), timeout=60)]


def question(**fields: object) -> bytes:
    return pb.ServerReflectionRequest(**fields).SerializeToString()


def files_in(answer: pb.ServerReflectionResponse) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    raw = answer.file_descriptor_response.file_descriptor_proto
    files = [descriptor_pb2.FileDescriptorProto.FromString(one) for one in raw]
    assert len({file.name for file in files}) == len(files), "a file is told twice"
    return {file.name: file for file in files}


@pytest.mark.parametrize("kind", QUESTIONS)
async def test_both_versions_answer_alike(channel: grpc.aio.Channel, kind: str) -> None:
    answers = [await ask(channel, service, question(**QUESTIONS[kind])) for service in SERVICES]
    assert answers[0] == answers[1]
    assert len(answers[0]) == 1
    assert not answers[0][0].HasField("error_response"), answers[0]


async def test_reflection_lists_every_service_and_describes_it(channel: grpc.aio.Channel) -> None:
    (listed,) = await ask(channel, SERVICES[0], question(list_services=""))
    names = [service.name for service in listed.list_services_response.service]
    assert names == sorted([CATALOG, "grpc.channelz.v1.Channelz", "grpc.health.v1.Health", *SERVICES])
    for name, answer in zip(
        names,
        await ask(channel, SERVICES[0], *(question(file_containing_symbol=name) for name in names)),
        strict=True,
    ):
        declared = {
            f"{file.package}.{one.name}" for file in files_in(answer).values() for one in file.service
        }
        assert name in declared


async def test_what_is_told_is_what_protoc_writes(
    channel: grpc.aio.Channel, generator: ModuleType, tmp_path: Path
) -> None:
    generator.write_descriptor_set(tmp_path / "protoset")
    written = descriptor_pb2.FileDescriptorSet.FromString((tmp_path / "protoset").read_bytes())
    (answer,) = await ask(channel, SERVICES[0], question(file_containing_symbol=CATALOG))
    told = files_in(answer)
    needed = {"appsupervisor/runtime/v1/runtime_environment.proto", "google/longrunning/operations.proto"}
    assert needed < set(told)
    for file in written.file:
        if file.name not in told or file.name == "google/protobuf/descriptor.proto":
            continue  # the latter is the installed protobuf's, whatever protoc has
        if file.name.startswith("appsupervisor/"):
            comments = [place.leading_comments for place in file.source_code_info.location]
            shown = [place.leading_comments for place in told[file.name].source_code_info.location]
            assert shown == [comment for comment in comments if comment]
        for one in (file, told[file.name]):
            one.ClearField("source_code_info")
        assert told[file.name] == file, file.name  # with the json_name of every field


@pytest.mark.parametrize("kind", WITHOUT_ANSWER)
async def test_a_question_without_an_answer_is_told_so_and_the_stream_goes_on(
    channel: grpc.aio.Channel, kind: str
) -> None:
    fields, code = WITHOUT_ANSWER[kind]
    refused, answered = await ask(channel, SERVICES[0], question(**fields), question(list_services=""))
    assert refused.error_response.error_code == code.value[0]
    assert refused.error_response.error_message
    assert refused.original_request == pb.ServerReflectionRequest(**fields)
    assert answered.HasField("list_services_response")


async def test_bytes_that_are_no_request_are_refused_without_a_traceback(
    channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        (refused,) = await ask(channel, SERVICES[0], b"\xff\xff\xff")
    assert refused.error_response.error_code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert caplog.records == []

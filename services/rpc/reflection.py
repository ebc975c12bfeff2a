"""Server reflection, as grpc.reflection.v1 and v1alpha: what a server's services, messages and fields are.

Files are told with their comments and JSON names: a client prints the same by reflection as by proto.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from functools import cache, lru_cache
from importlib import resources
from typing import Any, Protocol

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection_pb2 as pb

V1ALPHA = "grpc.reflection.v1alpha"
V1 = "grpc.reflection.v1"
SERVICES = (f"{V1}.ServerReflection", f"{V1ALPHA}.ServerReflection")

_POOL: Any = descriptor_pool.Default()


class Registry(Protocol):
    """What methods can be registered with: a server."""

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Register a service's methods."""


class ReflectionServicer:
    """Tells what `services` are, beside both versions of reflection itself."""

    def __init__(self, services: Iterable[str]) -> None:
        _declare_v1()
        self._services = sorted({*services, *SERVICES})

    def add_to(self, server: Registry) -> None:
        """Register both versions: on the wire they differ by their package's name alone."""
        handler = grpc.stream_stream_rpc_method_handler(
            self.answer, _read, pb.ServerReflectionResponse.SerializeToString
        )
        methods = {"ServerReflectionInfo": handler}
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(service, methods) for service in SERVICES]
        )

    async def answer(
        self, requests: AsyncIterator[pb.ServerReflectionRequest], _context: Any
    ) -> AsyncIterator[pb.ServerReflectionResponse]:
        """Serve ServerReflectionInfo: one answer for each question; one that has none is told so in it."""
        async for request in requests:
            try:
                answer = self._answer_one(request)
            except KeyError:
                answer = _refusal(grpc.StatusCode.NOT_FOUND, "There is no such file, symbol or extension.")
            answer.valid_host = request.host
            answer.original_request.CopyFrom(request)
            yield answer

    def _answer_one(self, request: pb.ServerReflectionRequest) -> pb.ServerReflectionResponse:
        answer = pb.ServerReflectionResponse()
        kind = request.WhichOneof("message_request")
        if kind == "list_services":
            answer.list_services_response.service.extend(
                pb.ServiceResponse(name=name) for name in self._services
            )
        elif kind == "file_by_filename":
            _tell(answer, _POOL.FindFileByName(request.file_by_filename))
        elif kind == "file_containing_symbol":
            _tell(answer, _declaring(request.file_containing_symbol))
        elif kind == "file_containing_extension":
            asked = request.file_containing_extension
            extended = _POOL.FindMessageTypeByName(asked.containing_type)
            _tell(answer, _POOL.FindExtensionByNumber(extended, asked.extension_number).file)
        elif kind == "all_extension_numbers_of_type":
            extended = _POOL.FindMessageTypeByName(request.all_extension_numbers_of_type)
            numbers = sorted(extension.number for extension in _POOL.FindAllExtensions(extended))
            answer.all_extension_numbers_response.base_type_name = extended.full_name
            answer.all_extension_numbers_response.extension_number.extend(numbers)
        else:
            return _refusal(grpc.StatusCode.INVALID_ARGUMENT, "The request asks for nothing that is known.")
        return answer


def _read(raw: bytes) -> pb.ServerReflectionRequest:
    """Read a request; one that cannot be read asks for nothing, and is told so."""
    try:
        return pb.ServerReflectionRequest.FromString(raw)
    except DecodeError:
        return pb.ServerReflectionRequest()


def _refusal(code: grpc.StatusCode, sentence: str) -> pb.ServerReflectionResponse:
    error = pb.ErrorResponse(error_code=code.value[0], error_message=sentence)
    return pb.ServerReflectionResponse(error_response=error)


def _declaring(symbol: str) -> Any:
    """Return the file that declares a symbol; a method's, too, which a pool does not look for by itself."""
    try:
        return _POOL.FindFileContainingSymbol(symbol)
    except KeyError:
        return _POOL.FindMethodByName(symbol).containing_service.file


def _tell(answer: pb.ServerReflectionResponse, file: Any) -> None:
    """Tell a file and all that it imports, each once and after what imports it."""
    told, waiting = {file.name: file}, [file]
    while waiting:
        for imported in waiting.pop().dependencies:
            if imported.name not in told:
                told[imported.name] = imported
                waiting.append(imported)
    answer.file_descriptor_response.file_descriptor_proto.extend(map(_serialized, told))


@cache
def _documented() -> dict[str, bytes]:
    """Return the files that protoc has written for this, with their comments, by name."""
    raw = resources.files("appsupervisor").joinpath("documented.binpb").read_bytes()
    return {
        file.name: file.SerializeToString() for file in descriptor_pb2.FileDescriptorSet.FromString(raw).file
    }


@lru_cache(maxsize=256)
def _serialized(name: str) -> bytes:
    """Return a file's FileDescriptorProto with JSON names, which generated code leaves out."""
    if name in _documented():
        return _documented()[name]
    file = _POOL.FindFileByName(name)
    proto = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(proto)
    for message in proto.message_type:
        _name_fields(message, file.message_types_by_name[message.name])
    for extension in proto.extension:
        extension.json_name = file.extensions_by_name[extension.name].json_name
    return proto.SerializeToString(deterministic=True)


def _name_fields(proto: descriptor_pb2.DescriptorProto, message: Any) -> None:
    for field in proto.field:
        field.json_name = message.fields_by_name[field.name].json_name
    for extension in proto.extension:
        extension.json_name = message.extensions_by_name[extension.name].json_name
    for nested in proto.nested_type:
        _name_fields(nested, message.nested_types_by_name[nested.name])


def _declare_v1() -> None:
    """Declare v1 in this process if no package has: it is v1alpha under another name."""
    name = "grpc/reflection/v1/reflection.proto"
    try:
        _POOL.FindFileByName(name)
    except KeyError:
        proto = descriptor_pb2.FileDescriptorProto()
        pb.DESCRIPTOR.CopyToProto(proto)
        proto.options.ClearField("deprecated")
        proto = text_format.Parse(str(proto).replace("v1alpha", "v1"), descriptor_pb2.FileDescriptorProto())
        proto.name = name
        _POOL.Add(proto)

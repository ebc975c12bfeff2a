"""A method behind the pipeline, called without a network."""

from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from services.rpc.pipeline.methods import Methods
from services.rpc.pipeline.pipeline import Pipeline
from services.rpc.status import DETAILS_KEY


class Context:
    """What gRPC gives a handler; `accept` says what becomes of a message that is written."""

    def __init__(self, peer: str = "ipv4:192.0.2.1:5", left: float | None = None, **metadata: str) -> None:
        self._peer = peer
        self._left = left
        self._metadata = tuple((key.replace("_", "-"), value) for key, value in metadata.items())
        self.written: list[bytes] = []
        self.refused: Refused | None = None

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def peer(self) -> str:
        return self._peer

    def time_remaining(self) -> float | None:
        return self._left

    async def write(self, data: bytes) -> None:
        self.written.append(data)

    async def abort(self, code: grpc.StatusCode, message: str, trailers: Any) -> None:
        self.refused = Refused(code, message, dict(trailers))
        raise grpc.aio.AbortError


class Refused:
    """How a call was refused."""

    def __init__(self, code: grpc.StatusCode, message: str, trailers: dict[str, Any]) -> None:
        self.code, self.message, self.trailers = code, message, trailers
        self.info, self.retry, self.bad_request = ErrorInfo(), RetryInfo(), BadRequest()
        for detail in Status.FromString(trailers[DETAILS_KEY]).details:
            for kind in (self.info, self.retry, self.bad_request):
                detail.Unpack(kind)


class Server:
    """A pipeline and methods behind it; a call returns what was answered, or how it was refused."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.methods = Methods(pipeline)

    def add(self, name: str, method: Any, *, streams: bool = False) -> None:
        make: Any = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        handler = make(method, StringValue.FromString, StringValue.SerializeToString)
        self.methods.add_registered_method_handlers("test.Service", {name: handler})

    def handler(self, name: str) -> Any:
        class Details:
            method = f"/test.Service/{name}"
            invocation_metadata = ()

        return self.methods.service(Details)  # type: ignore[arg-type]

    async def call(self, name: str, data: bytes = b"", context: Context | None = None) -> Any:
        context = context or Context()
        found = self.handler(name)
        behave = found.unary_unary or found.unary_stream or found.stream_stream
        try:
            answer = await behave(data, context)
        except grpc.aio.AbortError:
            return context.refused
        return context.written if found.unary_stream else answer


@pytest.fixture
def server() -> Server:
    return Server(Pipeline())

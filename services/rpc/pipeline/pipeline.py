"""Composes the parts that every call passes through, once for unary methods and streams alike.

The order is that of the package's docstring. What the method itself answers is serialized inside, so
that nothing a call does can reach gRPC as an exception.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from services.rpc.errors import Code, SupervisorError
from services.rpc.pipeline.admission import Admission, Peer
from services.rpc.pipeline.authorize import Authorize, allow_all
from services.rpc.pipeline.call import Call
from services.rpc.pipeline.deadline import note_deadline
from services.rpc.pipeline.errors import Refusal, refusal_of
from services.rpc.pipeline.figures import CallFigures, MethodFigures
from services.rpc.pipeline.identity import Identify, anonymous

_END = object()

LARGE = 64 * 1024
"""Requests beyond this are parsed one in each turn of the loop: a mebibyte of map entries takes 0.1 s."""

GRPC_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class Pipeline:
    """Wraps methods. A method is `(request, call)`: a coroutine, or an asynchronous generator.

    It may return or yield bytes, which are its response already serialized.
    """

    def __init__(
        self,
        *,
        identify: Identify = anonymous,
        authorize: Authorize = allow_all,
        admission: Admission | None = None,
        figures: CallFigures | None = None,
    ) -> None:
        self.identify = identify
        self.authorize = authorize
        self.admission = admission or Admission()
        self.figures = figures or CallFigures()
        self._large = asyncio.Lock()

    def wrap(self, name: str, method: Any, *, with_context: bool = False) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler of a method, found as a generated one; `name` is its full name.

        `with_context` gives a servicer of somebody else's gRPC's own context in the place of the call.
        """
        # Without (de)serializers gRPC passes bytes: both are done inside, where what fails has an answer.
        codec = method.request_deserializer, method.response_serializer
        if method.unary_unary is not None:
            served = self._unary(name, method.unary_unary, *codec, with_context)
            return grpc.unary_unary_rpc_method_handler(served)
        if method.unary_stream is not None:
            served = self._stream(name, method.unary_stream, *codec, with_context)
            return grpc.unary_stream_rpc_method_handler(served)
        if method.stream_stream is not None:
            served = self._streams(name, method.stream_stream, *codec, with_context)
            return grpc.stream_stream_rpc_method_handler(served)
        served = self._gathering(name, method.stream_unary, *codec, with_context)
        return grpc.stream_unary_rpc_method_handler(served)

    def _unary(
        self, name: str, behave: Any, parse: Any, serialize: Any, with_context: bool
    ) -> Callable[[bytes, Any], Any]:
        figures = self.figures.of(name)

        async def unary(data: bytes, context: Any) -> Any:
            with Serving(self, Call(name, context, streams=False), figures) as serving:
                if len(data) > LARGE:
                    async with self._large:
                        request = serving.admit(parse, data)
                        await asyncio.sleep(0)
                else:
                    request = serving.admit(parse, data)
                response = await behave(request, context if with_context else serving.call)
                # A servicer of somebody else's answers without a response when it has set another code.
                return response if response is None or type(response) is bytes else serialize(response)
            return await serving.refuse(context)

        return unary

    def _stream(
        self, name: str, behave: Any, parse: Any, serialize: Any, with_context: bool
    ) -> Callable[[bytes, Any], Any]:
        figures = self.figures.of(name)

        async def stream(data: bytes, context: Any) -> None:
            with Serving(self, Call(name, context, streams=True), figures) as serving:
                request = serving.admit(parse, data)
                messages = behave(request, context if with_context else serving.call)
                await serving.send_all(messages, serialize, context)
                return
            await serving.refuse(context)

        return stream

    def _streams(
        self, name: str, behave: Any, parse: Any, serialize: Any, with_context: bool
    ) -> Callable[[Any, Any], Any]:
        figures = self.figures.of(name)

        async def both(requests: AsyncIterator[bytes], context: Any) -> None:
            with Serving(self, Call(name, context, streams=True), figures) as serving:
                serving.admit(lambda _: requests, b"")
                parsed = _parsed(requests, parse)
                messages = behave(parsed, context if with_context else serving.call)
                await serving.send_all(messages, serialize, context)
                return
            await serving.refuse(context)

        return both

    def _gathering(
        self, name: str, behave: Any, parse: Any, serialize: Any, with_context: bool
    ) -> Callable[[Any, Any], Any]:
        figures = self.figures.of(name)

        async def gathering(requests: AsyncIterator[bytes], context: Any) -> Any:
            # As long as it likes, and counted, as a stream.
            with Serving(self, Call(name, context, streams=True), figures) as serving:
                serving.admit(lambda _: requests, b"")
                return serialize(
                    await behave(_parsed(requests, parse), context if with_context else serving.call)
                )
            return await serving.refuse(context)

        return gathering

    def unknown(self, name: str) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler of a method that the server does not have."""
        service, _, method = name.removeprefix("/").rpartition("/")

        async def refuse(_: Any, context: Any) -> None:
            # It takes no part in the figures: callers make up names without end.
            call = Call(name, context, streams=True)
            error = SupervisorError(
                "METHOD_NOT_FOUND",
                f"There is no method {method!r} of {service!r} here.",
                metadata={"method": method, "service": service},
            )
            refusal = refusal_of(call, error)
            await context.abort(GRPC_CODES[refusal.code], refusal.message, refusal.trailers)

        return grpc.stream_stream_rpc_method_handler(refuse)


class Serving:
    """One call's way through: the only `try` around a method. Ends with a refusal, or with none."""

    __slots__ = ("_admitted", "_figures", "_peer", "_pipeline", "call", "refusal")

    def __init__(self, pipeline: Pipeline, call: Call, figures: MethodFigures) -> None:
        self._pipeline = pipeline
        self._figures = figures
        self._admitted = False
        self._peer: Peer | None = None
        self.call = call
        self.refusal: Refusal | None = None

    def __enter__(self) -> Serving:
        self._figures.open += 1
        return self

    def admit(self, parse: Callable[[bytes], Any], data: bytes) -> Any:
        """Pass the parts before the method, in order; return its request. Raises SupervisorError."""
        call, pipeline = self.call, self._pipeline
        call.size = len(data)
        note_deadline(call)
        pipeline.identify(call)
        self._peer = pipeline.admission.enter(call)
        self._admitted = True
        request = _request(parse, data)
        pipeline.authorize(call, request)
        return request

    async def send_all(self, messages: Any, serialize: Callable[[Any], bytes], context: Any) -> None:
        """Send what a method yields, never more at once than its address may leave unread."""
        admission, peer = self._pipeline.admission, self._peer
        assert peer is not None
        try:
            while True:
                # A stream that has to wait does so before its message is made, which would be held meanwhile.
                if peer.unread >= admission.bounds.unread_bytes_per_peer:
                    await admission.room(peer, 0)
                message: Any = await anext(messages, _END)
                if message is _END:
                    return
                size = len(message) if type(message) is bytes else message.ByteSize()
                await admission.room(peer, size)
                peer.unread += size
                try:
                    await context.write(message if type(message) is bytes else serialize(message))
                except grpc.aio.InternalError as unsent:
                    # Its connection broke, which gRPC says by cancelling the method, a moment later.
                    raise asyncio.CancelledError("the caller has gone") from unsent
                finally:
                    admission.sent(peer, size)
        finally:
            await messages.aclose()

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> bool:
        call, code = self.call, 0
        if fault is None:
            pass
        elif isinstance(fault, grpc.aio.AbortError):
            code = Code.UNKNOWN.value  # a servicer of somebody else's has answered by itself
        elif isinstance(fault, Exception):
            self.refusal = refusal_of(call, fault)
            code = self.refusal.code
        else:
            code = Code.CANCELLED.value
        if self._admitted:
            self._pipeline.admission.leave(call, self._peer)
        self._figures.end(code, None if call.streams else time.monotonic() - call.began)
        return self.refusal is not None

    async def refuse(self, context: Any) -> Any:
        """Answer with the refusal."""
        assert self.refusal is not None
        await context.abort(GRPC_CODES[self.refusal.code], self.refusal.message, self.refusal.trailers)


def _request(parse: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return parse(data)
    except (DecodeError, ValueError):
        raise SupervisorError(
            "MALFORMED_REQUEST", "The request's bytes are not a message of this method."
        ) from None


async def _parsed(requests: AsyncIterator[bytes], parse: Callable[[bytes], Any]) -> AsyncIterator[Any]:
    async for data in requests:
        yield _request(parse, data)

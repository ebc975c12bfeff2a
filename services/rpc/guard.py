"""What every servicer has in common, composed once: errors to statuses, unexpected faults contained.

Order, from the outside in: request bytes that are not a message are refused, expected errors become
their status, anything else becomes INTERNAL with a request id while the log has the detail.
"""

from __future__ import annotations

import inspect
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from functools import wraps
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from services.rpc.errors import SupervisorError
from services.rpc.status import DETAILS_KEY, brief, to_status

log = logging.getLogger("appsupervisor.rpc")

GRPC_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class Malformed:
    """Stands for request bytes that could not be parsed."""


MALFORMED = Malformed()


class Guarded:
    """A servicer whose methods answer every error as a status with a reason.

    Attributes of the inner servicer stay reachable. Usable wherever the inner one is, also with
    `grpc_testing`.
    """

    def __init__(self, servicer: object) -> None:
        self._servicer = servicer
        for name, method in inspect.getmembers(servicer, callable):
            if name[0].isupper():
                setattr(self, name, _guard(name, method))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._servicer, name)


def _guard(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.isasyncgenfunction(method):

        @wraps(method)
        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                _refuse_malformed(request)
                async for response in method(request, context):
                    yield response
            except Exception as fault:  # noqa: BLE001 - the boundary to the caller
                await context.abort(*_prepare(name, fault, context))

        return stream
    if inspect.iscoroutinefunction(method):

        @wraps(method)
        async def coroutine(request: Any, context: Any) -> Any:
            try:
                _refuse_malformed(request)
                return await method(request, context)
            except Exception as fault:  # noqa: BLE001 - the boundary to the caller
                await context.abort(*_prepare(name, fault, context))

        return coroutine

    @wraps(method)
    def function(request: Any, context: Any) -> Any:
        try:
            _refuse_malformed(request)
            return method(request, context)
        except Exception as fault:  # noqa: BLE001 - the boundary to the caller
            code, message = _prepare(name, fault, context)
        return _abort(context, code, message)

    return function


def _abort(context: Any, code: grpc.StatusCode, message: str) -> NoReturn:
    context.abort(code, message)
    raise AssertionError("abort returned")


def _refuse_malformed(request: Any) -> None:
    if isinstance(request, Malformed):
        raise SupervisorError("MALFORMED_REQUEST", "The request's bytes are not a message of this method.")


def _prepare(name: str, fault: Exception, context: Any) -> tuple[grpc.StatusCode, str]:
    """Attach the fault's details to the call and return its code and message."""
    if isinstance(fault, grpc.aio.AbortError):
        raise fault
    if not isinstance(fault, SupervisorError):
        request_id = secrets.token_hex(8)
        log.error(
            "call failed unexpectedly: %s, request id %s", name, request_id, exc_info=fault,
            extra={"action": "rpc.internal_error", "method": name, "request_id": request_id},
        )  # fmt: skip
        fault = SupervisorError(
            "INTERNAL",
            f"An internal error occurred; request id {request_id}.",
            metadata={"request_id": request_id},
        )
    status = to_status(brief(fault))
    context.set_trailing_metadata(((DETAILS_KEY, status.SerializeToString()),))
    return GRPC_CODES[status.code], status.message


def tolerant_deserializer(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Return a deserializer that yields MALFORMED instead of raising, so the guard can answer."""

    def deserialize(data: bytes) -> Any:
        try:
            return parse(data)
        except (DecodeError, ValueError):
            return MALFORMED

    return deserialize

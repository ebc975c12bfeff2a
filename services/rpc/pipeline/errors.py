"""Turns whatever a call raises into one status with a reason; what was not expected stays in the log."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from google.rpc.status_pb2 import Status

from services.rpc.errors import SupervisorError
from services.rpc.pipeline.call import Call
from services.rpc.pipeline.request_id import REQUEST_ID_KEY
from services.rpc.status import DETAILS_KEY, brief, to_status

log = logging.getLogger("appsupervisor.rpc")


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a call is answered that failed."""

    code: int
    """A number of `google.rpc.Code`."""
    message: str
    trailers: tuple[tuple[str, str | bytes], ...]
    """The status with its details, and the call's id."""


def refusal_of(call: Call, fault: Exception) -> Refusal:
    """Return the answer for a fault of a call."""
    status = status_of(call, fault)
    trailers = ((DETAILS_KEY, status.SerializeToString()), (REQUEST_ID_KEY, call.request_id))
    return Refusal(status.code, status.message, trailers)


def status_of(call: Call, fault: Exception) -> Status:
    """Return what a fault is told as: INTERNAL with the call's id for one that is no SupervisorError."""
    if not isinstance(fault, SupervisorError):
        log.error(
            "call failed unexpectedly: %s, request id %s", call.method, call.request_id, exc_info=fault,
            extra={"action": "rpc.internal_error", "method": call.method, "request_id": call.request_id},
        )  # fmt: skip
        fault = SupervisorError(
            "INTERNAL",
            f"An internal error occurred; request id {call.request_id}.",
            metadata={"request_id": call.request_id},
        )
    return to_status(brief(fault))

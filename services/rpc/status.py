"""Turns the error family into gRPC statuses with `google.rpc` details, and reads them back."""

from __future__ import annotations

import grpc
from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from services.rpc.errors import Code, SupervisorError

DOMAIN = "appsupervisor"
DETAILS_KEY = "grpc-status-details-bin"

GRPC_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}

_KINDS = {"apps": "App", "environments": "Environment", "operations": "Operation"}


def to_status(error: SupervisorError) -> Status:
    """Return the error as a `google.rpc.Status`: ErrorInfo always, other details where they fit."""
    status = Status(code=error.code.value, message=error.message)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    for key, value in error.metadata.items():
        if key != "detail":  # a traceback is for the app's own status, not for every caller
            info.metadata[key] = value
    _pack(status, info)
    if error.violations:
        _pack(
            status,
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field=violation.field, description=violation.rule, reason=error.reason
                    )
                    for violation in error.violations
                ]
            ),
        )
    if error.code is Code.FAILED_PRECONDITION:
        failure = error_details_pb2.PreconditionFailure.Violation(
            type=error.reason, subject=error.resource, description=error.message
        )
        _pack(status, error_details_pb2.PreconditionFailure(violations=[failure]))
    if error.resource:
        kind = resource_kind(error.resource)
        _pack(status, error_details_pb2.ResourceInfo(resource_type=kind, resource_name=error.resource))
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(int(error.retry_after * 1000))
        _pack(status, retry)
    return status


def resource_kind(name: str) -> str:
    """Return the resource type of a name: `appsupervisor/App` for `apps/x`, and so on."""
    parts = name.split("/")
    kind = _KINDS.get(parts[0], "Resource")
    if len(parts) == 4:
        kind = {"instances": "Instance", "nodes": "Node"}.get(parts[2], kind)
    return f"{DOMAIN}/{kind}"


def info_of(error: grpc.RpcError) -> tuple[str, dict[str, str]]:
    """Return the ErrorInfo reason and metadata that a received status carries, or empty ones."""
    read_trailers = getattr(error, "trailing_metadata", None)
    trailers = dict(read_trailers() or ()) if read_trailers else {}
    packed = trailers.get(DETAILS_KEY)
    if packed is None:
        return "", {}
    for detail in Status.FromString(packed).details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            return info.reason, dict(info.metadata)
    return "", {}


def reason_of(error: grpc.RpcError) -> str:
    """Return the ErrorInfo reason that a received status carries, or an empty string."""
    return info_of(error)[0]


def _pack(status: Status, detail: object) -> None:
    packed = Any()
    packed.Pack(detail)  # type: ignore[arg-type]
    status.details.append(packed)

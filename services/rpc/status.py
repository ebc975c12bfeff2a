"""Turns the error family into `google.rpc.Status` with details, and reads them back.

The core keeps such statuses in operations, so nothing here imports gRPC.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from services.rpc.errors import Code, SupervisorError, Violation

if TYPE_CHECKING:
    import grpc

DOMAIN = "appsupervisor.dev"
DETAILS_KEY = "grpc-status-details-bin"

MAX_DETAIL_BYTES = 3072
"""Room for violations: gRPC clients refuse more than 8 KiB of trailers, which travel in base64."""

MAX_TEXT_BYTES = 400
"""Room for one text of an error that travels in trailers; the message does so twice, once escaped."""

MAX_VALUE_BYTES = 160
"""Room for one value of ErrorInfo's metadata; an error has a handful of them."""

_KINDS = {
    "apps": "App",
    "certificates": "Certificate",
    "databaseServers": "DatabaseServer",
    "environments": "Environment",
    "operations": "Operation",
}


def to_status(error: SupervisorError) -> Status:
    """Return the error as a `google.rpc.Status`: ErrorInfo always, other details where they fit."""
    status = Status(code=error.code.value, message=error.message)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    # What a message tells of one case is here by key: no program has to take a sentence apart (AIP-193).
    if error.resource:
        info.metadata["resource"] = error.resource
    if error.violations:
        first = error.violations[0]
        info.metadata["field"], info.metadata["rule"] = first.field, _cut(first.rule, MAX_VALUE_BYTES)
    for key, value in error.metadata.items():
        if key != "detail":  # a traceback is for the app's own status, not for every caller
            info.metadata[key] = value
    _pack(status, info)
    if error.violations:
        _pack(status, _bad_request(error))
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


def brief(error: SupervisorError) -> SupervisorError:
    """Return the error with its texts cut for trailers: some quote what a caller sent, of any length."""
    return SupervisorError(
        error.reason,
        _cut(error.message),
        code=error.code,
        resource=error.resource,
        violations=tuple(Violation(_cut(known.field), _cut(known.rule)) for known in error.violations),
        metadata={key: _cut(value, MAX_VALUE_BYTES) for key, value in error.metadata.items()},
        retry_after=error.retry_after,
    )


def _cut(text: str, most: int = MAX_TEXT_BYTES) -> str:
    encoded = text.encode()
    if len(encoded) <= most:
        return text
    return encoded[: most - 3].decode(errors="ignore") + "…"


def _bad_request(error: SupervisorError) -> error_details_pb2.BadRequest:
    """Return every violation, or as many as fit into a header that any client accepts."""
    request = error_details_pb2.BadRequest()
    room = MAX_DETAIL_BYTES
    for told, violation in enumerate(error.violations):
        room -= len(violation.field.encode()) + len(violation.rule.encode()) + len(error.reason) + 12
        if room < 0:
            left = len(error.violations) - told
            request.field_violations.add(field="", description=f"and {left} more", reason=error.reason)
            break
        request.field_violations.add(field=violation.field, description=violation.rule, reason=error.reason)
    return request


def resource_kind(name: str) -> str:
    """Return the resource type of a name: `appsupervisor.dev/App` for `apps/x`, and so on."""
    parts = name.split("/")
    kind = _KINDS.get(parts[0], "Resource")
    if len(parts) == 4:
        kind = {"instances": "Instance", "nodes": "Node"}.get(parts[2], kind)
    if len(parts) == 6 and parts[4] == "retainedData":
        kind = "RetainedData"
    return f"{DOMAIN}/{kind}"


def info_of(error: grpc.RpcError) -> tuple[str, dict[str, str]]:
    """Return the ErrorInfo reason and metadata that a received status carries, or empty ones."""
    read_trailers = getattr(error, "trailing_metadata", None)
    trailers = dict(read_trailers() or ()) if read_trailers else {}
    packed = trailers.get(DETAILS_KEY)
    return info_in(Status.FromString(packed)) if packed is not None else ("", {})


def info_in(status: Status) -> tuple[str, dict[str, str]]:
    """Return the ErrorInfo reason and metadata of a status, or empty ones."""
    for detail in status.details:
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

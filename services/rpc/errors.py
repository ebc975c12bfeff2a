"""The one error family of both services, free of gRPC.

Core code raises these; `services.rpc.status` alone turns them into a gRPC status. Each reason of
`ErrorReason` has exactly one usual code, listed in `CODES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from appsupervisor.errors.v1.error_reason_pb2 import ErrorReason


class Code(Enum):
    """Canonical codes of `google.rpc.Code`, by number."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


CODES: dict[str, Code] = {
    "INVALID_FIELD": Code.INVALID_ARGUMENT,
    "INVALID_FILTER": Code.INVALID_ARGUMENT,
    "INVALID_ORDER_BY": Code.INVALID_ARGUMENT,
    "INVALID_PAGE_TOKEN": Code.INVALID_ARGUMENT,
    "INVALID_RESUME_TOKEN": Code.INVALID_ARGUMENT,
    "REQUEST_ID_REUSED": Code.INVALID_ARGUMENT,
    "MALFORMED_REQUEST": Code.INVALID_ARGUMENT,
    "METHOD_NOT_FOUND": Code.UNIMPLEMENTED,
    "APP_NOT_FOUND": Code.NOT_FOUND,
    "ENVIRONMENT_NOT_FOUND": Code.NOT_FOUND,
    "NODE_NOT_FOUND": Code.NOT_FOUND,
    "INSTANCE_NOT_FOUND": Code.NOT_FOUND,
    "OPERATION_NOT_FOUND": Code.NOT_FOUND,
    "DATABASE_SERVER_NOT_FOUND": Code.NOT_FOUND,
    "CERTIFICATE_NOT_FOUND": Code.NOT_FOUND,
    "SERVICE_NOT_FOUND": Code.NOT_FOUND,
    "RETAINED_DATA_NOT_FOUND": Code.NOT_FOUND,
    "APP_ALREADY_EXISTS": Code.ALREADY_EXISTS,
    "ENVIRONMENT_ALREADY_EXISTS": Code.ALREADY_EXISTS,
    "DOMAIN_TAKEN": Code.ALREADY_EXISTS,
    "NODE_NAME_TAKEN": Code.ALREADY_EXISTS,
    "INSTANCE_EXISTS": Code.ALREADY_EXISTS,
    "DATABASE_SERVER_ALREADY_EXISTS": Code.ALREADY_EXISTS,
    "CERTIFICATE_ALREADY_EXISTS": Code.ALREADY_EXISTS,
    "PRIVATE_KEYS_NOT_GIVEN": Code.PERMISSION_DENIED,
    "ETAG_MISMATCH": Code.ABORTED,
    "OPERATION_SUPERSEDED": Code.ABORTED,
    "LEADERSHIP_LOST": Code.ABORTED,
    "OPERATION_CANCELLED": Code.CANCELLED,
    "OPERATION_DEADLINE_EXCEEDED": Code.DEADLINE_EXCEEDED,
    "APP_DELETING": Code.FAILED_PRECONDITION,
    "APP_STOPPED": Code.FAILED_PRECONDITION,
    "ENVIRONMENT_NOT_EMPTY": Code.FAILED_PRECONDITION,
    "ENVIRONMENT_PROTECTED": Code.FAILED_PRECONDITION,
    "STALE_EPOCH": Code.FAILED_PRECONDITION,
    "NODE_DRAINING": Code.FAILED_PRECONDITION,
    "INSTANCE_STOPPING": Code.FAILED_PRECONDITION,
    "OPERATION_NOT_CANCELLABLE": Code.FAILED_PRECONDITION,
    "OPERATION_NOT_DONE": Code.FAILED_PRECONDITION,
    "STALE_TERM": Code.FAILED_PRECONDITION,
    "NODE_NOT_LOST": Code.FAILED_PRECONDITION,
    "NODE_VERSION_UNSUPPORTED": Code.FAILED_PRECONDITION,
    "DATABASE_SERVER_IN_USE": Code.FAILED_PRECONDITION,
    "RETAINED_DATA_BUSY": Code.FAILED_PRECONDITION,
    "DATA_ON_NODE": Code.FAILED_PRECONDITION,
    "NODE_ALIVE": Code.FAILED_PRECONDITION,
    "NODE_NOT_ELIGIBLE": Code.FAILED_PRECONDITION,
    "DATA_LOST": Code.FAILED_PRECONDITION,
    "DATA_NOT_MOVED": Code.FAILED_PRECONDITION,
    "TICKET_INVALID": Code.FAILED_PRECONDITION,
    "RESUME_TOKEN_EXPIRED": Code.OUT_OF_RANGE,
    "NODE_FULL": Code.RESOURCE_EXHAUSTED,
    "DATABASE_SERVER_FULL": Code.RESOURCE_EXHAUSTED,
    "SERVER_BUSY": Code.RESOURCE_EXHAUSTED,
    "MESSAGE_TOO_LARGE": Code.RESOURCE_EXHAUSTED,
    "TOO_MANY_STREAMS": Code.RESOURCE_EXHAUSTED,
    "UNREAD_STREAMS": Code.RESOURCE_EXHAUSTED,
    "STORE_UNAVAILABLE": Code.UNAVAILABLE,
    "SHUTTING_DOWN": Code.UNAVAILABLE,
    "NODE_UNREACHABLE": Code.UNAVAILABLE,
    "DATABASE_SERVER_UNREACHABLE": Code.UNAVAILABLE,
    "NO_NODE_AVAILABLE": Code.UNAVAILABLE,
    "LEASE_EXPIRED": Code.UNAVAILABLE,
    "APP_MOVED": Code.UNAVAILABLE,
    "FORWARD_FAILED": Code.UNAVAILABLE,
    "FORWARD_BROKEN_OFF": Code.ABORTED,
    "ENTRYPOINT_MALFORMED": Code.INVALID_ARGUMENT,
    "ENTRYPOINT_MODULE_NOT_FOUND": Code.FAILED_PRECONDITION,
    "ENTRYPOINT_ATTRIBUTE_NOT_FOUND": Code.FAILED_PRECONDITION,
    "ENTRYPOINT_IMPORT_FAILED": Code.FAILED_PRECONDITION,
    "ENTRYPOINT_NOT_AN_APP": Code.FAILED_PRECONDITION,
    "APP_FACTORY_FAILED": Code.FAILED_PRECONDITION,
    "APP_STARTUP_FAILED": Code.FAILED_PRECONDITION,
    "APP_START_TIMEOUT": Code.FAILED_PRECONDITION,
    "APP_CRASHED": Code.FAILED_PRECONDITION,
    "APP_CRASH_LOOP": Code.FAILED_PRECONDITION,
    "DATABASE_UNAVAILABLE": Code.FAILED_PRECONDITION,
    "DATA_MISSING": Code.FAILED_PRECONDITION,
    "DATABASE_NOT_REMOVED": Code.FAILED_PRECONDITION,
    "DATABASE_NOT_MOVED": Code.FAILED_PRECONDITION,
    "DATABASE_TEMPLATE_UNUSABLE": Code.FAILED_PRECONDITION,
    "DATA_NOT_REMOVED": Code.FAILED_PRECONDITION,
    "APP_BLOCKED_LOOP": Code.FAILED_PRECONDITION,
    "ISOLATION_UNSUPPORTED": Code.FAILED_PRECONDITION,
    "APP_SHUTDOWN_FAILED": Code.FAILED_PRECONDITION,
    "APP_LEAKED": Code.FAILED_PRECONDITION,
    "APP_OUT_OF_MEMORY": Code.FAILED_PRECONDITION,
    "APP_EXITED": Code.FAILED_PRECONDITION,
    "APP_UNRESPONSIVE": Code.FAILED_PRECONDITION,
    "APP_UNHEALTHY": Code.FAILED_PRECONDITION,
    "CANARY_FAILED": Code.FAILED_PRECONDITION,
    "CANARY_NOT_PROVEN": Code.FAILED_PRECONDITION,
    "INTERNAL": Code.INTERNAL,
}


MAX_VIOLATIONS = 100
"""Violations that one error tells."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One field that breaks its rule: `field` as a path in the request, `rule` as a sentence."""

    field: str
    rule: str


class SupervisorError(Exception):
    """An expected failure with a reason a program can switch on and a sentence a person can act on.

    `reason` is a name of `ErrorReason`; `code` defaults to the reason's usual one. `resource` is the
    resource name it is about; `metadata` goes into `ErrorInfo`; `retry_after` (seconds) becomes
    `RetryInfo`. The message is public: never put a secret or a value of a secret field into it.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        code: Code | None = None,
        resource: str = "",
        violations: tuple[Violation, ...] = (),
        metadata: dict[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        ErrorReason.Value(reason)
        self.reason = reason
        self.code = code or CODES[reason]
        self.message = message
        self.resource = resource
        self.violations = violations
        self.metadata = metadata or {}
        self.retry_after = retry_after


def invalid_fields(violations: list[Violation]) -> SupervisorError:
    """Return the error that tells every violation at once, of very many the first ones."""
    first, more = violations[0], len(violations) - 1
    others = f" (and {more:,} more)" if more else ""
    return SupervisorError(
        "INVALID_FIELD",
        f"{first.field}: {first.rule}{others}",
        violations=tuple(violations[:MAX_VIOLATIONS]),
        metadata={"more": str(more)} if more else None,
    )


def invalid_field(field: str, rule: str) -> SupervisorError:
    """Return the error for one field that breaks its rule."""
    return invalid_fields([Violation(field, rule)])


def time_is_up(before: str) -> SupervisorError:
    """Return the error for a call whose time was up before something, told by the rest of a sentence."""
    return SupervisorError("OPERATION_DEADLINE_EXCEEDED", f"The call's time was up before {before}.")

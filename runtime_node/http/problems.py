"""Responses that the node itself gives: RFC 9457 problems with a reason a program can switch on.

Nothing a client sent goes into one unless it was checked to be an app id or a host name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from services.rpc.errors import SupervisorError

REASON_HEADER = b"x-appsupervisor-reason"


def status_line(status: int) -> bytes:
    """Return the HTTP/1.1 status line for a status."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode("ascii")


STATUS_LINES: dict[int, bytes] = {status: status_line(status) for status in range(100, 600)}


@dataclass(frozen=True, slots=True)
class Problem:
    """One answer of the node's own. `reason` is an `ErrorReason` or one of this module's words."""

    status: int
    reason: str
    detail: str
    retry_after: float | None = None
    """Seconds for `Retry-After`."""
    close: bool = False
    """The connection cannot be used any more."""
    members: Mapping[str, str] = field(default_factory=dict)
    location: bytes | None = None
    """For redirects; bytes that were accepted as a request target."""

    def body(self) -> bytes:
        """Return the JSON document."""
        document = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "reason": self.reason,
            "detail": self.detail,
            **self.members,
        }
        return json.dumps(document).encode("ascii") + b"\n"

    def fields(self, length: int) -> list[tuple[bytes, bytes]]:
        """Return the headers that tell it, for a body of `length` bytes."""
        found = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", b"%d" % length),
            (b"cache-control", b"no-store"),
            (REASON_HEADER, self.reason.encode("ascii")),
        ]
        if self.retry_after is not None:
            found.append((b"retry-after", b"%d" % max(1, math.ceil(self.retry_after))))
        if self.location is not None:
            found.append((b"location", self.location))
        return found

    def encode(self, *, date: bytes = b"", keep_alive: bool = False, head_only: bool = False) -> bytes:
        """Return the whole HTTP/1.1 response; `date` is a complete header line or empty."""
        body = self.body()
        parts = [STATUS_LINES[self.status], date]
        for name, value in self.fields(len(body)):
            parts += (name, b": ", value, b"\r\n")
        if not keep_alive:
            parts.append(b"connection: close\r\n")
        parts.append(b"\r\n")
        if not head_only:
            parts.append(body)
        return b"".join(parts)


class RefusedError(Exception):
    """Raised while a request is read: it is answered with the problem and the connection is closed."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.reason)
        self.problem = problem


def malformed(detail: str) -> Problem:
    """Return the 400 for a request that breaks a rule of HTTP."""
    return Problem(400, "MALFORMED_REQUEST", detail, close=True)


def app_not_found(by: str, value: str | None) -> Problem:
    """Return the 404 for an app that is not here; `value` only if it is known to be harmless."""
    members = {"lookup": by}
    if value is not None:
        members["value"] = value
    return Problem(404, "APP_NOT_FOUND", f"No app of this node answers to that {by}.", members=members)


def no_app_named(base_domain: str, *, hosts_only: bool) -> Problem:
    """Return the 404 for a request that names no app; it says how to name one."""
    detail = (
        "This is a node of AppSupervisor; the request names no app. Address one by its domain or as "
        f"<app>.{base_domain}"
    )
    detail += "." if hosts_only else ", with the header X-App: <app>, or under the path /apps/<app>/."
    return Problem(404, "NO_APP_NAMED", detail)


# What the public is told of an app, by reason. What an app says itself may name hosts, users and files.
_PUBLIC = {
    "APP_BLOCKED_LOOP": "The app blocked its event loop.",
    "APP_CRASHED": "The app's process ended.",
    "APP_CRASH_LOOP": "The app ended too often and is left so.",
    "APP_FACTORY_FAILED": "The app could not be built.",
    "APP_OUT_OF_MEMORY": "The app used more memory than it may.",
    "APP_EXITED": "The app ended by itself.",
    "APP_MOVED": "The app has moved on to another node meanwhile.",
    "APP_UNRESPONSIVE": "The app does not answer.",
    "APP_STARTUP_FAILED": "The app's startup failed.",
    "APP_STOPPED": "The app has been stopped.",
    "FORWARD_BROKEN_OFF": "The app has moved, and the node that has it broke off within the request.",
    "FORWARD_FAILED": "The app has moved, and the node that has it cannot be reached from here.",
    "INSTANCE_STOPPING": "The app is being stopped or replaced.",
    "MALFORMED_REQUEST": "The request cannot be forwarded as it is.",
    "NODE_DRAINING": "The node is shutting down.",
    "SERVER_BUSY": "The node forwards as many requests as it may.",
}
_CLOSED = "The app does not take requests now; its status says why."
# Failures of an app's process in the middle of a request; every other reason is answered 503.
_STATUSES = {
    "APP_CRASHED": 502, "APP_EXITED": 502, "APP_OUT_OF_MEMORY": 502, "APP_BLOCKED_LOOP": 504,
    "APP_UNRESPONSIVE": 504, "FORWARD_BROKEN_OFF": 502, "INTERNAL": 500, "MALFORMED_REQUEST": 400,
}  # fmt: skip


def unavailable(reason: str, retry_after: float | None = None) -> Problem:
    """Return the 503 of an app that takes no requests."""
    return Problem(503, reason, _PUBLIC.get(reason, _CLOSED), retry_after=retry_after)


def problem_of(error: SupervisorError) -> Problem:
    """Return what a failure outside of an app's code is answered with: its reason, and a fixed sentence."""
    if error.reason == "APP_BLOCKED_LOOP":
        return APP_BLOCKED_LOOP
    status = _STATUSES.get(error.reason, 503)
    detail = _PUBLIC.get(error.reason, _CLOSED if status == 503 else INTERNAL.detail)
    return Problem(status, error.reason, detail, retry_after=error.retry_after)


TARGET_TOO_LONG = Problem(414, "REQUEST_TARGET_TOO_LONG", "The request target is too long.", close=True)
HOST_NOT_LISTED = Problem(
    421,
    "HOST_NOT_LISTED",
    "This node finds apps by path or X-App only under its own names: loopback names, IP addresses, its base "
    "domain and hosts listed with --path-host.",
)
HEADERS_TOO_LARGE = Problem(431, "HEADERS_TOO_LARGE", "The request's headers are too large.", close=True)
HEADER_TIMEOUT = Problem(408, "HEADER_TIMEOUT", "The request's headers did not arrive in time.", close=True)
BODY_TIMEOUT = Problem(408, "BODY_TIMEOUT", "The request's body stopped arriving.", close=True)
BODY_TOO_LARGE = Problem(
    413, "REQUEST_BODY_TOO_LARGE", "The request's body is larger than this app accepts.", close=True
)
EXPECTATION_FAILED = Problem(417, "MALFORMED_REQUEST", "Only Expect: 100-continue is understood.", close=True)
METHOD_NOT_SUPPORTED = Problem(501, "METHOD_NOT_SUPPORTED", "CONNECT is not supported.", close=True)
SERVER_WIDE_OPTIONS = Problem(
    501, "METHOD_NOT_SUPPORTED", "OPTIONS is answered for one app, not for the node.", close=True
)
CODING_NOT_SUPPORTED = Problem(
    501, "CODING_NOT_SUPPORTED", "The only transfer coding understood is chunked, once.", close=True
)
VERSION_NOT_SUPPORTED = Problem(505, "VERSION_NOT_SUPPORTED", "Use HTTP/1.1 or HTTP/1.0.", close=True)
TOO_MANY_CONNECTIONS = Problem(
    503, "SERVER_BUSY", "The node has as many connections as it accepts.", retry_after=1, close=True
)
CROWDED_OUT = Problem(
    503, "SERVER_BUSY", "The request's headers were still incomplete when others needed its place.",
    retry_after=1, close=True,
)  # fmt: skip
QUEUE_FULL = Problem(503, "SERVER_BUSY", "The app has as many requests waiting as it accepts.", retry_after=1)
REQUEST_TIMEOUT = Problem(504, "REQUEST_TIMEOUT", "The app did not answer in time.", close=True)
APP_BLOCKED_LOOP = Problem(
    504, "APP_BLOCKED_LOOP", "The request blocked the app's event loop and was interrupted."
)
APP_RAISED = Problem(500, "APP_RAISED", "The app failed on this request.")
APP_NO_RESPONSE = Problem(500, "APP_NO_RESPONSE", "The app ended without a response.")
APP_BAD_RESPONSE = Problem(500, "APP_BAD_RESPONSE", "The app gave a response that may not be sent.")
INSTANCE_STOPPING = Problem(
    503, "INSTANCE_STOPPING", "The app is being stopped or replaced.", retry_after=1, close=True
)
NODE_DRAINING = Problem(503, "NODE_DRAINING", "The node is shutting down.", retry_after=1, close=True)
LEASE_EXPIRED = Problem(
    503, "LEASE_EXPIRED", "The node has lost touch with its control plane, and may not answer for this app.",
    retry_after=2,
)  # fmt: skip
INTERNAL = Problem(500, "INTERNAL", "A fault of the node; its log tells more.", close=True)

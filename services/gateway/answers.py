"""What the gateway answers by itself: a node's RFC 9457 problems, where no node gives them. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

REASON_HEADER = "x-appsupervisor-reason"

RETRY_AFTER_NODE = 2
"""Seconds after which an app whose node is gone may answer again: a failover takes some."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One answer. `members` may name request headers, as `%REQ(x)%`, of which it is known what they hold."""

    status: int
    reason: str
    detail: str
    retry_after: int | None = None
    """Seconds."""
    members: dict[str, str] = field(default_factory=dict)

    def body(self) -> str:
        """Return the JSON document."""
        document = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "reason": self.reason,
            "detail": self.detail,
            **self.members,
        }
        return json.dumps(document) + "\n"

    def headers(self) -> list[dict[str, Any]]:
        """Return the headers that come with it, as Envoy is told."""
        pairs = {
            "content-type": "application/problem+json",
            "cache-control": "no-store",
            REASON_HEADER: self.reason,
        }
        if self.retry_after is not None:
            pairs["retry-after"] = str(self.retry_after)
        return [
            {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
            for key, value in pairs.items()
        ]


_NOBODY = {
    "NO_NODE_AVAILABLE": "No node is there for the app yet.",
    "NODE_UNREACHABLE": "The app's node cannot be reached.",
}
_CLOSED = "The app does not take requests now; its status says why."


def nobody(reason: str) -> Problem:
    """Return the answer for an app that is on no node."""
    return Problem(503, reason, _NOBODY.get(reason, _CLOSED), retry_after=RETRY_AFTER_NODE)


def not_found(by: str) -> Problem:
    """Return the answer for an app that is not there, looked for by `host`, `X-App header` or `path`."""
    return Problem(
        404,
        "APP_NOT_FOUND",
        f"No app answers to that {by}.",
        members={"lookup": by, "value": "%REQ(x-appsupervisor-value)%"},
    )


def no_app_named(base_domain: str) -> Problem:
    """Return the answer for a request that names no app; it says how to name one."""
    return Problem(
        404,
        "NO_APP_NAMED",
        "This is a gateway of AppSupervisor; the request names no app. Address one by its domain or as "
        f"<app>.{base_domain}, with the header X-App: <app>, or under the path /apps/<app>/.",
    )


MALFORMED_HOST = Problem(400, "MALFORMED_REQUEST", "Host must name one host, with an optional port.")
MALFORMED = Problem(400, "MALFORMED_REQUEST", "The request breaks a rule of HTTP.")
HOST_NOT_LISTED = Problem(
    421,
    "HOST_NOT_LISTED",
    "This gateway finds apps by path or X-App only under its own names: loopback names, IP addresses, its "
    "base domains and hosts listed with --path-host.",
)
OVERLOADED = Problem(
    503, "SERVER_BUSY", "The gateway has as many requests for this app's node as it sends.", retry_after=1
)
UNREACHABLE = Problem(
    503, "NODE_UNREACHABLE", "The app's node cannot be reached.", retry_after=RETRY_AFTER_NODE
)
BROKEN_OFF = Problem(502, "NODE_UNREACHABLE", "The app's node ended the connection before it had answered.")
TIMEOUT = Problem(504, "REQUEST_TIMEOUT", "The app did not answer in time.")

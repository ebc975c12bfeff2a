"""What the node itself says to a gRPC client: statuses, messages and time limits, as gRPC writes them.

By https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md and http-grpc-status-mapping.md. Pure.
"""

from __future__ import annotations

import re
from urllib.parse import quote

from runtime_node.http.problems import REASON_HEADER, REQUEST_TIMEOUT, Problem, RefusedError, malformed

Fields = list[tuple[bytes, bytes]]

_CONTENT_TYPE = re.compile(rb"application/grpc(?:[+;].*)?", re.IGNORECASE | re.DOTALL)
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_BAD_TIMEOUT = malformed("grpc-timeout is not a number of at most eight digits and its unit.")
DEADLINE_EXCEEDED, UNKNOWN = 4, 2
_STATUSES = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}
STATUS_FIELDS = frozenset((b"grpc-status", b"grpc-message", b"grpc-status-details-bin"))
"""What says how a call has ended: in trailers, or in the head of an answer without a body."""


def is_grpc(content_type: bytes) -> bool:
    """Tell whether a request is a gRPC call; gRPC-Web is not one, it has its trailers in the body."""
    return _CONTENT_TYPE.fullmatch(content_type) is not None


def timeout_of(value: bytes) -> float:
    """Return the seconds of a `grpc-timeout`. Raises RefusedError (400) for one that is none."""
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        raise RefusedError(_BAD_TIMEOUT)
    return int(match[1]) * _SECONDS[match[2]]


def status_fields(problem: Problem, *, late: bool = False) -> Fields:
    """Return how the node ends a call for a problem; `late`: the caller's own time limit is over."""
    status = _STATUSES.get(problem.status, UNKNOWN)
    if late and problem.reason == REQUEST_TIMEOUT.reason:
        status = DEADLINE_EXCEEDED
    message = quote(f"{problem.reason}: {problem.detail}", safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~")
    return [
        (b"grpc-status", b"%d" % status),
        (b"grpc-message", message.encode("ascii")),
        (REASON_HEADER, problem.reason.encode("ascii")),
    ]


def whole_answer(problem: Problem, *, late: bool = False) -> Fields:
    """Return the head of an answer that is nothing but a status ("Trailers-Only")."""
    return [(b":status", b"200"), (b"content-type", b"application/grpc"), *status_fields(problem, late=late)]

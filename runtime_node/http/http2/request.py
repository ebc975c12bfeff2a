"""A request's fields as a checked head and an ASGI scope (RFC 9113 §8.2, §8.3), by the rules of HTTP/1.1."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from runtime_node.asgi import Scope
from runtime_node.http.http2.grpc import is_grpc, timeout_of
from runtime_node.http.problems import HEADERS_TOO_LARGE, TARGET_TOO_LONG, RefusedError, malformed
from runtime_node.http.request import FORWARDED, HEADER_NAMES, NOTED, Head, check_head, header_name
from runtime_node.http.scope import Endpoints, http_scope
from runtime_node.http.shared import FrontShared
from runtime_node.http.target import parse_target

_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
# As HTTP/1.1 has it: what is `post` to a check may be POST to the framework behind it.
_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Z-]{1,64}")
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]|\A[ \t]|[ \t]\Z")
_OF_A_CONNECTION = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"http2-settings")
)
_PSEUDO = frozenset((b":method", b":scheme", b":authority", b":path"))
_BAD_FIELD = malformed("A header is not as HTTP/2 has it.")
_BAD_PSEUDO = malformed("A request has :method, :scheme and :path once each, before its headers.")
SHORT_BODY = malformed("The body is shorter than its Content-Length.")
_TWO_HOSTS = malformed("Host and :authority differ.")


class Request(NamedTuple):
    """What was read of a request."""

    head: Head
    scope: Scope
    grpc: bool
    timeout: float | None
    """Seconds that a gRPC caller gives it."""


def read_request(
    shared: FrontShared, ends: Endpoints, fields: Iterable[tuple[bytes, bytes]], *, has_body: bool
) -> Request:
    """Read the fields of a request. Raises RefusedError with what it is answered."""
    head = Head(0)
    pseudo = _read_fields(head, fields, trusted=ends.trusted)
    limits = shared.limits
    if len(head.headers) > limits.max_headers or head.exact_size() > limits.max_header_bytes:
        raise RefusedError(HEADERS_TOO_LARGE)
    method = _check_pseudo(head, pseudo)
    target = pseudo[b":path"]
    if len(target) > limits.max_target_bytes:
        raise RefusedError(TARGET_TOO_LONG)
    raw_path, query, in_target = parse_target(target, method)
    if in_target is not None:
        raise RefusedError(_BAD_PSEUDO)
    check_head(head, method, "1.1", pseudo.get(b":authority"))
    if head.content_length and not has_body:
        raise RefusedError(SHORT_BODY)
    told = dict(head.headers)
    grpc = is_grpc(told.get(b"content-type", b""))
    timeout = told.get(b"grpc-timeout")
    scope = http_scope(head, "2", (raw_path, query), ends, shared.trusted)
    scope["extensions"] = {"http.response.trailers": {}}
    seconds = timeout_of(timeout) if grpc and timeout is not None else None
    return Request(head, scope, grpc, seconds)


def _read_fields(head: Head, fields: Iterable[tuple[bytes, bytes]], *, trusted: bool) -> dict[bytes, bytes]:
    pseudo: dict[bytes, bytes] = {}
    regular = False
    for name, value in fields:
        if name[:1] == b":":
            if name not in _PSEUDO or name in pseudo or regular:
                raise RefusedError(_BAD_PSEUDO)
            pseudo[name] = value
            continue
        regular = True
        kind = _kind_of(name, value)
        if kind == NOTED:
            head.note(name, value)
        elif kind == FORWARDED and trusted:
            head.forwarded = True
        elif kind:
            continue
        head.headers.append((name, value))
    return pseudo


def _kind_of(name: bytes, value: bytes) -> int:
    known = HEADER_NAMES.get(name)
    if known is None:
        if not _NAME.fullmatch(name):
            raise RefusedError(_BAD_FIELD)
        known = header_name(name)
    low, kind = known
    # What HTTP/1.1 has taught the table was a token there, but here it is in lower case.
    if low != name or name in _OF_A_CONNECTION or _BAD_VALUE.search(value):
        raise RefusedError(_BAD_FIELD)
    if name == b"te" and value.lower() != b"trailers":
        raise RefusedError(_BAD_FIELD)
    return kind


def _check_pseudo(head: Head, pseudo: dict[bytes, bytes]) -> str:
    method = pseudo.get(b":method", b"")
    if not _METHOD.fullmatch(method):
        raise RefusedError(_BAD_PSEUDO)
    if method == b"CONNECT":
        pseudo.setdefault(b":path", b"/")  # refused for what it is
    elif not pseudo.get(b":path") or not pseudo.get(b":scheme"):
        raise RefusedError(_BAD_PSEUDO)
    authority = pseudo.get(b":authority")
    if authority is not None:
        if head.host_count and head.authority != authority:
            raise RefusedError(_TWO_HOSTS)
        head.host_count = head.host_count or 1
    head.method = method.decode("ascii")
    return head.method

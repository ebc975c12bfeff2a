"""The heads of forwarded requests and of their responses: what of them goes on, and what is of one hop. Pure.

What is written here was read by the node's own strict reader; framing is said anew, in one way only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from runtime_node.asgi import Scope
from runtime_node.http.http2.grpc import is_grpc

HOP_HEADER = b"x-appsupervisor-forwarded"
"""Names the node that has forwarded a request: nobody forwards it once more."""

Headers = Iterable[tuple[bytes, bytes]]

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_VISIBLE = re.compile(rb"[\x21-\x7e]+")
# RFC 9110 §7.6.1, and what is said anew for each hop. Trailers are not passed on.
_OF_ONE_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
     b"http2-settings", b"content-length", HOP_HEADER)
)  # fmt: skip
# Over HTTP/2 these frame nothing; and "te: trailers" is how a gRPC client says that it reads them.
_OF_ALL_HOPS = frozenset((b"content-length", b"te"))
_OF_ONE_HANDSHAKE = frozenset((b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-extensions"))
# In a method that has no meaning for one, a body that was not announced is not sent on (RFC 9110 §9.3).
_WITHOUT_BODY = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "DELETE"))
# Whoever names these in `Connection` would have them missing where they are relied upon.
_KEPT = frozenset((b"host", b"x-app", b"authorization", b"cookie", b"origin"))


class UnsendableError(ValueError):
    """A request's head cannot be written for another node to read as it was meant."""


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request's head as it goes out, and how its body is framed."""

    data: bytes
    chunked: bool
    length: int
    """Bytes of the body; 0 for none, or for one that is chunked."""
    awaits_continue: bool
    head_only: bool
    """Its response has no body, whatever it says."""

    @property
    def has_body(self) -> bool:
        """Whether a body follows."""
        return self.chunked or self.length > 0


@dataclass(frozen=True, slots=True)
class RequestFields:
    """A request's head as it goes out over HTTP/2, where no head says how the body ends."""

    fields: list[tuple[bytes, bytes]]


def was_forwarded(scope: Scope) -> bool:
    """Tell whether a node has forwarded the request already."""
    return any(name == HOP_HEADER for name, _ in scope["headers"])


def is_grpc_call(scope: Scope) -> bool:
    """Tell whether a request came by HTTP/2 as a call of gRPC."""
    return scope.get("http_version") == "2" and is_grpc(dict(scope["headers"]).get(b"content-type", b""))


def request_head(scope: Scope, node: bytes, handshake_key: bytes = b"") -> RequestHead:
    """Return the head to send on for a scope of this node's front, as coming from `node`.

    With `handshake_key` it is a WebSocket handshake. Raises UnsendableError.
    """
    headers = scope["headers"]
    dropped = _OF_ONE_HOP | _named_in_connection(headers)
    if handshake_key:
        dropped |= _OF_ONE_HANDSHAKE
    length, chunked, expects, host = 0, False, False, False
    lines: list[bytes] = []
    for name, value in headers:
        _check(name, value)
        if name == b"content-length":
            length = int(value)
        elif name == b"transfer-encoding":
            chunked = True
        host = host or name == b"host"
        expects = expects or name == b"expect"
        if name not in dropped:
            lines += (name, b": ", value, b"\r\n")
    if scope.get("http_version") == "2" and not chunked and scope["method"] not in _WITHOUT_BODY:
        # There a body needs no announcement.
        chunked = not any(name == b"content-length" for name, _ in headers)
    if chunked and length:
        raise UnsendableError("The request says in more than one way how long its body is.")
    target = _target(scope)
    method = b"GET" if handshake_key else scope["method"].encode("ascii")
    # A request of HTTP/1.0 may come without a Host; then its app was found by path or X-App.
    first = [method, b" ", target, b" HTTP/1.1\r\n", b"" if host else b"host: localhost\r\n"]
    last = [HOP_HEADER, b": ", node, b"\r\n"]
    if chunked:
        last.append(b"transfer-encoding: chunked\r\n")
    elif any(name == b"content-length" for name, _ in headers):
        last.append(b"content-length: %d\r\n" % length)
    if handshake_key:
        last.append(
            b"connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
            b"sec-websocket-key: %b\r\n" % handshake_key
        )
    data = b"".join((*first, *lines, *last, b"\r\n"))
    head_only = method == b"HEAD"
    return RequestHead(data, chunked, length, expects and (chunked or length > 0), head_only)


def request_fields(scope: Scope, node: bytes) -> RequestFields:
    """Return the head to send on over HTTP/2, as coming from `node`, of a request that came over it.

    Raises UnsendableError.
    """
    fields: list[tuple[bytes, bytes]] = []
    authority = b"localhost"
    for name, value in scope["headers"]:
        _check(name, value)
        if name == b"host":
            authority = value
        elif name not in _OF_ONE_HOP or name in _OF_ALL_HOPS:
            fields.append((name, value))
    return RequestFields(
        [
            (b":method", scope["method"].encode("ascii")),
            (b":scheme", b"http"),
            (b":authority", authority),
            (b":path", _target(scope)),
            *fields,
            (HOP_HEADER, node),
        ]
    )


def _check(name: bytes, value: bytes) -> None:
    if not _TOKEN.fullmatch(name) or _BAD_VALUE.search(value):
        raise UnsendableError("A header has characters that no header may have.")


def _target(scope: Scope) -> bytes:
    query = scope["query_string"]
    target: bytes = scope["raw_path"] + (b"?" + query if query else b"")
    if not _VISIBLE.fullmatch(target):
        raise UnsendableError("The request target has characters that must be percent-encoded.")
    return target


def _named_in_connection(headers: Headers) -> frozenset[bytes]:
    named = {
        token.strip().lower()
        for name, value in headers
        if name == b"connection"
        for token in value.split(b",")
    }
    return frozenset(
        it for it in named if it not in _KEPT and not it.startswith((b"x-forwarded", b"forwarded"))
    )


def response_headers(headers: Headers, *, handshake: bool = False) -> list[tuple[bytes, bytes]]:
    """Return what goes on of a response's headers. Its framing is the front's to say, from Content-Length."""
    headers = list(headers)
    dropped = (_OF_ONE_HOP - {b"content-length"}) | _named_in_connection(headers)
    if handshake:
        dropped |= {b"content-length", b"sec-websocket-accept", b"sec-websocket-extensions"}
        dropped |= {b"sec-websocket-protocol", b"date"}
    return [(name, value) for name, value in headers if name not in dropped]

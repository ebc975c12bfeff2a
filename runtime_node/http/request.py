"""The head of a request: what its headers say about framing, addressing and upgrades, strictly read."""

from __future__ import annotations

import re

from runtime_node.http.problems import (
    CODING_NOT_SUPPORTED,
    EXPECTATION_FAILED,
    METHOD_NOT_SUPPORTED,
    VERSION_NOT_SUPPORTED,
    RefusedError,
    malformed,
)

_NOTED = frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"expect", b"upgrade", b"connection", b"x-app")
)
PLAIN, NOTED, FORWARDED, FORGED = range(4)
"""What a header is to the node: nothing, something to note, what a proxy says of its client, or something
that some frameworks take for that."""

_KNOWN_NAMES_LIMIT = 1024
_KNOWN_NAME_BYTES = 64
_LENGTH = re.compile(rb"[0-9]{1,18}")
_ONE_HOST = malformed("A request has exactly one Host.")
_ONE_X_APP = malformed("A request has at most one X-App.")
_FRAMING = malformed("The request says in more than one way how long its body is.")
_ONE_LENGTH = malformed("Content-Length is not one number of at most 18 digits.")
_WEBSOCKET = malformed("A WebSocket handshake is a GET of HTTP/1.1 without a body.")


def _kind_of(name: bytes) -> int:
    dashed = name.replace(b"_", b"-")
    if dashed in (b"forwarded", b"x-real-ip") or dashed.startswith(b"x-forwarded"):
        return FORWARDED if dashed == name else FORGED
    return NOTED if name in _NOTED else PLAIN


HEADER_NAMES: dict[bytes, tuple[bytes, int]] = {}
"""Names as they came → in lower case, and their kind. Bounded; `header_name` knows what is not in it."""


def header_name(name: bytes) -> tuple[bytes, int]:
    """Return a header's name in lower case and its kind, and remember it while there is room."""
    low = name.lower()
    found = low, _kind_of(low)
    if len(HEADER_NAMES) < _KNOWN_NAMES_LIMIT and len(name) <= _KNOWN_NAME_BYTES:
        HEADER_NAMES[name] = found
    return found


# So that no flood of invented names keeps them out.
for _name in _NOTED:
    header_name(_name)
    header_name(_name.title())


class Head:
    """A request's head while it is read, and what was noted of it."""

    __slots__ = (
        "authority", "awaits_continue", "chunked", "connection", "content_length", "expect",
        "first_size", "forwarded", "headers",
        "host_count", "later_size", "method", "target", "transfer_encoding", "upgrade",
        "wants_websocket", "x_app",
    )  # fmt: skip

    def __init__(self, first_size: int) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        # Bytes of the read in which the head began, and of those after it: at least as many as the head has.
        self.first_size = first_size
        self.later_size = 0
        self.authority = b""
        self.host_count = 0
        self.x_app: bytes | None = None
        self.content_length: int | None = None
        self.transfer_encoding: bytes | None = None
        self.expect: bytes | None = None
        self.upgrade = b""
        self.connection = b""
        self.chunked = False
        self.forwarded = False
        self.awaits_continue = False
        self.wants_websocket = False
        self.method = ""

    def exact_size(self) -> int:
        """Return the bytes of the header section, as it would be written plainly."""
        return sum(len(name) + len(value) + 4 for name, value in self.headers)

    def note(self, name: bytes, value: bytes) -> None:
        """Note a header whose kind is `NOTED`. Raises RefusedError (400) for one that may come only once."""
        if name == b"host":
            self.host_count += 1
            self.authority = value
        elif name == b"content-length":
            # llhttp refuses a second one, but tells of a number that is too long only after this.
            if self.content_length is not None or not _LENGTH.fullmatch(value):
                raise RefusedError(_ONE_LENGTH)
            self.content_length = int(value)
        elif name == b"transfer-encoding":
            known = self.transfer_encoding
            self.transfer_encoding = value if known is None else known + b"," + value
        elif name == b"connection":
            self.connection += b"," + value
        elif name == b"upgrade":
            self.upgrade += b"," + value
        elif name == b"expect":
            self.expect = value
        else:
            if self.x_app is not None:
                raise RefusedError(_ONE_X_APP)
            self.x_app = value


def check_head(head: Head, method: str, version: str, target_authority: bytes | None) -> None:
    """Draw the conclusions from a complete head. Raises RefusedError with what it is answered."""
    if version not in ("1.1", "1.0"):
        raise RefusedError(VERSION_NOT_SUPPORTED)
    if method == "CONNECT":
        raise RefusedError(METHOD_NOT_SUPPORTED)
    if head.host_count > 1 or (head.host_count == 0 and version == "1.1"):
        raise RefusedError(_ONE_HOST)
    if target_authority is not None:
        # RFC 9112 §3.2.2: the target's authority replaces Host, for the app as well.
        head.authority = target_authority
        head.headers[:] = [(name, value) for name, value in head.headers if name != b"host"]
        head.headers.insert(0, (b"host", target_authority))
    if head.transfer_encoding is not None:
        if head.content_length is not None or version == "1.0":
            raise RefusedError(_FRAMING)
        if head.transfer_encoding.strip().lower() != b"chunked":
            raise RefusedError(CODING_NOT_SUPPORTED)
        head.chunked = True
    if head.expect is not None and version == "1.1":
        if head.expect.strip().lower() != b"100-continue":
            raise RefusedError(EXPECTATION_FAILED)
        head.awaits_continue = head.chunked or bool(head.content_length)
    if head.upgrade and b"websocket" in _tokens(head.upgrade) and b"upgrade" in _tokens(head.connection):
        if method != "GET" or version != "1.1" or head.chunked or head.content_length:
            raise RefusedError(_WEBSOCKET)
        head.wants_websocket = True


def _tokens(value: bytes) -> list[bytes]:
    return [token.strip() for token in value.lower().split(b",")]

"""An app's response: its head checked, its body framed for HTTP/1.1."""

from __future__ import annotations

import re
from collections.abc import Iterable

from runtime_node.http.cookies import without_shared_domain
from runtime_node.http.problems import REASON_HEADER, STATUS_LINES

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_LENGTH_DIGITS = 18
_KNOWN_NAMES_LIMIT = 1024
_KNOWN_NAME_BYTES = 64
# What they say is for the node to say.
_RESERVED = frozenset(
    (b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"upgrade", REASON_HEADER)
)
_SENT, _RESERVED_NAME, _DATE, _COOKIE = range(4)
"""What a header's name asks for: to be sent as it is, or to be looked at."""
NO_BODY_STATUSES = frozenset((204, 304))
"""Answers that end with their head."""
UNTIL_CLOSE = -1
"""What remains of a body whose length nobody knows before its end."""

_known_names: dict[bytes, tuple[bytes, bytes, int]] = {}
"""Names as apps write them → in lower case, as the beginning of a line, and what they ask for."""


class BadResponseError(RuntimeError):
    """The app gave a response that may not be sent: it would let the app or its client forge bytes."""


def plain_bytes(value: object) -> bytes:
    """Return what an app gives as bytes that are nothing else. Raises TypeError for what is none.

    Another kind may be changed before it is sent, and a class of an app's own may tell a wrong length of it,
    or become other bytes than were looked at: a client would read the rest as an answer of its own.
    """
    kind = type(value)
    if kind is bytes:
        return value  # type: ignore[return-value]
    if kind is memoryview:
        return value.tobytes()  # type: ignore[attr-defined,no-any-return]
    if not issubclass(kind, (bytes, bytearray)):
        raise TypeError(f"What is sent is bytes, not {kind.__name__}.")
    return b"".join((value,))  # type: ignore[arg-type]


def _plain_status(status: object) -> int:
    """Return a status as a number that is nothing else; 0 of what is no number."""
    return int.__int__(status) if issubclass(type(status), int) else 0  # type: ignore[arg-type]


class Response:
    """A response's head, and how the end of its body is told. Nothing changes when a method raises."""

    __slots__ = (
        "_chunked", "_content_length", "_date", "_lines", "_no_body", "_remaining", "close", "status",
        "widened_cookie",
    )  # fmt: skip

    def __init__(
        self,
        status: int,
        headers: Iterable[tuple[bytes, bytes]],
        base_domain: str,
        *,
        relayed: bool = False,
    ) -> None:
        """Check and take the head of a response; one that is `relayed` may be of a node. Raises
        BadResponseError."""
        if type(status) is not int:
            status = _plain_status(status)
        if status not in STATUS_LINES or status < 200:
            raise BadResponseError("The status is not a number from 200 to 599.")
        self.status = status
        self.close = False
        """The app asked for the end of the connection."""
        self.widened_cookie = False
        """A `Domain` that covers other apps was taken from a cookie."""
        self._content_length: int | None = None
        self._date = False
        self._chunked = False
        self._no_body = False
        self._remaining = 0
        self._lines: list[bytes] = [STATUS_LINES[status]]
        lines = self._lines
        for name, value in headers:
            if type(value) is not bytes:
                value = plain_bytes(value)  # noqa: PLW2901
            low, begun, kind = _known_names.get(name) or _checked_name(name)
            if _BAD_VALUE.search(value):
                raise _bad_value(low)
            if kind:
                if kind == _RESERVED_NAME:
                    if not (relayed and low == REASON_HEADER):
                        self._reserved(low, value)
                        continue
                elif kind == _DATE:
                    self._date = True
                else:
                    kept = without_shared_domain(value, base_domain)
                    self.widened_cookie |= kept is not value
                    value = kept  # noqa: PLW2901
            lines += (begun, value, b"\r\n")

    def _reserved(self, name: bytes, value: bytes) -> None:
        if name == b"content-length":
            if not value.isdigit() or len(value) > _LENGTH_DIGITS:
                raise BadResponseError("Content-Length is not a number.")
            length = int(value)
            if self._content_length not in (None, length):
                raise BadResponseError("There are two different Content-Length.")
            self._content_length = length
        elif name == b"connection" and b"close" in [token.strip() for token in value.lower().split(b",")]:
            self.close = True

    def begin(
        self, body: bytes, more: bool, head_only: bool, version: str, keep_alive: bool, date: bytes
    ) -> tuple[bytes, bool]:
        """Return the bytes of the head with the first piece of the body, and whether the connection stays.

        Raises BadResponseError for a body that is not as long as its Content-Length.
        """
        length = self._content_length
        no_body = head_only or self.status in NO_BODY_STATUSES
        size = 0 if no_body else len(body)
        remaining = (
            0 if length is None or self.status == 204 else rest_of_body(0 if no_body else length, size, more)
        )
        # From here on nothing is refused.
        lines = self._lines
        if self.status == 204:
            pass
        elif length is not None:
            lines.append(b"content-length: %d\r\n" % length)
        elif no_body:
            pass
        elif not more:
            lines.append(b"content-length: %d\r\n" % size)
        elif version == "1.1":
            self._chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        else:
            keep_alive = False
            remaining = UNTIL_CLOSE
        self._no_body, self._remaining = no_body, remaining
        if not keep_alive:
            lines.append(b"connection: close\r\n")
        if not self._date:
            lines.append(date)
        lines.append(b"\r\n")
        if size:
            lines += (b"%x\r\n" % size, body, b"\r\n") if self._chunked else (body,)
        self._lines = []
        return b"".join(lines), keep_alive

    def piece(self, body: bytes, more: bool) -> bytes:
        """Return the bytes of a further piece of the body. Raises BadResponseError as `begin`."""
        if self._chunked:
            end = b"" if more else b"0\r\n\r\n"
            return b"".join((b"%x\r\n" % len(body), body, b"\r\n", end)) if body else end
        if self._no_body:
            body = b""
        if self._remaining != UNTIL_CLOSE:
            self._remaining = rest_of_body(self._remaining, len(body), more)
        return body


def rest_of_body(length: int, size: int, more: bool) -> int:
    """Return what remains of a body after a piece. Raises BadResponseError for too much or too little."""
    if size > length or (not more and size < length):
        raise BadResponseError("The response's body is not as long as its Content-Length.")
    return length - size


def check_handshake(
    status: int, headers: Iterable[tuple[bytes, bytes]], base_domain: str
) -> tuple[list[tuple[bytes, bytes]], bool]:
    """Return the headers of an answer to a WebSocket handshake that are the app's to set, and whether a
    `Domain` that covers other apps was taken from a cookie.

    Raises BadResponseError.
    """
    status = _plain_status(status)
    if not 200 <= status <= 599:
        raise BadResponseError("The status is not a number from 200 to 599.")
    kept: list[tuple[bytes, bytes]] = []
    widened = False
    for name, given in headers:
        value = plain_bytes(given)
        low, _, kind = _known_names.get(name) or _checked_name(name)
        if _BAD_VALUE.search(value):
            raise _bad_value(low)
        if kind == _COOKIE:
            own = without_shared_domain(value, base_domain)
            widened |= own is not value
            kept.append((low, own))
        elif kind != _RESERVED_NAME:
            kept.append((low, value))
    return kept, widened


def _bad_value(name: bytes) -> BadResponseError:
    return BadResponseError(f"The value of the response header {name.decode()!r} has control characters.")


def _checked_name(name: bytes) -> tuple[bytes, bytes, int]:
    name = plain_bytes(name)
    if not _TOKEN.fullmatch(name):
        raise BadResponseError("The name of a response header is not a token.")
    low = name.lower()
    known = low, low + b": ", _kind_of(low)
    if len(_known_names) < _KNOWN_NAMES_LIMIT and len(name) <= _KNOWN_NAME_BYTES:
        _known_names[name] = known
    return known


def _kind_of(low: bytes) -> int:
    if low in _RESERVED:
        return _RESERVED_NAME
    return {b"date": _DATE, b"set-cookie": _COOKIE}.get(low, _SENT)

"""The head of an app's response: checked, and framed for HTTP/1.1."""

from __future__ import annotations

import re
from collections.abc import Iterable

from runtime_node.http.problems import REASON_HEADER, STATUS_LINES

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_KNOWN_NAMES_LIMIT = 1024
# What they say is for the node to say.
_RESERVED = frozenset(
    (b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"upgrade", REASON_HEADER)
)

_known_names: dict[bytes, bytes] = {}


class BadResponseError(RuntimeError):
    """The app gave a response that may not be sent: it would let the app or its client forge bytes."""


class ResponseHead:
    """A response's status and headers, ready to be sent once the framing of its body is known."""

    __slots__ = ("close", "content_length", "date", "lines", "status")

    def __init__(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Check and take the head of a response. Raises BadResponseError."""
        if status not in STATUS_LINES or status < 200:
            raise BadResponseError("The status is not a number from 200 to 599.")
        self.status = status
        self.content_length: int | None = None
        self.close = False
        self.date = False
        self.lines: list[bytes] = [STATUS_LINES[status]]
        lines = self.lines
        for name, value in headers:
            low = _known_names.get(name) or _checked_name(name)
            if _BAD_VALUE.search(value):
                raise _bad_value(low)
            if low in _RESERVED:
                self._reserved(low, value)
                continue
            if low == b"date":
                self.date = True
            lines += (low, b": ", value, b"\r\n")

    def _reserved(self, name: bytes, value: bytes) -> None:
        if name == b"content-length":
            if not value.isdigit():
                raise BadResponseError("Content-Length is not a number.")
            length = int(value)
            if self.content_length not in (None, length):
                raise BadResponseError("There are two different Content-Length.")
            self.content_length = length
        elif name == b"connection" and b"close" in [token.strip() for token in value.lower().split(b",")]:
            self.close = True


def check_handshake(status: int, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the headers of an answer to a WebSocket handshake that are the app's to set.

    Raises BadResponseError.
    """
    if not 200 <= status <= 599:
        raise BadResponseError("The status is not a number from 200 to 599.")
    kept: list[tuple[bytes, bytes]] = []
    for name, value in headers:
        low = _known_names.get(name) or _checked_name(name)
        if _BAD_VALUE.search(value):
            raise _bad_value(low)
        if low not in _RESERVED:
            kept.append((low, value))
    return kept


def _bad_value(name: bytes) -> BadResponseError:
    return BadResponseError(f"The value of the response header {name.decode()!r} has control characters.")


def _checked_name(name: bytes) -> bytes:
    if not _TOKEN.fullmatch(name):
        raise BadResponseError("The name of a response header is not a token.")
    low = bytes(name).lower()
    if len(_known_names) < _KNOWN_NAMES_LIMIT:
        _known_names[bytes(name)] = low
    return low

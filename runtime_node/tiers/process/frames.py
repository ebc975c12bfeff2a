"""The frames in which one ASGI exchange travels between the node's front and a guest.

One connection carries one exchange at a time and is reused after `END`. The node is trusted by the
guest, never the reverse: what a guest sends is parsed by length-checked structs only.
"""

from __future__ import annotations

import marshal
import struct
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from typing import Any, Final

HEADER: Final = struct.Struct("<BI")
MAX_FRAME_BYTES: Final = 1 << 18
"""Longest frame a guest may send; it splits what is longer, so a reader's memory is bounded."""
MAX_MESSAGE_BYTES: Final = 16 << 20
"""Longest WebSocket message, either way; uvicorn's own default."""
MAX_HEADER_BYTES: Final = MAX_FRAME_BYTES - 1024
MAX_FAULT_BYTES: Final = 16 << 10
MAX_HEADERS: Final = 1_000
"""In one response: each costs the front a look, however short it is."""
MAX_FRAMES_AT_ONCE: Final = 64
"""Taken by a loop before it turns to others: the smallest frame has five bytes, a buffer many thousands."""

_START = struct.Struct("<HBI")
_PAIR = struct.Struct("<HI")


class Frame(IntEnum):
    """Kinds of frame: below 16 from the node, from 16 on from the guest."""

    REQUEST = 1
    """A marshalled scope; the exchange begins."""
    BODY_PART = 2
    """Part of the request's body; more follows when asked for."""
    BODY_LAST = 3
    """The rest of the request's body."""
    DISCONNECT = 4
    """The client is gone: two bytes of WebSocket close code, then the reason."""
    CONNECT = 5
    TEXT_IN = 6
    BYTES_IN = 7
    CANCEL = 8
    """The node gave the exchange up: the app's task is cancelled."""

    WANT = 16
    """The app awaits its next event; the node never sends one unasked."""
    START = 17
    PART = 18
    """Part of the response's body; more follows."""
    LAST = 19
    """The end of the response's body."""
    END = 20
    """The app's callable returned; the connection is free."""
    FAULT = 21
    """The app's callable raised: one byte of `FaultKind`, then the text; the connection is free."""
    ACCEPT = 22
    TEXT_OUT = 23
    BYTES_OUT = 24
    FRAGMENT = 25
    """The first part of a WebSocket message that a `TEXT_OUT` or `BYTES_OUT` completes."""
    CLOSE = 26
    DENIAL_START = 27
    DENIAL_PART = 28
    DENIAL_LAST = 29
    TRAILERS = 30
    """What a response ends with, packed as its start; only for a response whose start announced it."""


class FaultKind(IntEnum):
    """Why an app's callable ended with an exception."""

    RAISED = 0
    BLOCKED = 1
    """It was interrupted because it blocked its loop."""


class MalformedFrameError(Exception):
    """The peer sent bytes that are no frames; the connection is of no use any more."""


def frame(kind: Frame, payload: bytes = b"") -> bytes:
    """Return one frame as bytes."""
    return HEADER.pack(kind, len(payload)) + payload


def split(kind_part: Frame, kind_last: Frame, data: bytes) -> Iterator[bytes]:
    """Return the frames of `data`, each within `MAX_FRAME_BYTES`, the last one of `kind_last`."""
    if len(data) <= MAX_FRAME_BYTES:
        yield HEADER.pack(kind_last, len(data))
        if data:
            yield data
        return
    view = memoryview(data)
    position = 0
    while len(data) - position > MAX_FRAME_BYTES:
        yield HEADER.pack(kind_part, MAX_FRAME_BYTES)
        yield bytes(view[position : position + MAX_FRAME_BYTES])
        position += MAX_FRAME_BYTES
    yield HEADER.pack(kind_last, len(data) - position)
    yield bytes(view[position:])


class Reader:
    """Cuts a byte stream into frames of at most `limit` bytes, as many at a time as are asked for.

    What it costs to add bytes does not depend on how much waits already, nor on how small the pieces are.
    """

    __slots__ = ("_data", "_limit", "_more", "_needed", "_position", "waiting_bytes")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._data = b""
        self._position = 0
        self._more: list[bytes] = []
        self._needed = HEADER.size
        """Bytes that must wait before there can be another frame."""
        self.waiting_bytes = 0
        """Bytes that were fed and not taken."""

    @property
    def ready(self) -> bool:
        """Whether a look for another frame is worth it."""
        return self.waiting_bytes >= self._needed

    def feed(self, data: bytes) -> None:
        """Add what came."""
        self.waiting_bytes += len(data)
        if self._position == len(self._data):
            self._data, self._position = data, 0
        else:
            self._more.append(data)

    def take(self, count: int = MAX_FRAMES_AT_ONCE) -> list[tuple[int, bytes]]:
        """Return the next complete frames, at most `count`. Raises MalformedFrameError for one too long."""
        found: list[tuple[int, bytes]] = []
        while len(found) < count and self.waiting_bytes >= self._needed:
            if len(self._data) - self._position < self._needed:
                self._data = b"".join((self._data[self._position :], *self._more))
                self._more.clear()
                self._position = 0
            kind, length = HEADER.unpack_from(self._data, self._position)
            if length > self._limit:
                raise MalformedFrameError(f"a frame of {length} bytes is longer than {self._limit}")
            size = HEADER.size + length
            if self.waiting_bytes < size:
                self._needed = size
                break
            if len(self._data) - self._position < size:
                self._needed = size
                continue
            start, self._position = self._position + HEADER.size, self._position + size
            found.append((kind, self._data[start : self._position]))
            self.waiting_bytes -= size
            self._needed = HEADER.size
        return found


SCOPE_KEYS: Final = (
    "type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path",
    "client", "server", "subprotocols",
)  # fmt: skip

_EXTENSIONS: Final = ("websocket.http.response", "http.response.trailers")


def pack_scope(scope: Mapping[str, Any], body_follows: bool) -> bytes:
    """Return a connection scope for a guest: what ASGI defines, and nothing else of the front's."""
    carried = {key: scope[key] for key in SCOPE_KEYS if key in scope}
    carried["headers"] = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
    carried["asgi"] = dict(scope["asgi"])
    known = [name for name in _EXTENSIONS if name in (scope.get("extensions") or ())]
    if known:
        carried["extensions"] = {name: {} for name in known}
    for key in ("client", "server"):
        if carried.get(key) is not None:
            carried[key] = tuple(carried[key])
    if "subprotocols" in carried:
        carried["subprotocols"] = list(carried["subprotocols"])
    return marshal.dumps((body_follows, carried))


def unpack_scope(payload: bytes) -> tuple[bool, dict[str, Any]]:
    """Return (body follows, scope) as the node packed it. Only a guest calls this, on its node's bytes."""
    body_follows, scope = marshal.loads(payload)  # noqa: S302  (from the node, by the same interpreter)
    return body_follows, scope


def pack_start(status: int, headers: Iterable[Iterable[bytes]], trailers: bool = False) -> bytes:
    """Return the payload of `START`. Raises ValueError beyond `MAX_HEADER_BYTES` or `MAX_HEADERS`."""
    out = [b""]
    count = 0
    for name, value in headers:
        out.append(_PAIR.pack(len(name), len(value)))
        out.append(bytes(name))
        out.append(bytes(value))
        count += 1
    if count > MAX_HEADERS:
        raise ValueError(f"{count} response headers are more than {MAX_HEADERS}")
    out[0] = _START.pack(status, trailers, count)
    payload = b"".join(out)
    if len(payload) > MAX_HEADER_BYTES:
        raise ValueError(f"response headers of {len(payload)} bytes exceed {MAX_HEADER_BYTES}")
    return payload


def unpack_start(payload: bytes) -> tuple[int, list[tuple[bytes, bytes]], bool]:
    """Return (status, headers, whether trailers follow the body).

    Raises MalformedFrameError when the payload isn't what its lengths say.
    """
    try:
        status, trailers, count = _START.unpack_from(payload)
        if count > MAX_HEADERS:
            raise MalformedFrameError(f"{count} response headers are more than {MAX_HEADERS}")
        position = _START.size
        headers = []
        for _ in range(count):
            name_length, value_length = _PAIR.unpack_from(payload, position)
            position += _PAIR.size
            middle = position + name_length
            end = middle + value_length
            headers.append((payload[position:middle], payload[middle:end]))
            position = end
    except struct.error as error:
        raise MalformedFrameError("a response start is cut short") from error
    if position != len(payload):
        raise MalformedFrameError("a response start does not have the length it tells")
    return status, headers, bool(trailers)

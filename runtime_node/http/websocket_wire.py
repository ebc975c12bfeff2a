"""The frames of one WebSocket (RFC 6455): bytes in, messages out one at a time, and back. No I/O.

Frames, masks, closing and permessage-deflate are the websockets library's; it is given one frame at a
time, so that nothing is decompressed before somebody wants it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from websockets.client import ClientProtocol
from websockets.datastructures import Headers
from websockets.exceptions import InvalidState
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN, Protocol
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

_INVALID_DATA = 1007
_TOO_BIG = 1009
_FRAMES_AT_ONCE = 64
_ABNORMAL = 1006
# Small windows, and little for the encoder: a connection with compression costs some 30 KiB, not 300.
_WINDOW_BITS = 12
_COMPRESSION = {"memLevel": 5}
# Where a client connects to is asked for a handshake only.
_NOWHERE = parse_uri("ws://localhost/")

_quiet = logging.getLogger("runtime_node.http.websocket.wire")
_quiet.setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message from the client."""

    data: str | bytes
    size: int
    """Bytes of memory that it takes."""


@dataclass(frozen=True, slots=True)
class Ping:
    """A ping; its pong is in the output already."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The client closed, or broke the protocol; what it is owed is in the output already."""

    code: int
    reason: str
    broken: bool = False
    """The protocol was broken: more may be on its way from the client."""


Event = Incoming | Ping | Closed


class WebSocketWire:
    """One side of one WebSocket, from its handshake on; as made the server's."""

    _peer_masks = True

    def __init__(self, max_message_bytes: int, *, compression: bool) -> None:
        extensions = None
        if compression:
            extensions = [
                ServerPerMessageDeflateFactory(
                    server_max_window_bits=_WINDOW_BITS,
                    client_max_window_bits=_WINDOW_BITS,
                    compress_settings=_COMPRESSION,
                )
            ]
        # The handshake's head was read and checked already: the library begins with frames.
        self._server = ServerProtocol(
            state=OPEN, extensions=extensions, max_size=max_message_bytes, logger=_quiet
        )
        self._conn: Protocol = self._server
        self._most = max_message_bytes
        self._raw = bytearray()
        self._fragments: list[bytes] = []
        self._fragment_bytes = 0
        self._text = False

    def accept(self, headers: Iterable[tuple[bytes, bytes]]) -> tuple[bool, bytes]:
        """Check a handshake; return whether it is one, and the head of its answer or the whole refusal."""
        request = Request(
            "/", Headers((name.decode("ascii"), value.decode("latin-1")) for name, value in headers)
        )
        response = self._server.accept(request)
        del response.headers["Date"]
        data = response.serialize()
        return response.status_code == 101, data[:-2] if response.status_code == 101 else data

    @property
    def held(self) -> int:
        """Bytes held of a message that is not complete."""
        return len(self._raw) + self._fragment_bytes

    def drop(self) -> None:
        """Let go of what is held."""
        self._raw.clear()
        self._fragments.clear()
        self._fragment_bytes = 0

    def feed(self, data: bytes | memoryview) -> None:
        """Take bytes from the client; `step` takes them apart."""
        self._raw += data

    def step(self) -> Event | None:
        """Take one event out of what was fed; None when it needs more bytes for one, or after many frames
        that made none: then `pending` tells."""
        conn = self._conn
        for _ in range(_FRAMES_AT_ONCE):
            size = self._first_frame()
            if not size:
                break
            frame_bytes = bytes(self._raw[:size])
            del self._raw[:size]
            conn.receive_data(frame_bytes)
            if conn.parser_exc is not None:
                return self._failed()
            for frame in conn.events_received():
                assert isinstance(frame, Frame)
                event = self._event_of(frame)
                if event is not None:
                    return event
        return None

    @property
    def pending(self) -> bool:
        """Whether `step` has something to do."""
        return self._first_frame() > 0

    def _first_frame(self) -> int:
        """Return the size of the first frame if all of it is there, or of as much as it is refused by."""
        raw = self._raw
        if len(raw) < 2:
            return 0
        masked, length = raw[1] & 0x80, raw[1] & 0x7F
        if bool(masked) is not self._peer_masks:
            return 2
        start = 2
        if length >= 126:
            start = 4 if length == 126 else 10
            if len(raw) < start:
                return 0
            length = int.from_bytes(raw[2:start], "big")
            if length > self._most:
                return start
        size = start + (4 if masked else 0) + length
        return size if len(raw) >= size else 0

    def _event_of(self, frame: Frame) -> Event | None:
        match frame.opcode:
            case Opcode.TEXT | Opcode.BINARY | Opcode.CONT:
                return self._data(frame)
            case Opcode.PING:
                return Ping()
            case Opcode.PONG:
                return None
            case _:
                close = self._conn.close_rcvd
                assert close is not None
                return Closed(close.code, close.reason)

    def _data(self, frame: Frame) -> Event | None:
        if frame.opcode is not Opcode.CONT:
            self._text = frame.opcode is Opcode.TEXT
        data = bytes(frame.data)
        if not frame.fin:
            self._fragments.append(data)
            # An empty one takes memory, too.
            self._fragment_bytes += sys.getsizeof(data)
            if self._fragment_bytes > 2 * self._most + 4096:
                return self.fail(_TOO_BIG, "a message in too many fragments")
            return None
        if self._fragments:
            data = b"".join((*self._fragments, data))
            self._fragments = []
            self._fragment_bytes = 0
        if not self._text:
            return Incoming(data, sys.getsizeof(data))
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return self.fail(_INVALID_DATA, "a text message is not UTF-8")
        return Incoming(text, sys.getsizeof(text))

    def fail(self, code: int, reason: str) -> Closed:
        """Close because of what the client did, and take nothing more."""
        self._conn.fail(code, reason)
        self.drop()
        return Closed(code, reason, broken=True)

    def _failed(self) -> Closed:
        close = self._conn.close_sent
        code, reason = (_ABNORMAL, "") if close is None else (close.code, close.reason)
        return Closed(code, reason, broken=True)

    # --- to the client ---

    def send(self, data: str | bytes) -> None:
        """Put a message into the output. Raises InvalidState after a close."""
        if isinstance(data, str):
            self._conn.send_text(data.encode())
        else:
            self._conn.send_binary(data)

    def ping(self) -> None:
        """Put a ping into the output."""
        self._conn.send_ping(b"")

    def close(self, code: int, reason: str = "") -> bool:
        """Put a close into the output, unless there was one; tell whether it did.

        Raises ProtocolError for a code or reason that may not be sent.
        """
        try:
            self._conn.send_close(code, reason)
        except InvalidState:
            return False
        return True

    def output(self) -> bytes:
        """Return what is to be written to the client now."""
        return b"".join(self._conn.data_to_send())


class ClientWire(WebSocketWire):
    """The client's side of one WebSocket whose handshake is over."""

    _peer_masks = False

    def __init__(self, max_message_bytes: int) -> None:
        super().__init__(max_message_bytes, compression=False)
        self._conn = ClientProtocol(_NOWHERE, state=OPEN, max_size=max_message_bytes, logger=_quiet)

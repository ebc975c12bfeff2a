"""What an app sees of its WebSocket: ASGI `websocket`, with what it says checked before it makes bytes."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from enum import Enum, auto
from typing import Any, Protocol

from runtime_node.asgi import Message, Scope
from runtime_node.http.flow import Flow
from runtime_node.http.gate import Gate
from runtime_node.http.gated_request import ClientGoneError
from runtime_node.http.problems import STATUS_LINES
from runtime_node.http.response import BadResponseError, Response, check_handshake, plain_bytes
from runtime_node.http.shared import FrontShared
from runtime_node.http.websocket_wire import Incoming, WebSocketWire

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_MESSAGE_BYTES = 64
"""What a waiting message takes beside its data."""
_MOST_ANSWER_BYTES = 1024 * 1024
_FORBIDDEN = 403


class Stage(Enum):
    """Where a WebSocket is on its way."""

    WAITING = auto()
    """The handshake is not answered."""
    DENYING = auto()
    """The app refuses it, and is saying how."""
    OPEN = auto()
    CLOSING = auto()
    """The app has closed it; the client has not answered."""
    ENDED = auto()
    """The client is gone, or was refused."""


class Carrier(Protocol):
    """The connection of a WebSocket, as its app's side sees it."""

    shared: FrontShared
    flow: Flow
    gate: Gate
    wire: WebSocketWire
    transport: asyncio.Transport

    def has_lapsed(self) -> bool:
        """Tell whether the lease under which the app was asked has run out since, and end it then."""
        ...

    def write(self) -> None:
        """Write what the wire has for the client."""
        ...

    def opened(self) -> None:
        """Take note that the handshake was answered."""
        ...

    def taken(self) -> None:
        """Take note that the app has taken a message."""
        ...

    def await_close(self) -> None:
        """Give the client a while to answer the app's close."""
        ...

    def close_transport(self) -> None:
        """Close after what is written has left."""
        ...


class AppSide:
    """The `receive` and `send` of one WebSocket, and the messages that wait for the app."""

    def __init__(self, carrier: Carrier, http_scope: Scope) -> None:
        self._carrier = carrier
        self.stage = Stage.WAITING
        self.accepted_head = b""
        """The head of the answer that accepts the handshake, without its last line."""
        self.waiting_bytes = 0
        self._waiting: deque[tuple[Message, int]] = deque()
        self._connect: Message | None = {"type": "websocket.connect"}
        self._disconnect: Message | None = None
        self._news: asyncio.Event | None = None
        self._denial: tuple[int, list[tuple[bytes, bytes]], bytes] | None = None
        self.scope = scope = http_scope
        protocols = [
            token.strip()
            for name, value in scope["headers"]
            if name == b"sec-websocket-protocol"
            for token in value.decode("latin-1").split(",")
        ]
        del scope["method"]
        scope.update(
            type="websocket",
            asgi={"version": "3.0", "spec_version": "2.4"},
            scheme="wss" if scope["scheme"] == "https" else "ws",
            subprotocols=protocols,
            extensions={"websocket.http.response": {}},
        )

    def put(self, incoming: Incoming) -> None:
        """Take a message of the client; once the app has closed nobody wants it."""
        if self.stage is not Stage.OPEN:
            return
        key = "text" if isinstance(incoming.data, str) else "bytes"
        size = incoming.size + _MESSAGE_BYTES
        self._waiting.append(({"type": "websocket.receive", key: incoming.data}, size))
        self.waiting_bytes += size
        self._tell()

    def end(self, code: int, reason: str) -> None:
        """Take note that the client is gone: the app learns it after what came before."""
        self.stage = Stage.ENDED
        if self._disconnect is None:
            self._disconnect = {"type": "websocket.disconnect", "code": code, "reason": reason}
        self._tell()

    def drop(self) -> None:
        """Let go of the messages that wait: the app takes no more."""
        self._waiting.clear()
        self.waiting_bytes = 0

    def _tell(self) -> None:
        if self._news is not None:
            self._news.set()

    async def receive(self) -> Message:
        """Return the next event; after `websocket.disconnect` that again and again."""
        connect, self._connect = self._connect, None
        if connect is not None:
            return connect
        while not self._waiting:
            if self._disconnect is not None:
                return self._disconnect
            if self._news is None:
                self._news = asyncio.Event()
            self._news.clear()
            await self._news.wait()
        message, size = self._waiting.popleft()
        self.waiting_bytes -= size
        self._carrier.taken()
        return message

    async def send(self, message: Message) -> None:
        """Send what the app says. Waits while the client does not read.

        Raises BadResponseError or TypeError for what may not be sent, RuntimeError for a message out of
        order, ClientGoneError (an OSError) once the client is gone.
        """
        await self._carrier.flow.drain()
        if self._carrier.has_lapsed():
            raise ClientGoneError
        kind = message["type"]
        match self.stage:
            case Stage.WAITING:
                self._answer(kind, message)
            case Stage.DENYING:
                self._deny(kind, message)
            case Stage.OPEN:
                self._say(kind, message)
            case Stage.CLOSING:
                raise RuntimeError(f"{kind!r} was sent after websocket.close.")
            case Stage.ENDED:
                if kind != "websocket.close":
                    raise ClientGoneError

    def _answer(self, kind: str, message: Message) -> None:
        if kind == "websocket.accept":
            self._accept(message)
        elif kind == "websocket.close":
            self._refuse(_FORBIDDEN, [], b"")
        elif kind == "websocket.http.response.start":
            self._denial = message["status"], self._checked(message["status"], message), b""
            self.stage = Stage.DENYING
        else:
            raise RuntimeError(
                f"Expected websocket.accept, websocket.close or websocket.http.response.start, got {kind!r}."
            )

    def _checked(self, status: Any, message: Message) -> list[tuple[bytes, bytes]]:
        carrier = self._carrier
        headers, widened = check_handshake(
            status, message.get("headers") or (), carrier.shared.router.base_domain
        )
        if widened:
            carrier.gate.tell_widened_cookie()
        return headers

    def _accept(self, message: Message) -> None:
        headers = self._checked(200, message)
        protocol = message.get("subprotocol")
        if protocol:
            if not _TOKEN.fullmatch(protocol):
                raise BadResponseError("The subprotocol is not a token.")
            headers.append((b"sec-websocket-protocol", str.encode(protocol, "ascii")))
        carrier = self._carrier
        lines = [b"%b: %b\r\n" % header for header in headers]
        carrier.transport.write(b"".join((self.accepted_head, carrier.shared.date_line, *lines, b"\r\n")))
        self.stage = Stage.OPEN
        carrier.opened()

    def _deny(self, kind: str, message: Message) -> None:
        if kind != "websocket.http.response.body":
            raise RuntimeError(f"Expected websocket.http.response.body, got {kind!r}.")
        assert self._denial is not None
        status, headers, body = self._denial
        body += plain_bytes(message.get("body", b""))
        if len(body) > _MOST_ANSWER_BYTES:
            raise BadResponseError("The answer to a WebSocket handshake is too long.")
        if message.get("more_body", False):
            self._denial = status, headers, body
        else:
            self._refuse(status, headers, body)

    def _refuse(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        carrier = self._carrier
        assert status in STATUS_LINES
        response = Response(status, headers, carrier.shared.router.base_domain)
        data, _ = response.begin(body, False, False, "1.1", False, carrier.shared.date_line)
        carrier.transport.write(data)
        self.end(1006, "")
        carrier.close_transport()

    def _say(self, kind: str, message: Message) -> None:
        wire = self._carrier.wire
        if kind == "websocket.send":
            data: Any = message.get("bytes")
            if data is None:
                data = message.get("text")
                if not isinstance(data, str):
                    raise TypeError("websocket.send has `bytes` or a str as `text`.")
            elif type(data) is not bytes:
                data = bytes(memoryview(data))
            wire.send(data)
            self._carrier.write()
        elif kind == "websocket.close":
            code, reason = message.get("code") or 1000, message.get("reason") or ""
            wire.close(code, reason)
            self._carrier.write()
            self.end(code, reason)
            self.stage = Stage.CLOSING
            self.drop()
            self._carrier.await_close()
        else:
            raise RuntimeError(f"Expected websocket.send or websocket.close, got {kind!r}.")

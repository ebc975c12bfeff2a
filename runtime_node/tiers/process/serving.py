"""The guest's server: answers exchanges on the connections its node opens, and tells that it is alive.

It knows frames and ASGI; what the app is and how it was loaded is `guest`'s business.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections import deque
from collections.abc import Iterable
from typing import Any, cast

from runtime_node.asgi import ASGIApp, Message, Scope
from runtime_node.raised import traceback_of
from runtime_node.tiers.process import frames
from runtime_node.tiers.process.beat import Beat
from runtime_node.tiers.process.frames import Frame, frame

_CODE = struct.Struct("<H")
NODE_FRAME_BYTES = 64 << 20


class LoopBlocked(BaseException):
    """Raised into app code that blocked its event loop beyond its budget."""


class ClientDisconnectedError(OSError):
    """The client of a WebSocket is gone; raised from `send`, as the ASGI specification has it."""


class Server:
    """Serves one app to one node."""

    def __init__(self, app: ASGIApp, state: dict[str, Any], beat: Beat, logger: logging.Logger) -> None:
        self.app = app
        self.state = state
        self.beat = beat
        self.logger = logger
        self.tasks: set[asyncio.Task[None]] = set()
        self.closing = False
        self._connections: set[Connection] = set()
        self.loop = asyncio.get_running_loop()

    async def connect(self, sock: Any) -> None:
        """Serve the connection behind a connected socket."""
        await self.loop.connect_accepted_socket(lambda: Connection(self), sock)

    def opened(self, connection: Connection) -> None:
        """Note a connection."""
        self._connections.add(connection)

    def closed(self, connection: Connection) -> None:
        """Forget a connection."""
        self._connections.discard(connection)

    def descriptors(self) -> list[int]:
        """Return the descriptors of the connections that are open."""
        sockets = (connection.socket() for connection in self._connections)
        return [descriptor for sock in sockets if (descriptor := sock.fileno()) >= 0]

    async def close(self) -> int:
        """Cancel what is under way, close the connections; return how many exchanges were cut."""
        cut = len(self.tasks)
        self.closing = True
        for task in self.tasks:
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=1.0)
        for connection in list(self._connections):
            connection.close()
        return cut


class Connection(asyncio.Protocol):
    """One connection of the node; carries one exchange at a time."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.gone = False
        self._given_up = False
        self._reader = frames.Reader(NODE_FRAME_BYTES)
        self._exchange: Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._writable: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=frames.MAX_FRAME_BYTES)
        self.server.opened(self)

    def socket(self) -> Any:
        """Return the socket behind the connection."""
        return self._transport.get_extra_info("socket")

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol. An app that awaits its next event learns that the client is gone."""
        self.gone = True
        self.resume_writing()
        self.server.closed(self)
        if self._exchange is not None:
            self._exchange.lose()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._reader.feed(data)
        while self._reader.ready:
            for kind, payload in self._reader.take():
                self._take(kind, payload)

    def _take(self, kind: int, payload: bytes) -> None:
        if kind == Frame.REQUEST:
            self._begin(payload)
        elif kind == Frame.CANCEL:
            self._given_up = True
            if self._task is not None:
                self._task.cancel()
        elif self._exchange is not None:
            self._exchange.deliver(kind, payload)

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._writable = self.server.loop.create_future()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        waiter, self._writable = self._writable, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def write(self, data: bytes) -> None:
        """Queue bytes; nothing happens when the node closed the connection."""
        if not self.gone:
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the node has read enough."""
        if self._writable is not None:
            await asyncio.shield(self._writable)

    def close(self) -> None:
        """Close the connection after what is queued was written."""
        self._transport.close()

    def _begin(self, payload: bytes) -> None:
        body_follows, scope = frames.unpack_scope(payload)
        scope["state"] = self.server.state.copy()
        exchange_type = WebSocketExchange if scope["type"] == "websocket" else HttpExchange
        self._exchange = exchange = exchange_type(self, body_follows)
        exchange.may_trail = "http.response.trailers" in scope.get("extensions", ())
        self._task = task = self.server.loop.create_task(self._run(exchange, scope))
        self.server.tasks.add(task)
        task.add_done_callback(self.server.tasks.discard)

    async def _run(self, exchange: Exchange, scope: Scope) -> None:
        self.server.beat.enter()
        try:
            await self.server.app(scope, exchange.receive, exchange.send)
            exchange.check_complete()
            await self._sent(exchange)
        except asyncio.CancelledError as error:
            if not (self._given_up or self.server.closing):
                # The app cancelled its own task, or one that it waited for: a fault like any other.
                self._fault(exchange, frames.FaultKind.RAISED, error)
                return
            exchange.finished = True
            self.close()
            return
        except LoopBlocked as error:
            self._fault(exchange, frames.FaultKind.BLOCKED, error)
        except BaseException as error:  # noqa: BLE001  (SystemExit too: an app's request must not end its process)
            blocked = isinstance(error, BaseExceptionGroup) and error.subgroup(LoopBlocked) is not None
            kind = frames.FaultKind.BLOCKED if blocked else frames.FaultKind.RAISED
            self._fault(exchange, kind, error)
        else:
            exchange.finished = True
            self.write(frame(Frame.END))
        finally:
            self.server.beat.leave()
            if self._exchange is exchange:
                self._exchange = self._task = None

    async def _sent(self, exchange: Exchange) -> None:
        """Wait for what another task of the app still sends: behind the end it would be lost."""
        while exchange.sending and not self.gone:
            await self.drain()
            await asyncio.sleep(0)

    def _fault(self, exchange: Exchange, kind: frames.FaultKind, error: BaseException) -> None:
        exchange.finished = True
        if self.gone:
            return
        payload = bytes([kind]) + traceback_of(error).encode()[-frames.MAX_FAULT_BYTES :]
        self.write(frame(Frame.FAULT, payload))
        # Last: an app may have logged its own way, and whoever asked waits.
        self.server.logger.error("Exception in the app", exc_info=error)


def as_bytes(body: object) -> bytes:
    """Return a body as bytes. Raises TypeError before anything of it was sent: half a frame is none."""
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body)
    raise TypeError(f"a body is bytes, not {type(body).__name__}")


class Exchange:
    """What both kinds of exchange share: asking the node for events and passing them on in order."""

    def __init__(self, connection: Connection, body_follows: bool) -> None:
        self.connection = connection
        self.finished = False
        self.may_trail = False
        """The client's protocol has trailers."""
        self.sending = 0
        """Calls of `send` that wait for the node to read."""
        self._events: deque[Message] = deque()
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._asked = 0
        self._begin(body_follows)

    def _begin(self, body_follows: bool) -> None:
        raise NotImplementedError

    def deliver(self, kind: int, payload: bytes) -> None:
        """Take an event from the node."""
        raise NotImplementedError

    async def send(self, message: Message) -> None:
        """The app's `send`."""
        raise NotImplementedError

    def check_complete(self) -> None:
        """Raise RuntimeError when the app returned before it had answered."""
        raise NotImplementedError

    def _gone_event(self) -> Message:
        raise NotImplementedError

    async def receive(self) -> Message:
        """Return the next event; asks the node for it, so a body is read as fast as the app takes it."""
        while not self._events:
            if self.connection.gone or self.finished:
                return self._gone_event()
            waiter: asyncio.Future[None] = self.connection.server.loop.create_future()
            self._waiters.append(waiter)
            # An event asked for by a `receive` that was cancelled is still to come: do not ask twice.
            if len(self._waiters) > self._asked:
                self._asked += 1
                self.connection.write(frame(Frame.WANT))
            try:
                await waiter
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
        return self._events.popleft()

    def lose(self) -> None:
        """The connection is gone: wake whoever waits."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _put(self, message: Message) -> None:
        self._asked = max(0, self._asked - 1)
        self._events.append(message)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
                break


class HttpExchange(Exchange):
    """One HTTP request and its response."""

    def _begin(self, body_follows: bool) -> None:
        self._started = self._flushed = self._complete = False
        # A response has announced trailers, and they are all that is missing of it.
        self._announced = self._trailing = False
        self._trailers: list[tuple[bytes, bytes]] = []
        if body_follows:
            self._asked = 1  # the node sends the first part unasked
        else:
            self._events.append({"type": "http.request", "body": b"", "more_body": False})

    def _gone_event(self) -> Message:
        return {"type": "http.disconnect"}

    def deliver(self, kind: int, payload: bytes) -> None:
        """See Exchange."""
        if kind == Frame.DISCONNECT:
            self._put(self._gone_event())
        else:
            more = kind == Frame.BODY_PART
            self._put({"type": "http.request", "body": payload, "more_body": more})

    async def receive(self) -> Message:
        """See Exchange. After the response is complete there is nothing left to wait for."""
        if self._complete and not self._events:
            return self._gone_event()
        return await super().receive()

    async def send(self, message: Message) -> None:
        """See Exchange. Does nothing once the client is gone, as uvicorn."""
        connection = self.connection
        kind = message["type"]
        if connection.gone or self.finished:
            return
        if kind == "http.response.start" and not self._started:
            self._started = True
            self._announced = self.may_trail and bool(message.get("trailers", False))
            payload = frames.pack_start(message["status"], message.get("headers", ()), self._announced)
            connection.write(frame(Frame.START, payload))
        elif kind == "http.response.trailers" and self._trailing:
            self._trail(message)
        elif kind == "http.response.body" and self._started and not (self._complete or self._trailing):
            body = as_bytes(message.get("body", b""))
            more = message.get("more_body", False)
            self._trailing = self._announced and not more
            self._complete = not more and not self._announced
            if more and not body and self._flushed:
                return  # only the first piece says something by being there: that the head may leave
            self._flushed = True
            parts = frames.split(Frame.PART, Frame.PART if more else Frame.LAST, body)
            await self._write_all(parts)
            if self._complete:
                self.lose()
        else:
            raise RuntimeError(f"Unexpected ASGI message '{kind}' sent")

    def _trail(self, message: Message) -> None:
        self._trailers += message.get("headers", ())
        payload = frames.pack_start(200, self._trailers)
        if not message.get("more_trailers", False):
            self._trailing, self._complete = False, True
            self.connection.write(frame(Frame.TRAILERS, payload))
            self.lose()

    async def _write_all(self, parts: Iterable[bytes]) -> None:
        self.sending += 1
        try:
            for part in parts:
                if self.finished:
                    return  # its exchange has failed meanwhile
                self.connection.write(part)
                await self.connection.drain()
        finally:
            self.sending -= 1

    def check_complete(self) -> None:
        """See Exchange."""
        if not self._started:
            raise RuntimeError("ASGI callable returned without starting response")
        if not self._complete and not self.connection.gone:
            raise RuntimeError("ASGI callable returned without completing response")


class WebSocketExchange(Exchange):
    """One WebSocket, from its handshake to its close."""

    def _begin(self, body_follows: bool) -> None:
        self._accepted = self._denied = self._closed = self._left = False
        self._events.append({"type": "websocket.connect"})

    def _gone_event(self) -> Message:
        return {"type": "websocket.disconnect", "code": 1006, "reason": ""}

    def deliver(self, kind: int, payload: bytes) -> None:
        """See Exchange."""
        if kind == Frame.TEXT_IN:
            self._put({"type": "websocket.receive", "text": payload.decode()})
        elif kind == Frame.BYTES_IN:
            self._put({"type": "websocket.receive", "bytes": payload})
        elif kind == Frame.DISCONNECT:
            self._left = True
            (code,) = _CODE.unpack_from(payload)
            reason = payload[2:].decode()
            self._put({"type": "websocket.disconnect", "code": code, "reason": reason})

    async def send(self, message: Message) -> None:
        """See Exchange. Raises ClientDisconnectedError once the client is gone."""
        connection = self.connection
        if connection.gone or self.finished or (self._left and not self._closed):
            raise ClientDisconnectedError
        self._write(message)
        await connection.drain()

    def _write(self, message: Message) -> None:
        write = self.connection.write
        kind = message["type"]
        if kind == "websocket.accept" and not self._accepted and not self._denied:
            self._accepted = True
            subprotocol = (message.get("subprotocol") or "").encode()
            start = frames.pack_start(101, message.get("headers") or ())
            write(frame(Frame.ACCEPT, _CODE.pack(len(subprotocol)) + subprotocol + start))
        elif kind == "websocket.send" and self._accepted and not self._closed:
            text = message.get("text")
            data = text.encode() if text is not None else as_bytes(message["bytes"])
            if len(data) > frames.MAX_MESSAGE_BYTES:
                raise ValueError(f"a WebSocket message is longer than {frames.MAX_MESSAGE_BYTES} bytes")
            last = Frame.TEXT_OUT if text is not None else Frame.BYTES_OUT
            for part in frames.split(Frame.FRAGMENT, last, data):
                write(part)
        elif kind == "websocket.close" and not self._closed:
            reason = (message.get("reason") or "").encode()
            write(frame(Frame.CLOSE, _CODE.pack(message.get("code") or 1000) + reason))
            self._closed = True
        elif kind == "websocket.http.response.start" and not self._accepted and not self._denied:
            self._denied = True
            start = frames.pack_start(message["status"], message.get("headers", ()))
            write(frame(Frame.DENIAL_START, start))
        elif kind == "websocket.http.response.body" and self._denied and not self._closed:
            more = message.get("more_body", False)
            self._closed = not more
            last = Frame.DENIAL_PART if more else Frame.DENIAL_LAST
            for part in frames.split(Frame.DENIAL_PART, last, as_bytes(message.get("body", b""))):
                write(part)
        else:
            raise RuntimeError(f"Unexpected ASGI message '{kind}' sent")

    def check_complete(self) -> None:
        """See Exchange."""
        if not (self._accepted or self._denied or self._closed or self._left):
            raise RuntimeError("ASGI callable returned without completing handshake")

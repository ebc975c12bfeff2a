"""The front's side of a guest: an ASGI callable that carries each exchange to the guest's process.

Runs on whatever loop calls it. Events are fetched from the client only when the app asks for them and
reading stops while the client is slow, so what is buffered is bounded both ways.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from runtime_node.asgi import Message, Receive, Scope, Send, UndeliveredError
from runtime_node.tiers.process import frames, wire
from runtime_node.tiers.process.channel import BrokenOffError, Channel
from runtime_node.tiers.process.frames import Frame, frame
from services.rpc.errors import SupervisorError

MAX_IDLE_CONNECTIONS: Final = 32
MAX_WANTED: Final = 1_000
"""Calls of `receive` that one exchange may have waiting."""
VERDICT_SECONDS: Final = 0.5
"""From a broken connection to the news of the guest's end; after it, the guest is taken to live on."""
LOOK_SECONDS: Final = 0.01
HAND_OVER_SECONDS: Final = 0.01
"""Between two tries to hand a connection to a guest that has not taken those before it."""
_CODE = struct.Struct("<H")
_SCARCE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ETOOMANYREFS})
"""What the node lacks, and no app's fault."""
_LAST_FRAMES: Final = frozenset({Frame.END, Frame.FAULT})


class AppRaisedError(Exception):
    """The app's callable raised; `detail` is the traceback as the guest formatted it."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail.rstrip().rpartition("\n")[2][:300])
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


class GuestProxy:
    """Calls a guest's app.

    `connect` hands one end of a socket pair to the guest; it may raise OSError. `is_alive` tells whether the
    guest's process is there. `on_malformed` is told, on any thread, what a guest sent that is no answer.
    """

    def __init__(
        self,
        connect: Callable[[socket.socket], None],
        resource: str,
        is_alive: Callable[[], bool],
        on_malformed: Callable[[str], object],
    ) -> None:
        self._connect = connect
        self._resource = resource
        self._is_alive = is_alive
        self._on_malformed = on_malformed
        self._lock = threading.Lock()
        self._idle: dict[asyncio.AbstractEventLoop, list[Channel]] = {}
        self._channels: set[Channel] = set()
        self._ended: SupervisorError | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one `http` or `websocket` scope.

        Raises AppRaisedError when the app raised or closed its connection, SupervisorError APP_BLOCKED_LOOP
        when its request was interrupted, and another reason of the app when its process ended meanwhile;
        then the response may have been sent in part. UndeliveredError when the process had ended before,
        SupervisorError NODE_FULL when this process can open nothing more.
        Cancelling cancels the app's task as well.
        """
        channel = await self._acquire()
        try:
            if scope["type"] == "http":
                await _Http(channel, receive, send).run(scope)
            else:
                await _WebSocket(channel, receive, send).run(scope)
        except BrokenOffError as error:
            channel.transport.abort()
            if await self._outlives_its_connection():
                raise AppRaisedError("The app closed the connection that carried its request.") from error
            raise self._crashed() from error
        except (AppRaisedError, SupervisorError):
            self._release(channel)
            raise
        except frames.MalformedFrameError as error:
            channel.transport.abort()
            self._on_malformed(str(error))
            await self._outlives_its_connection()
            raise self._crashed() from error
        except BaseException:
            channel.give_up()
            raise
        self._release(channel)

    def end(self, error: SupervisorError | None) -> None:
        """Break off what is under way and refuse what comes, with `error` as the cause. Thread-safe."""
        with self._lock:
            self._ended = error or self._default_error()
            channels = list(self._channels)
            self._idle.clear()
        for channel in channels:
            with contextlib.suppress(RuntimeError):  # its loop is closed, and the channel with it
                channel.loop.call_soon_threadsafe(channel.transport.abort)

    async def _outlives_its_connection(self) -> bool:
        """Wait for what is told of the guest's end; return whether it lives on without the connection."""
        deadline = time.monotonic() + VERDICT_SECONDS
        while self._ended is None:
            if not self._is_alive():
                return False
            if time.monotonic() > deadline:
                return True
            await asyncio.sleep(LOOK_SECONDS)
        return False

    async def _acquire(self) -> Channel:
        loop = asyncio.get_running_loop()
        idle = self._idle.get(loop)
        while idle:
            channel = idle.pop()
            if not channel.lost:
                channel.idle = False
                return channel
        if self._ended is not None:
            raise UndeliveredError(self._ended)
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise self._unconnected(error) from error
        wire.refuse_descriptors(ours)
        try:
            with theirs:
                await self._hand_over(theirs)
            ours.setblocking(False)
            _, channel = await loop.create_connection(
                lambda: Channel(loop, self._forget, self._on_malformed), sock=ours
            )
        except ConnectionError as error:
            ours.close()
            raise UndeliveredError(self._crashed()) from error
        except OSError as error:
            ours.close()
            raise self._unconnected(error) from error
        except BaseException:
            ours.close()
            raise
        with self._lock:
            self._channels.add(channel)
            ended = self._ended
        if ended is not None:
            channel.transport.abort()
            raise UndeliveredError(ended)
        return channel

    async def _hand_over(self, theirs: socket.socket) -> None:
        while True:
            try:
                return self._connect(theirs)
            except BlockingIOError:
                # More are on their way to a busy guest than the kernel keeps; that is no end of it.
                if self._ended is not None:
                    raise UndeliveredError(self._ended) from None
            await asyncio.sleep(HAND_OVER_SECONDS)

    def _release(self, channel: Channel) -> None:
        # What a guest sends behind the end of an exchange must not become the beginning of the next.
        if channel.has_more:
            channel.transport.abort()
            self._on_malformed("an exchange goes on after its end")
            return
        with self._lock:
            idle = self._idle.setdefault(channel.loop, [])
            if self._ended is None and not channel.lost and len(idle) < MAX_IDLE_CONNECTIONS:
                channel.idle = True
                idle.append(channel)
                return
        channel.transport.close()

    def _forget(self, channel: Channel) -> None:
        with self._lock:
            self._channels.discard(channel)

    def _unconnected(self, error: OSError) -> SupervisorError:
        if error.errno not in _SCARCE:
            return self._crashed()
        sentence = f"The node cannot connect to the app's process: {error.strerror}."
        return SupervisorError("NODE_FULL", sentence, resource=self._resource)

    def _crashed(self) -> SupervisorError:
        return self._ended or self._default_error()

    def _default_error(self) -> SupervisorError:
        return SupervisorError(
            "APP_CRASHED", "The app's process ended while it answered.", resource=self._resource
        )


class _Carried:
    """One exchange on its way: frames from the guest become `send`, its wants become `receive`."""

    def __init__(self, channel: Channel, receive: Receive, send: Send) -> None:
        self._channel = channel
        self._receive = receive
        self._send = send
        self._pulling: asyncio.Task[None] | None = None
        self._wanted: float = 0

    async def run(self, scope: Scope) -> None:
        """Carry the exchange from its scope to its end."""
        channel = self._channel
        body_follows = self._body_follows(scope)
        channel.write(frame(Frame.REQUEST, frames.pack_scope(scope, body_follows)))
        if body_follows:
            self._want()
        try:
            while True:
                batch = await channel.read()
                for place, (kind, payload) in enumerate(batch, 1):
                    if kind in _LAST_FRAMES and place < len(batch):
                        raise frames.MalformedFrameError("an exchange goes on after its end")
                    if kind == Frame.END:
                        return
                    if kind == Frame.WANT:
                        self._want()
                    elif kind == Frame.FAULT:
                        raise _fault(payload)
                    else:
                        await self._pass_on(kind, payload)
                if channel.has_more:
                    await asyncio.sleep(0)  # a guest that floods its own exchange delays no other
        finally:
            if self._pulling is not None:
                self._pulling.cancel()

    def _body_follows(self, scope: Scope) -> bool:
        raise NotImplementedError

    async def _pass_on(self, kind: int, payload: bytes) -> None:
        raise NotImplementedError

    def _pack(self, message: Message) -> bytes:
        raise NotImplementedError

    def _want(self) -> None:
        self._wanted += 1
        if MAX_WANTED < self._wanted < math.inf:
            raise frames.MalformedFrameError(f"an app awaits more than {MAX_WANTED} events at once")
        if self._pulling is None:
            self._pulling = self._channel.loop.create_task(self._pull())

    async def _pull(self) -> None:
        try:
            while self._wanted:
                message = await self._receive()
                self._wanted -= 1
                self._channel.write(self._pack(message))
                await self._channel.drain()
                if self._wanted == math.inf and message["type"] == "websocket.disconnect":
                    self._wanted = 0
        except Exception as error:  # noqa: BLE001  (the front's; it ends this exchange)
            self._channel.fail(error)
        finally:
            self._pulling = None


class _Http(_Carried):
    _may_trail = _announced = False

    async def run(self, scope: Scope) -> None:
        self._may_trail = "http.response.trailers" in (scope.get("extensions") or ())
        if not self._body_follows(scope):
            await self._receive()  # the empty body, which the guest gives its app itself
        await super().run(scope)

    def _body_follows(self, scope: Scope) -> bool:
        for name, value in scope["headers"]:
            if name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
                return True
        # HTTP/2 and in-process callers may send a body without telling its length.
        return scope.get("http_version") != "1.1"

    def _pack(self, message: Message) -> bytes:
        if message["type"] == "http.disconnect":
            return frame(Frame.DISCONNECT, b"\0\0")
        kind = Frame.BODY_PART if message.get("more_body") else Frame.BODY_LAST
        return frame(kind, message.get("body", b""))

    async def _pass_on(self, kind: int, payload: bytes) -> None:
        if kind == Frame.LAST:
            await self._send({"type": "http.response.body", "body": payload, "more_body": False})
        elif kind == Frame.START:
            status, headers, trailers = frames.unpack_start(payload)
            start = {"type": "http.response.start", "status": status, "headers": headers}
            self._announced = trailers and self._may_trail
            await self._send({**start, "trailers": True} if self._announced else start)
        elif kind == Frame.PART:
            await self._send({"type": "http.response.body", "body": payload, "more_body": True})
        elif kind == Frame.TRAILERS and self._announced:
            _, headers, _ = frames.unpack_start(payload)
            await self._send({"type": "http.response.trailers", "headers": headers})
        else:
            raise frames.MalformedFrameError(f"frame {kind} has no place in an HTTP exchange")


class _WebSocket(_Carried):
    def __init__(self, channel: Channel, receive: Receive, send: Send) -> None:
        super().__init__(channel, receive, send)
        self._fragments: list[bytes] = []
        self._length = 0

    def _body_follows(self, scope: Scope) -> bool:
        return False

    async def run(self, scope: Scope) -> None:
        await self._receive()  # "websocket.connect", which the guest gives its app itself
        await super().run(scope)

    def _pack(self, message: Message) -> bytes:
        if message["type"] == "websocket.receive":
            if (text := message.get("text")) is not None:
                return frame(Frame.TEXT_IN, text.encode())
            return frame(Frame.BYTES_IN, message["bytes"])
        reason = (message.get("reason") or "").encode()
        return frame(Frame.DISCONNECT, _CODE.pack(message.get("code") or 1005) + reason)

    async def _pass_on(self, kind: int, payload: bytes) -> None:
        if kind == Frame.FRAGMENT:
            if not payload:
                raise frames.MalformedFrameError("a part of a WebSocket message is empty")
            self._length += len(payload)
            if self._length > frames.MAX_MESSAGE_BYTES:
                raise frames.MalformedFrameError("a WebSocket message is too long")
            self._fragments.append(payload)
            return
        if self._fragments:
            payload = b"".join([*self._fragments, payload])
            self._fragments, self._length = [], 0
        try:
            message = self._message(kind, payload)
        except (UnicodeDecodeError, struct.error) as error:
            raise frames.MalformedFrameError("a WebSocket event cannot be read") from error
        try:
            await self._send(message)
        except OSError:
            # Its app hears of it from its own `send` and `receive`, as on any server, and may have others to
            # tell. It is told unasked, after what came before, for it may not be listening.
            self._wanted = math.inf
            self._want()

    def _message(self, kind: int, payload: bytes) -> dict[str, Any]:
        match kind:
            case Frame.TEXT_OUT:
                return {"type": "websocket.send", "text": payload.decode()}
            case Frame.BYTES_OUT:
                return {"type": "websocket.send", "bytes": payload}
            case Frame.CLOSE:
                (code,) = _CODE.unpack_from(payload)
                return {"type": "websocket.close", "code": code, "reason": payload[2:].decode()}
            case Frame.ACCEPT:
                (length,) = _CODE.unpack_from(payload)
                subprotocol = payload[2 : 2 + length].decode() or None
                _, headers, _ = frames.unpack_start(payload[2 + length :])
                return {"type": "websocket.accept", "subprotocol": subprotocol, "headers": headers}
            case Frame.DENIAL_START:
                status, headers, _ = frames.unpack_start(payload)
                return {"type": "websocket.http.response.start", "status": status, "headers": headers}
            case Frame.DENIAL_PART | Frame.DENIAL_LAST:
                more = kind == Frame.DENIAL_PART
                return {"type": "websocket.http.response.body", "body": payload, "more_body": more}
            case _:
                raise frames.MalformedFrameError(f"frame {kind} has no place in a WebSocket exchange")


def _fault(payload: bytes) -> Exception:
    text = payload[1:].decode(errors="replace")
    if payload[:1] == bytes([frames.FaultKind.BLOCKED]):
        return SupervisorError(
            "APP_BLOCKED_LOOP",
            "The request blocked the app's event loop and was interrupted.",
            metadata={"detail": text},
        )
    return AppRaisedError(text)

"""Carries requests and WebSockets from the front's loop to an app's own loop, in another thread, and back.

Both directions are buffered up to a bound, so that a slow side holds up the other and not the node's memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Any

from runtime_node.asgi import ASGIApp, Message, Receive, Scope, Send

MAX_BUFFERED_BYTES = 256 * 1024
_MESSAGE_BYTES = 64
"""What a message counts beside its payload, so that a flood of empty ones is bounded too."""

_BODY_HEADERS = frozenset({b"content-length", b"transfer-encoding"})


class Bridge:
    """An ASGI callable for the front's loop that runs `app` on `loop`."""

    def __init__(
        self,
        app: ASGIApp,
        state: dict[str, Any],
        loop: asyncio.AbstractEventLoop,
        front: asyncio.AbstractEventLoop,
    ) -> None:
        self._app = app
        self._state = state
        self._loop = loop
        self._front = front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket. Cancelling it cancels the app's task."""
        crossing = _Crossing(self._loop, self._front, receive)
        if self._state:
            scope["state"] = self._state.copy()
        if scope["type"] == "http" and not _may_have_body(scope):
            # Without a body the first message is there already; it saves a trip in both directions.
            crossing.inbox.append(await receive())
        try:
            self._loop.call_soon_threadsafe(crossing.begin, self._app, scope)
        except RuntimeError as closed:
            raise ConnectionError("the app's loop has ended") from closed
        await crossing.carry(send)


def _may_have_body(scope: Scope) -> bool:
    # HTTP/2 does not tell it in a header.
    return scope.get("http_version") == "2" or any(name in _BODY_HEADERS for name, _ in scope["headers"])


class _Crossing:
    """One request on its way. What is marked `front` runs there, the rest on the app's loop."""

    __slots__ = (
        "_asked", "_buffered", "_ended", "_fault", "_front", "_gone", "_loop", "_outbox", "_receive",
        "_receiver", "_room", "_task", "_waiters", "_waker", "inbox",
    )  # fmt: skip

    def __init__(
        self, loop: asyncio.AbstractEventLoop, front: asyncio.AbstractEventLoop, receive: Receive
    ) -> None:
        self._loop = loop
        self._front = front
        self._receive = receive
        self.inbox: deque[Message] = deque()
        self._outbox: deque[Message] = deque()
        self._buffered = 0
        self._fault: BaseException | None = None
        self._ended = False
        # Front: the client of a WebSocket has left.
        self._gone = False
        self._task: asyncio.Task[None] | None = None
        # Front: wakes `carry` when there is something to send or the app has ended.
        self._waker: asyncio.Future[None] | None = None
        # Front: the task that waits for the client's next message on behalf of the app.
        self._receiver: asyncio.Task[None] | None = None
        # App's loop: calls of the app that wait for a message, whether one was asked for, room to send.
        self._waiters: deque[asyncio.Future[Message]] = deque()
        self._asked = False
        self._room: asyncio.Future[None] | None = None

    # --- app's loop ---

    def begin(self, app: ASGIApp, scope: Scope) -> None:
        """Start the app's task."""
        if self._ended:
            return
        self._task = self._loop.create_task(self._run(app, scope))

    async def _run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self._receive_there, self._send_there)
        except asyncio.CancelledError:
            if not self._ended:
                self._fault = ConnectionError("the app's task was cancelled")
        except BaseException as fault:  # noqa: BLE001 - it goes to the front, which answers it
            self._fault = fault
        finally:
            self._ended = True
            self._call_front(self._wake)

    async def _receive_there(self) -> Message:
        if self.inbox:
            return self.inbox.popleft()
        if self._ended:
            raise OSError("the request has ended")
        waiter: asyncio.Future[Message] = self._loop.create_future()
        self._waiters.append(waiter)
        self._ask_front()
        return await waiter

    def _ask_front(self) -> None:
        if not self._asked:
            self._asked = True
            self._call_front(self._ask)

    async def _send_there(self, message: Message) -> None:
        self._check_here()
        self._buffered += _size(message)
        self._outbox.append(message)
        self._call_front(self._wake)
        while self._buffered > MAX_BUFFERED_BYTES:
            if self._room is None or self._room.done():
                self._room = self._loop.create_future()
            await asyncio.shield(self._room)
            self._check_here()

    def _check_here(self) -> None:
        if self._ended:
            raise OSError("the request has ended")
        if self._gone:
            raise OSError("the client is gone")

    def _deliver(self, message: Message | None, fault: BaseException | None) -> None:
        # One message answers one call, in order; a call that was cancelled meanwhile gets none.
        self._asked = False
        while self._waiters and self._waiters[0].done():
            self._waiters.popleft()
        if not self._waiters:
            if message is not None:
                self.inbox.append(message)
            return
        waiter = self._waiters.popleft()
        if fault is not None:
            waiter.set_exception(fault)
        elif message is not None:
            waiter.set_result(message)
        if self._waiters:
            self._ask_front()

    def _make_room(self, size: int) -> None:
        self._buffered -= size
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _cancel(self) -> None:
        self._ended = True
        if self._task is not None:
            self._task.cancel()
        self._make_room(0)

    def _call_front(self, call: Any) -> None:
        with suppress(RuntimeError):  # the front has ended, and nobody waits
            self._front.call_soon_threadsafe(call)

    # --- front ---

    async def carry(self, send: Send) -> None:
        """Send what the app sends until it has ended; raise what it raised."""
        try:
            while True:
                while self._outbox:
                    message = self._outbox.popleft()
                    try:
                        await send(message)
                    except OSError:
                        if not message["type"].startswith("websocket."):
                            raise
                        # Its app hears of it from its own `send` and `receive`, as on any server, and may
                        # have others to tell.
                        self._gone = True
                    # A response's head and its last part need no trip back: nobody waits for their room,
                    # unless that part alone is more than there is.
                    size = _size(message)
                    if size > MAX_BUFFERED_BYTES or (
                        message["type"] != "http.response.start"
                        and (message["type"] != "http.response.body" or message.get("more_body", False))
                    ):
                        self._call_app(self._make_room, size)
                if self._ended and not self._outbox:
                    break
                self._waker = self._front.create_future()
                if self._outbox or self._ended:
                    continue
                await self._waker
        except BaseException:
            self._call_app(self._cancel)
            raise
        finally:
            if self._receiver is not None:
                self._receiver.cancel()
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault

    def _wake(self) -> None:
        if self._waker is not None and not self._waker.done():
            self._waker.set_result(None)

    def _ask(self) -> None:
        if self._receiver is None or self._receiver.done():
            self._receiver = self._front.create_task(self._fetch())

    async def _fetch(self) -> None:
        try:
            message = await self._receive()
        except asyncio.CancelledError:
            raise
        except Exception as fault:  # noqa: BLE001 - the app asked, so it hears of it
            self._call_app(self._deliver, None, fault)
        else:
            self._call_app(self._deliver, message, None)

    def _call_app(self, call: Any, *arguments: Any) -> None:
        with suppress(RuntimeError):  # the app's loop has ended with all its tasks
            self._loop.call_soon_threadsafe(call, *arguments)


def _size(message: Message) -> int:
    payload = message.get("body") or message.get("bytes") or message.get("text") or b""
    return len(payload) + _MESSAGE_BYTES

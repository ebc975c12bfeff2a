"""Serves a WSGI app (PEP 3333) as ASGI, on threads of the app's own.

What goes between loop and thread is bounded both ways, and a request that ends early frees its thread. The
environment is made by `wsgi_environ`.
"""

from __future__ import annotations

import asyncio
import contextvars
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Executor, Future
from types import TracebackType
from typing import Any

from runtime_node.asgi import Message, Receive, Scope, Send
from runtime_node.loader.wsgi_environ import build_environ

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]
_Headers = list[tuple[bytes, bytes]]

MAX_UNSENT_BYTES = 256 * 1024
"""Of a response, waiting for a slow client, before the app's thread waits too."""

_BLOCK_BYTES = 64
"""What a block counts beside its bytes, so that a flood of tiny ones is bounded too."""

_STATUS = re.compile(r"([1-9][0-9]{2})(?: .*)?", re.DOTALL)


class ClientGoneError(ConnectionError):
    """Raised in a WSGI app that reads a body that broke off, or goes on after its request has ended."""


class WSGIAdapter:
    """An ASGI 3 callable around a WSGI app. `executor` bounds how many requests run at once."""

    def __init__(self, app: Callable[..., Iterable[bytes]], executor: Executor) -> None:
        self._app = app
        self._executor = executor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; a WebSocket is refused; the lifespan does nothing."""
        kind = scope["type"]
        if kind == "lifespan":
            await _lifespan(receive, send)
        elif kind == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
        else:
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = _Call(self._app, asyncio.get_running_loop(), receive)
        environ = build_environ(scope, call)
        work = self._executor.submit(contextvars.copy_context().run, call.run, environ)
        work.add_done_callback(call.settle)
        try:
            while await call.has_news():
                while (message := call.take()) is not None:
                    await send(message)
        finally:
            work.cancel()
            call.leave()
        if call.fault is not None:
            raise call.fault


class _Call:
    """One call of a WSGI app. What says "Loop" runs on the adapter's loop, the rest on the app's thread."""

    def __init__(
        self, app: Callable[..., Iterable[bytes]], loop: asyncio.AbstractEventLoop, receive: Receive
    ) -> None:
        self._app = app
        self._loop = loop
        self._receive = receive
        self.fault: BaseException | None = None
        """What left the app."""
        self._head: tuple[int, _Headers] | None = None
        self._head_sent = False
        self._outbox: deque[Message] = deque()
        self._unsent = 0
        self._gone = False
        self._ended = False
        # Guards the three above; the app's thread waits on it for room.
        self._room = threading.Condition()
        # Loop: set by the thread when there is something to take, or the app has returned.
        self._news = asyncio.Event()
        self._readers: set[asyncio.Task[Any]] = set()

    # --- the app's thread ---

    def run(self, environ: dict[str, Any]) -> None:
        """Call the app and pass on what it answers."""
        try:
            self._respond(environ)
        except BaseException as fault:  # noqa: BLE001 - it goes to the loop, which answers for it
            self.fault = fault
        finally:
            self._ended = True
            self._tell()

    def settle(self, work: Future[None]) -> None:
        """Take note that the call was taken out of its executor's queue: nobody will run it. Any thread."""
        if work.cancelled():
            self.fault = ClientGoneError("the app has been stopped")
            self._ended = True
            self._tell()

    def _respond(self, environ: dict[str, Any]) -> None:
        blocks = self._app(environ, self.start_response)
        try:
            if isinstance(blocks, (list, tuple)) and len(blocks) == 1:
                # Its length is known, so the response needs no chunks; and there is no hop for its end.
                self._emit(blocks[0], more=False, tell=False)
                return
            for block in blocks:
                # The headers may still be replaced until the first byte (PEP 3333, on `start_response`).
                if block or not isinstance(block, bytes):
                    self._emit(block, more=True)
            self._emit(b"", more=False)
        finally:
            close = getattr(blocks, "close", None)
            if close is not None:
                close()

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: _ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        """See PEP 3333. Raises what it says it does, ValueError or TypeError for what is no head."""
        if exc_info is not None:
            try:
                if self._head_sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # a cycle of frames otherwise
        elif self._head is not None:
            raise AssertionError("start_response was called a second time without exc_info")
        self._head = _status(status), [(_latin1(name), _latin1(value)) for name, value in headers]
        return self.write

    def write(self, block: bytes) -> None:
        """Send a block at once: the `write` callable of PEP 3333."""
        if block or not isinstance(block, bytes):
            self._emit(block, more=True)

    def _emit(self, block: bytes, *, more: bool, tell: bool = True) -> None:
        if not isinstance(block, bytes):
            raise TypeError(f"a WSGI app yields bytes, not {type(block).__name__}")
        if self._head is None:
            raise AssertionError("the app answered before it called start_response")
        room = self._room
        with room:
            while self._unsent > MAX_UNSENT_BYTES and not self._gone:
                room.wait()
            if self._gone:
                raise ClientGoneError("the request has ended")
            if not self._head_sent:
                self._head_sent = True
                status, headers = self._head
                self._outbox.append({"type": "http.response.start", "status": status, "headers": headers})
            self._outbox.append({"type": "http.response.body", "body": block, "more_body": more})
            self._unsent += len(block) + _BLOCK_BYTES
        if tell:
            self._tell()

    def _tell(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._news.set)
        except RuntimeError:  # the loop has ended, and nobody waits
            self._gone = True

    def read_body(self) -> tuple[bytes, bool]:
        """Wait for a piece of the request's body; return it and whether more follows.

        Raises ClientGoneError when the body broke off or the request has ended.
        """
        if self._gone:
            raise ClientGoneError("the request has ended")
        try:
            message = asyncio.run_coroutine_threadsafe(self._receive_here(), self._loop).result()
        except (CancelledError, RuntimeError) as error:
            raise ClientGoneError("the request has ended") from error
        if message["type"] == "http.disconnect":
            # An end of the input would look like the end of the body.
            raise ClientGoneError("the client left before the end of its request")
        return message.get("body", b""), message.get("more_body", False)

    # --- loop ---

    async def _receive_here(self) -> Message:
        task = asyncio.current_task()
        assert task is not None
        if self._gone:
            raise ClientGoneError("the request has ended")
        self._readers.add(task)
        try:
            return await self._receive()
        finally:
            self._readers.discard(task)

    async def has_news(self) -> bool:
        """Wait until there is something to take, and return True; False once the app has returned. Loop."""
        if not self._outbox:
            if self._ended:
                return False
            await self._news.wait()
        self._news.clear()
        return True

    def take(self) -> Message | None:
        """Return what is to be sent next, if anything is; makes room for as much. Loop."""
        with self._room:
            if not self._outbox:
                return None
            message = self._outbox.popleft()
            if message["type"] == "http.response.body":
                self._unsent -= len(message["body"]) + _BLOCK_BYTES
                self._room.notify()
            return message

    def leave(self) -> None:
        """End the request: a thread that waits goes on, and finds that nobody reads or sends. Loop."""
        with self._room:
            self._gone = True
            self._room.notify_all()
        for task in self._readers:
            task.cancel()


def _status(status: str) -> int:
    if not isinstance(status, str):
        raise TypeError(f"the status is a str such as '200 OK', not {type(status).__name__}")
    match = _STATUS.fullmatch(status)
    if match is None:
        raise ValueError(f"the status is not one such as '200 OK': {status[:100]!r}")
    return int(match[1])


def _latin1(text: str) -> bytes:
    if not isinstance(text, str):
        raise TypeError(f"names and values of headers are str, not {type(text).__name__}")
    return text.encode("latin-1")


async def _lifespan(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})

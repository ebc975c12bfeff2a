"""Serves a WSGI app as ASGI through a2wsgi, on threads of the app's own.

Adds what a2wsgi leaves open: a request that ends early frees its thread, and header names that a
WSGI environment cannot tell apart are dropped.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from typing import Any, cast

from a2wsgi.wsgi import WSGIResponder

from runtime_node.asgi import ASGIApp, Message, Receive, Scope, Send

# Chunks of a response that may wait for a slow client before the app's thread waits too.
_SEND_QUEUE = 10


class ClientGoneError(ConnectionError):
    """Raised in a WSGI app that reads a body that broke off, or goes on after its request has ended."""


class _Responder(WSGIResponder):
    gone = False

    def wsgi(self, environ: Any, start_response: Any) -> None:
        if "CONTENT_LENGTH" not in environ:
            # Its input ends where the body does; frameworks that are not told take it as empty.
            environ["wsgi.input_terminated"] = True
        super().wsgi(environ, start_response)

    def send(self, message: Any) -> None:
        if self.gone:
            raise ClientGoneError("the request has ended")
        super().send(message)

    def leave(self) -> None:
        """End the request: a thread that waits to write goes on, and finds that nobody reads."""
        self.gone = True
        while not self.send_queue.empty():
            self.send_queue.get_nowait()


class WSGIAdapter:
    """An ASGI 3 callable around a WSGI app. `executor` bounds how many requests run at once."""

    def __init__(self, app: Any, executor: Executor) -> None:
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
        responder = _Responder(self._app, cast(Any, self._executor), _SEND_QUEUE)
        readers: set[asyncio.Task[Any]] = set()

        async def receive_while_here() -> Message:
            if responder.gone:
                raise ClientGoneError("the request has ended")
            task = asyncio.current_task()
            assert task is not None
            readers.add(task)
            try:
                message = await receive()
            finally:
                readers.discard(task)
            if message["type"] == "http.disconnect":
                # An end of the input would look like the end of the body.
                raise ClientGoneError("the client left before the end of its request")
            return message

        # `X-A-B` and `X_A_B` are one key of a WSGI environment: a client could forge what a proxy set.
        headers = [(name, value) for name, value in scope.get("headers", ()) if b"_" not in name]
        try:
            # a2wsgi's own types of scope and messages are dicts as well.
            serve = cast(ASGIApp, responder)
            await serve({**scope, "headers": headers}, receive_while_here, send)
        finally:
            responder.leave()
            for task in readers:
                task.cancel()


async def _lifespan(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})

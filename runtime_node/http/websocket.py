"""One WebSocket connection: uvicorn's protocol behind a gate (ASGI `websocket`)."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.datastructures import Headers
from websockets.http11 import Request

from runtime_node.asgi import ASGIApp, Scope
from runtime_node.cancellation import was_cancelled
from runtime_node.http.current import interruption_point, is_interruption
from runtime_node.http.gate import Gate
from runtime_node.http.problems import (
    APP_BAD_RESPONSE,
    APP_BLOCKED_LOOP,
    APP_NO_RESPONSE,
    APP_RAISED,
    INSTANCE_STOPPING,
    NODE_DRAINING,
    REQUEST_TIMEOUT,
    Problem,
)
from runtime_node.http.response import BadResponseError, check_handshake
from services.rpc.errors import SupervisorError

if TYPE_CHECKING:
    from uvicorn._types import WebSocketScope

    from runtime_node.http.listener import Listener

_NEVER = float("inf")
_CLOSE_SERVICE_RESTART = 1012
_CLOSE_INTERNAL_ERROR = 1011
_quiet = logging.getLogger("runtime_node.http.websocket.wire")
_quiet.setLevel(logging.ERROR)


class FrontWebSocket(WebSocketsSansIOProtocol):
    """A WebSocket of the listener. Its handshake waits at the gate as a request does."""

    is_websocket = True

    def __init__(self, front: Listener, gate: Gate, scope: Scope) -> None:
        super().__init__(front.config, front.server_state, {}, front.loop)
        self.logger = self.conn.logger = _quiet
        self.front = front
        self.gate = gate
        self.http_scope = scope
        self.admitted_at = time.monotonic()
        self.deadline = self.admitted_at + gate.limits.request_timeout
        self.task: asyncio.Task[None] | None = None
        self.began = False
        self.refused = False
        self.closing = False
        """It was closing at the latest look, or is meant to close."""
        self.stalled_since = 0.0
        self.pongs = b""

    # --- driven by the connection and the listener ---

    def begin(self, rest: bytes) -> None:
        """Do the handshake's checks and ask the gate to let the WebSocket in."""
        # The head was read and checked already; the wire protocol only has to be past it.
        self.conn.receive_data(b"GET / HTTP/1.1\r\n\r\n")
        self.conn.events_received()
        scope = self.http_scope
        headers = Headers((name.decode("ascii"), value.decode("latin-1")) for name, value in scope["headers"])
        self.request = request = Request("/", headers)
        self.response = self.conn.accept(request)
        self.handshake_initiated = True
        if self.response.status_code != 101:
            self.handshake_complete = self.close_sent = self.refused = True
            self.conn.send_response(self.response)
            self.transport.write(b"".join(self.conn.data_to_send()))
            self._close()
            return
        protocols: list[str] = []
        for value in headers.get_all("Sec-WebSocket-Protocol"):
            protocols.extend(token.strip() for token in value.split(","))
        del scope["method"]
        scope.update(
            type="websocket",
            asgi={"version": "3.0", "spec_version": "2.4"},
            scheme="wss" if scope["scheme"] == "https" else "ws",
            subprotocols=protocols,
            extensions={"websocket.http.response": {}},
        )
        self.scope = cast("WebSocketScope", scope)
        self.queue.put_nowait({"type": "websocket.connect"})
        self.gate.admit(self, self.loop)
        if rest:
            self.data_received(rest)

    def data_received(self, data: bytes) -> None:
        """Take frames; before the handshake's answer a client has nothing to say."""
        if self.refused:
            return
        if not self.handshake_complete:
            self.refuse(Problem(400, "MALFORMED_REQUEST", "Data before the WebSocket handshake's answer."))
            return
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the app; a handshake that waited leaves the queue."""
        self.deadline = _NEVER
        if self.task is None:
            self.gate.dropped(self, gone=True)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Make senders wait, and start the client's time to read."""
        self.stalled_since = self.front.now
        self.deadline = min(self.deadline, self.stalled_since + self.front.limits.write_timeout)
        super().pause_writing()

    def resume_writing(self) -> None:
        """Let senders go on."""
        self.stalled_since = 0.0
        pongs, self.pongs = self.pongs, b""
        if pongs and not self.transport.is_closing():
            self.transport.write(pongs)
        super().resume_writing()

    def handle_ping(self) -> None:
        """Answer pings; a client that does not read is owed the latest answer only (RFC 6455 §5.5.3)."""
        if self.stalled_since:
            self.pongs = b"".join(self.conn.data_to_send()) or self.pongs
        else:
            super().handle_ping()

    def expire(self, now: float) -> None:
        """Act on a deadline that has passed; called by the listener's sweep."""
        patience = self.front.limits.write_timeout
        due = self.stalled_since + patience if self.stalled_since else now + patience
        if now >= due or (self.closing and self.transport.is_closing()):
            self.transport.abort()
            return
        # Looked at again and again: the wire protocol closes by itself as well, and a reader may stall anew.
        self.closing = self.transport.is_closing()
        self.deadline = due
        if not self.handshake_complete:
            if self.gate.dropped(self, timeout=True):
                self.refuse(REQUEST_TIMEOUT)
            else:
                self.cut(REQUEST_TIMEOUT)

    async def send(self, message: Any) -> None:
        """Send what the app says: checked where it makes headers, bounded where it is collected.

        Raises BadResponseError, as for a response, and ClientDisconnected (an OSError) to a client gone.
        """
        kind = message["type"]
        if kind in ("websocket.accept", "websocket.http.response.start"):
            status = 200 if kind == "websocket.accept" else message["status"]
            message = {**message, "headers": check_handshake(status, message.get("headers", ()))}
        elif kind == "websocket.http.response.body":
            message = {"body": b"", **message}
            begun = self.initial_response
            if begun is not None and len(begun[2]) + len(message["body"]) > self.config.ws_max_size:
                raise BadResponseError("The answer to a WebSocket handshake is too long.")
        await super().send(message)

    # --- driven by the gate ---

    def moved(self, gate: Gate) -> None:
        """Take note that another gate has it from now on."""
        self.gate = gate

    def refuse(self, problem: Problem) -> None:
        """Answer the handshake with a problem, and close."""
        if self.refused or self.transport.is_closing():
            return
        self.refused = self.handshake_complete = self.close_sent = True
        self.front.count(problem)
        self.transport.write(problem.encode(date=self.front.date_line))
        self._close()

    def close_gently(self) -> None:
        """Close with 1012; the app is told with `websocket.disconnect`."""
        if not self.transport.is_closing():
            self.shutdown()
            self._close()

    def cut(self, problem: Problem) -> None:
        """End it: the handshake with the problem, an open WebSocket by closing; cancel the app's task."""
        if self.gate.dropped(self):
            self.refuse(problem)
            return
        if not self.handshake_complete:
            self.refuse(problem)
        else:
            self.transport.abort()
        task = self.task
        if task is not None:
            task.cancel()
            if not self.began:
                self._end()

    def send_500_response(self) -> None:
        """Refuse a handshake that is cut short by the end of the node."""
        if not self.handshake_complete and self.initial_response is None:
            self.refuse(NODE_DRAINING if self.front.draining else INSTANCE_STOPPING)

    async def run(self, asgi: ASGIApp) -> None:
        """Serve the WebSocket with the app; whatever leaves the app ends here."""
        self.began = True
        try:
            await asgi(cast("Scope", self.scope), self.receive, self.send)  # type: ignore[arg-type]
            interruption_point()
        except asyncio.CancelledError as error:
            if was_cancelled():
                self._fail(INSTANCE_STOPPING)
                raise
            self._fault(error, APP_RAISED)
        except ClientDisconnected:
            pass
        except SupervisorError as error:
            self._fail(Problem(503, error.reason, error.message, retry_after=error.retry_after))
        except BaseException as error:  # noqa: BLE001 - even SystemExit of an app must not reach the loop
            if is_interruption(error):
                self._fail(APP_BLOCKED_LOOP)
            else:
                self._fault(error, APP_BAD_RESPONSE if isinstance(error, BadResponseError) else APP_RAISED)
        else:
            if not self.handshake_complete and not self.close_sent:
                self.gate.fault(None, APP_NO_RESPONSE.detail + " It left a WebSocket handshake unanswered.")
                self._fail(APP_NO_RESPONSE)
        finally:
            self._end()
            if self.close_timer is None:
                self._close()
            else:
                self.closing = True
                self.deadline = self.front.now + self.close_timeout + self.front.limits.write_timeout

    def _fault(self, error: BaseException, problem: Problem) -> None:
        if self.transport.is_closing():
            # What an app does when its client is gone, or when it is cut off, tells nothing of the app.
            return
        self.gate.fault(error, problem.detail)
        self._fail(problem)

    def _fail(self, problem: Problem) -> None:
        if not self.handshake_complete:
            self.refuse(problem)
        elif not self.close_sent and not self.transport.is_closing():
            self.conn.send_close(_CLOSE_INTERNAL_ERROR)
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.close_sent = True

    def _end(self) -> None:
        self.task = None
        self.gate.ended(self)

    def _close(self) -> None:
        self.closing = True
        self.deadline = self.front.now + self.front.limits.write_timeout
        self.transport.close()

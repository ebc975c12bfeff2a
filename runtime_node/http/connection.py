"""One client connection: HTTP/1.1 bytes to exchanges, in order, within the listener's limits.

uvicorn's protocol on llhttp, tightened; what a request means is decided by the router and its gate.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from runtime_node.http.exchange import Exchange
from runtime_node.http.problems import (
    BODY_TIMEOUT,
    HEADER_TIMEOUT,
    HEADERS_TOO_LARGE,
    INTERNAL,
    NODE_DRAINING,
    TARGET_TOO_LONG,
    TOO_MANY_CONNECTIONS,
    Problem,
    RefusedError,
    malformed,
)
from runtime_node.http.request import NOTED_HEADERS, Head, check_head
from runtime_node.http.target import parse_target
from runtime_node.http.websocket import FrontWebSocket

if TYPE_CHECKING:
    from runtime_node.http.listener import Listener

_logger = logging.getLogger(__name__)

_BAD_SYNTAX = malformed("The request is not well-formed HTTP/1.1.")
_BAD_CHUNKS = malformed("The chunked body's framing is larger than a body of its size needs.")
_NEVER = float("inf")
# Chunks of one byte take six; beyond that a client sends extensions or trailers to no purpose.
_CHUNK_OVERHEAD = 8
_CHUNK_ALLOWANCE = 16 * 1024


class FrontConnection(HttpToolsProtocol):
    """A connection of the listener; one per client, on the front loop."""

    def __init__(self, front: Listener) -> None:
        super().__init__(front.config, front.server_state, {}, front.loop)
        self.front = front
        self.limits = front.limits
        # Data after the last request is dropped below; the parser is to accept nothing that it would refuse.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=False)
        self.deadline = front.now + front.limits.header_timeout
        self.exchange: Exchange | None = None
        self.waiting: deque[Exchange | Problem] = deque()
        self.receiving: Exchange | None = None
        self.head: Head | None = None
        self.last_read = 0.0
        self.stalled_since = 0.0
        self.half_closed = False
        self.finished = False
        self.lingering = False
        self.upgrade: Head | None = None
        self.replaying = False

    # --- transport ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a new connection, or turn it away at the node's limit."""
        super().connection_made(transport)
        front = self.front
        if front.draining:
            self._turn_away(NODE_DRAINING)
        elif len(front.connections) > self.limits.max_connections:
            front.refused_connections += 1
            self._turn_away(TOO_MANY_CONNECTIONS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the app, and let go of everything."""
        self.deadline = _NEVER
        exchange = self.exchange
        if exchange is not None:
            exchange.disconnected()
        self.exchange = self.receiving = None
        self.waiting.clear()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Go on with a complete request of a client that has closed its sending side, for a while."""
        exchange = self.exchange
        if self.lingering or exchange is None or exchange.more_body:
            return False
        self.half_closed = True
        self.deadline = min(self.deadline, self.front.now + self.limits.half_close_timeout)
        return True

    def pause_writing(self) -> None:
        """Make senders wait, and start the client's time to read."""
        self.stalled_since = self.front.now
        self.deadline = min(self.deadline, self.stalled_since + self.limits.write_timeout)
        super().pause_writing()

    def resume_writing(self) -> None:
        """Let senders go on."""
        self.stalled_since = 0.0
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Parse what the client sent."""
        if self.finished:
            return
        self.last_read = self.front.now
        head = self.head
        if head is not None:
            head.size += len(data)
        receiving = self.receiving
        if receiving is not None and receiving.chunked_in:
            receiving.wire += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._unreadable(error)
        else:
            if self.head is not None and self.head.size > self.limits.max_header_bytes:
                self._reject(HEADERS_TOO_LARGE if self.head.target_done else TARGET_TOO_LONG)
            elif receiving is not None and receiving.chunked_in and not self.finished:
                if receiving.wire > _CHUNK_ALLOWANCE + _CHUNK_OVERHEAD * receiving.received:
                    self._reject(_BAD_CHUNKS)

    # --- parser callbacks ---

    def on_message_begin(self) -> None:
        """Begin a request."""
        if self.replaying:
            return
        if self.finished or len(self.waiting) > self.limits.max_pipelined:
            # Not answered: RFC 9112 §9.3.2 lets a client repeat what was behind a close.
            self.finished = True
            raise RefusedError(_BAD_SYNTAX)
        self.head = Head()
        if self.exchange is None:
            self.deadline = self.front.now + self.limits.header_timeout

    def on_url(self, url: bytes) -> None:
        """Collect the request target."""
        head = self.head
        if head is not None:
            head.target += url
            if len(head.target) > self.limits.max_target_bytes:
                raise RefusedError(TARGET_TOO_LONG)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header; trailers of a body are read and dropped."""
        head = self.head
        if head is None:
            return
        name = name.lower()
        head.headers.append((name, value))
        if name in NOTED_HEADERS:
            head.note(name, value)

    def on_headers_complete(self) -> None:
        """Check the head, and begin the exchange or put it behind those before it."""
        if self.replaying:
            return
        head = self.head
        assert head is not None
        self.head = None
        parser = self.parser
        method = parser.get_method().decode("ascii")
        version = parser.get_http_version()
        if len(head.headers) > self.limits.max_headers or (
            head.size > self.limits.max_header_bytes and head.exact_size() > self.limits.max_header_bytes
        ):
            raise RefusedError(HEADERS_TOO_LARGE)
        target = parse_target(head.target, method)
        check_head(head, method, version, target.authority)
        path = target.path.decode("ascii")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "method": method,
            "root_path": "",
            "path": unquote(path) if "%" in path else path,
            "raw_path": target.path,
            "query_string": target.query,
            "headers": head.headers,
            "state": {},
        }
        if self.front.trusted is not None:
            self.front.trusted.apply(scope)
        exchange = Exchange(self, scope, head.authority, version != "1.0" and parser.should_keep_alive())
        exchange.x_app = head.x_app
        exchange.content_length = head.content_length
        exchange.chunked_in = head.chunked
        exchange.awaits_continue = head.awaits_continue
        exchange.more_body = head.chunked or bool(head.content_length)
        if parser.should_upgrade():
            head.method = method
            self.upgrade = head
        self.receiving = exchange
        if self.upgrade is not None and head.wants_websocket:
            return
        if self.exchange is None:
            self._begin(exchange)
        else:
            self.flow.pause_reading()
            self.waiting.append(exchange)

    def on_body(self, body: bytes) -> None:
        """Pass a piece of a body on."""
        receiving = self.receiving
        if receiving is not None:
            receiving.feed(body)

    def on_message_complete(self) -> None:
        """End a request."""
        receiving = self.receiving
        if receiving is None or self.upgrade is not None:
            return
        self.receiving = None
        if not receiving.keep_alive:
            self.finished = True
        receiving.end_of_body()

    # --- exchanges ---

    def _begin(self, exchange: Exchange) -> None:
        self.exchange = exchange
        scope = exchange.scope
        found = self.front.router.lookup(
            exchange.authority, exchange.x_app, scope["raw_path"], scope["query_string"]
        )
        if isinstance(found, Problem):
            exchange.refuse(found)
            return
        gate, scope["root_path"] = found
        exchange.enter(gate)
        if self.exchange is exchange:
            self.deadline = self._exchange_deadline(exchange)

    def _exchange_deadline(self, exchange: Exchange) -> float:
        deadline = exchange.deadline or _NEVER
        if exchange.more_body:
            deadline = min(deadline, max(self.last_read, self.front.now - 1) + self.limits.body_idle_timeout)
        if self.stalled_since:
            deadline = min(deadline, self.stalled_since + self.limits.write_timeout)
        if self.half_closed:
            deadline = min(deadline, self.front.now + self.limits.half_close_timeout)
        return deadline

    def closes_after(self, exchange: Exchange) -> bool:
        """Tell whether the connection ends with this response whatever the client asked for."""
        return self.half_closed or self.front.draining

    def answer(self, exchange: Exchange, problem: Problem) -> None:
        """Send the node's own answer as the exchange's response; the exchange is complete."""
        keep = exchange.keep_alive and not problem.close and not exchange.more_body
        exchange.keep_alive = keep and not self.closes_after(exchange)
        self.front.count(problem)
        self.transport.write(
            problem.encode(
                date=self.front.date_line, keep_alive=exchange.keep_alive, head_only=exchange.head_only
            )
        )
        self.exchange_done(exchange)

    def abandon(self) -> None:
        """Close in the middle of a response: nothing more may look like a part of it."""
        self.finished = True
        self.transport.abort()

    def exchange_done(self, exchange: Exchange) -> None:
        """Go on after a complete response: the next request, waiting for one, or the end."""
        if self.exchange is not exchange:
            return
        self.exchange = None
        if self.transport.is_closing():
            return
        if not exchange.keep_alive:
            if exchange.more_body:
                self.linger()
            else:
                self._close()
            return
        self.deadline = self.front.now + self.limits.keep_alive_timeout
        self.flow.resume_reading()
        if self.waiting:
            self._next()

    def _next(self) -> None:
        item = self.waiting.popleft()
        if isinstance(item, Problem):
            self._turn_away(item)
        else:
            self._begin(item)

    def resume_reading(self) -> None:
        """Read on after a complete body, unless requests wait already."""
        if not self.waiting:
            self.flow.resume_reading()

    # --- ends ---

    def shutdown(self) -> None:
        """Close when nothing is being served; else after what is."""
        if self.exchange is None:
            self._close()

    def _unreadable(self, error: httptools.HttpParserError) -> None:
        cause = error.__context__
        if isinstance(cause, RefusedError):
            if not self.finished:
                self._reject(cause.problem)
        elif isinstance(error, httptools.HttpParserCallbackError):
            _logger.error("request handling failed", exc_info=cause, extra={"action": "http.fault"})
            self._reject(INTERNAL)
        elif not self.finished:
            self._reject(_BAD_SYNTAX)

    def _reject(self, problem: Problem) -> None:
        """Read no more, and answer with the problem when its turn comes."""
        self.finished = True
        exchange = self.exchange
        if exchange is None:
            self._turn_away(problem)
        elif exchange is self.receiving:
            exchange.cut(problem)
        else:
            if self.waiting and self.waiting[-1] is self.receiving:
                self.waiting.pop()
            self.waiting.append(problem)
        self.receiving = None

    def _turn_away(self, problem: Problem) -> None:
        self.front.count(problem)
        self.transport.write(problem.encode(date=self.front.date_line))
        self.linger()

    def linger(self) -> None:
        """Close, but read off what is under way: a reset would take the answer from the client."""
        if self.lingering or self.transport.is_closing():
            return
        self.finished = self.lingering = True
        self.deadline = self.front.now + self.limits.linger_timeout
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _close(self) -> None:
        self.finished = True
        self.deadline = self.front.now + self.limits.write_timeout
        self.transport.close()

    def expire(self, now: float) -> None:
        """Act on a deadline that has passed; called by the listener's sweep."""
        if self.lingering or self.transport.is_closing():
            self.abandon()
            return
        exchange = self.exchange
        if exchange is None:
            if self.head is not None or self.receiving is not None:
                self._reject(HEADER_TIMEOUT)
            else:
                self._close()
            return
        self.deadline = _NEVER
        if (self.half_closed and not self.stalled_since and now < exchange.deadline) or (
            self.stalled_since and now >= self.stalled_since + self.limits.write_timeout
        ):
            exchange.disconnected()
            self.abandon()
        elif exchange.deadline and now >= exchange.deadline:
            exchange.expire()
        elif exchange.more_body and now >= self.last_read + self.limits.body_idle_timeout:
            if not self.flow.read_paused:
                exchange.cut(BODY_TIMEOUT)
            else:
                self.last_read = now
        if self.exchange is exchange and self.deadline == _NEVER:
            self.deadline = self._exchange_deadline(exchange)

    # --- upgrades ---

    def _upgrade(self, rest: bytes) -> None:
        """Go over to WebSocket; any other upgrade is not taken up, and the request's body is a body."""
        head, exchange = self.upgrade, self.receiving
        self.upgrade = None
        assert head is not None
        assert exchange is not None
        if not head.wants_websocket:
            self._ignore_upgrade(head, exchange, rest)
            return
        self.receiving = None
        if self.exchange is not None:
            self._reject(malformed("A WebSocket handshake cannot be pipelined."))
            return
        scope = exchange.scope
        found = self.front.router.lookup(
            exchange.authority, exchange.x_app, scope["raw_path"], scope["query_string"]
        )
        if isinstance(found, Problem):
            exchange.more_body = exchange.keep_alive = False
            self.exchange = exchange
            exchange.refuse(found)
            return
        gate, scope["root_path"] = found
        websocket = FrontWebSocket(self.front, gate, scope)
        self.deadline = _NEVER
        self.connections.discard(self)
        self.transport.set_protocol(websocket)
        websocket.connection_made(self.transport)
        websocket.begin(rest)

    def _ignore_upgrade(self, head: Head, exchange: Exchange, rest: bytes) -> None:
        # llhttp takes all that follows for the other protocol; a fresh parser that is told only the framing
        # reads the body as the sender, and any proxy before us, meant it.
        self.parser = httptools.HttpRequestParser(self)
        framing = b"transfer-encoding: chunked\r\n" if exchange.chunked_in else b""
        if exchange.content_length is not None:
            framing = b"content-length: %d\r\n" % exchange.content_length
        if not exchange.keep_alive:
            framing += b"connection: close\r\n"
        version = exchange.scope["http_version"].encode("ascii")
        self.replaying = True
        try:
            self.parser.feed_data(head.method.encode("ascii") + b" / HTTP/" + version + b"\r\n" + framing)
            self.parser.feed_data(b"\r\n")
        finally:
            self.replaying = False
        if rest:
            self.data_received(rest)

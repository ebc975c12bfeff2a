"""Reads requests off a connection: llhttp through uvicorn's protocol, with what it leaves open tightened.

Ends at a checked head and the pieces of its body; when a request is served is for the connection to say.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, cast
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from runtime_node.http.exchange import Exchange
from runtime_node.http.problems import (
    HEADERS_TOO_LARGE,
    INTERNAL,
    TARGET_TOO_LONG,
    Problem,
    RefusedError,
    malformed,
)
from runtime_node.http.request import NOTED_HEADERS, Head, check_head
from runtime_node.http.target import parse_target

if TYPE_CHECKING:
    from runtime_node.http.connection import FrontConnection
    from runtime_node.http.listener import Listener

_logger = logging.getLogger(__name__)

_BAD_SYNTAX = malformed("The request is not well-formed HTTP/1.1.")
_BAD_CHUNKS = malformed("The chunked body's framing is larger than a body of its size needs.")
# Chunks of one byte take six; beyond that a client sends extensions or trailers to no purpose.
_CHUNK_OVERHEAD = 8
_CHUNK_ALLOWANCE = 16 * 1024


class RequestReader(HttpToolsProtocol):
    """The reading half of a connection. The connection gives it the four methods at the end."""

    def __init__(self, front: Listener) -> None:
        super().__init__(front.config, front.server_state, {}, front.loop)
        self.front = front
        self.limits = front.limits
        # Data after the last request is dropped here; the parser is to accept nothing that it would refuse.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=False)
        self.head: Head | None = None
        """The request whose head is being read."""
        self.receiving: Exchange | None = None
        """The request whose body is being read."""
        self.finished = False
        """Nothing is read any more: what comes is dropped."""
        self.last_read = front.now
        self._read_size = 0
        self._upgrade: Head | None = None
        self._replaying = False

    def data_received(self, data: bytes) -> None:
        """Parse what the client sent."""
        self.last_read = self.front.now
        head = self.head
        if head is not None:
            head.later_size += len(data)
        receiving = self.receiving
        if receiving is not None and receiving.chunked_in:
            receiving.wire += len(data)
        while data and not self.finished:
            self._read_size = len(data)
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                if self._take_upgrade(data):
                    return
            except httptools.HttpParserError as error:
                self._unreadable(error)
                return
            else:
                break
        self._check_sizes()

    def _check_sizes(self) -> None:
        head, receiving = self.head, self.receiving
        if self.finished:
            return
        if head is not None and head.later_size > self.limits.max_header_bytes:
            self.reject(HEADERS_TOO_LARGE)
        elif receiving is not None and (
            receiving.wire > _CHUNK_ALLOWANCE + _CHUNK_OVERHEAD * receiving.received
        ):
            self.reject(_BAD_CHUNKS)

    def _unreadable(self, error: httptools.HttpParserError) -> None:
        cause = error.__context__
        if self.finished:
            return
        if isinstance(cause, RefusedError):
            self.reject(cause.problem)
        elif isinstance(error, httptools.HttpParserCallbackError):
            _logger.error("request handling failed", exc_info=cause, extra={"action": "http.fault"})
            self.reject(INTERNAL)
        else:
            self.reject(_BAD_SYNTAX)

    # --- parser callbacks ---

    def on_message_begin(self) -> None:
        """Begin a request."""
        if self._replaying:
            return
        if self.finished or not self.accepts_request():
            # Not answered: RFC 9112 §9.3.2 lets a client repeat what was behind a close.
            self.finished = True
            raise RefusedError(_BAD_SYNTAX)
        self.head = Head(self._read_size)

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
        # llhttp leaves the white space behind a value on it; it is none of it (RFC 9110 §5.5).
        value = value.rstrip(b" \t")
        head.headers.append((name, value))
        if name in NOTED_HEADERS:
            head.note(name, value)

    def on_headers_complete(self) -> None:
        """Check the head, and hand the exchange on."""
        if self._replaying:
            return
        head = self.head
        assert head is not None
        self.head = None
        parser = self.parser
        head.method = method = parser.get_method().decode("ascii")
        version = parser.get_http_version()
        most = self.limits.max_header_bytes
        if len(head.headers) > self.limits.max_headers or (
            head.first_size + head.later_size > most and head.exact_size() > most
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
        exchange = Exchange(
            cast("FrontConnection", self), scope, head, version != "1.0" and parser.should_keep_alive()
        )
        self.receiving = exchange
        if parser.should_upgrade():
            self._upgrade = head
        if not head.wants_websocket:
            self.request_began(exchange)

    def on_body(self, body: bytes) -> None:
        """Pass a piece of a body on."""
        receiving = self.receiving
        if receiving is not None:
            receiving.feed(body)

    def on_message_complete(self) -> None:
        """End a request."""
        receiving = self.receiving
        if receiving is None or self._upgrade is not None:
            return
        self.receiving = None
        if not receiving.keep_alive:
            self.finished = True
        receiving.end_of_body()

    # --- upgrades ---

    def _take_upgrade(self, rest: bytes) -> bool:
        """Go over to WebSocket and return True; any other upgrade is not taken up, and a body is a body."""
        head, exchange = self._upgrade, self.receiving
        self._upgrade = None
        assert head is not None
        assert exchange is not None
        if head.wants_websocket:
            self.receiving = None
            self.websocket_began(exchange, rest)
            return True
        # llhttp takes all that follows for the other protocol. A fresh parser that is told only the framing
        # reads the body as the sender, and any proxy before us, meant it.
        framing = b"transfer-encoding: chunked\r\n" if exchange.chunked_in else b""
        if head.content_length is not None:
            framing = b"content-length: %d\r\n" % head.content_length
        if not exchange.keep_alive:
            framing += b"connection: close\r\n"
        version = exchange.scope["http_version"].encode("ascii")
        self.parser = httptools.HttpRequestParser(self)
        self._replaying = True
        self.parser.feed_data(b"%b / HTTP/%b\r\n%b\r\n" % (head.method.encode("ascii"), version, framing))
        self._replaying = False
        return False

    # --- the connection's part ---

    def accepts_request(self) -> bool:
        """Tell whether one more request may begin, and take note of its beginning."""
        raise NotImplementedError

    def request_began(self, exchange: Exchange) -> None:
        """Serve the request when its turn comes."""
        raise NotImplementedError

    def websocket_began(self, exchange: Exchange, rest: bytes) -> None:
        """Go over to WebSocket; `rest` came after the head."""
        raise NotImplementedError

    def reject(self, problem: Problem) -> None:
        """Read no more, and answer with the problem when its turn comes."""
        raise NotImplementedError

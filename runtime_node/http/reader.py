"""Reads requests off a connection: llhttp, with what it leaves open tightened.

Ends at a checked head and the pieces of its body; when a request is served is for the connection to say.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol

import httptools

from runtime_node.asgi import Scope
from runtime_node.http.problems import (
    HEADERS_TOO_LARGE,
    INTERNAL,
    TARGET_TOO_LONG,
    Problem,
    RefusedError,
    malformed,
)
from runtime_node.http.request import FORWARDED, HEADER_NAMES, NOTED, Head, check_head, header_name
from runtime_node.http.scope import Endpoints, http_scope
from runtime_node.http.shared import FrontShared
from runtime_node.http.target import parse_target

if TYPE_CHECKING:
    from runtime_node.http.exchange import Exchange

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a connection of HTTP/2 begins with (RFC 9113 §3.4); the parser stops at it."""

_logger = logging.getLogger(__name__)

_BAD_SYNTAX = malformed("The request is not well-formed HTTP/1.1.")
_BAD_CHUNKS = malformed("The chunked body's framing is larger than a body of its size needs.")
# Chunks of one byte take six; beyond that a client sends extensions or trailers to no purpose.
_CHUNK_OVERHEAD = 8
_CHUNK_ALLOWANCE = 16 * 1024


class RequestTaker(Protocol):
    """Whoever a reader reads for: a connection."""

    def accepts_request(self) -> bool:
        """Tell whether one more request may begin, and take note of its beginning."""
        ...

    def make_exchange(self, scope: Scope, head: Head, keep_alive: bool) -> Exchange:
        """Make the exchange for a head that was checked."""
        ...

    def request_began(self, exchange: Exchange) -> None:
        """Serve the request when its turn comes."""
        ...

    def handshake_began(self, exchange: Exchange, rest: bytes) -> None:
        """Go over to WebSocket when its turn comes; `rest` came after the head."""
        ...

    def reject(self, problem: Problem) -> None:
        """Read no more, and answer with the problem when its turn comes."""
        ...

    def preface_came(self, rest: bytes) -> bool:
        """Go over to HTTP/2 if nothing but its preface has come before `rest`; tell whether it did."""
        ...


class RequestReader:
    """Turns the bytes of one connection into exchanges, and feeds these their bodies."""

    def __init__(self, shared: FrontShared, taker: RequestTaker, endpoints: Endpoints) -> None:
        self._shared = shared
        self._taker = taker
        self.ends = endpoints
        self._limits = shared.limits
        self._parser: Any = self._new_parser()
        self.head: Head | None = None
        """The request whose head is being read."""
        self.receiving: Exchange | None = None
        """The request whose body is being read."""
        self.finished = False
        """Nothing is read any more: what comes is dropped."""
        self.last_read = shared.now
        self._read_size = 0
        self._upgrade: Head | None = None
        self._replaying = False

    def _new_parser(self) -> Any:
        parser = httptools.HttpRequestParser(self)
        # Data after the last request is dropped here; the parser is to accept nothing that it would refuse.
        parser.set_dangerous_leniencies(lenient_data_after_close=False)
        return parser

    def feed(self, data: bytes) -> None:
        """Parse what the client sent."""
        self.last_read = self._shared.now
        head = self.head
        if head is not None:
            head.later_size += len(data)
        receiving = self.receiving
        if receiving is not None and receiving.chunked_in:
            receiving.wire += len(data)
        while data and not self.finished:
            self._read_size = len(data)
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                if self.finished or self._take_upgrade(data):
                    return
            except httptools.HttpParserError as error:
                if not self._is_preface(data):
                    self._unreadable(error)
                return
            else:
                break
        if self.head is not None or self.receiving is not None:
            self._check_sizes()

    @property
    def head_bytes(self) -> int:
        """Bytes held of a head that is not complete."""
        head = self.head
        return 0 if head is None else head.first_size + head.later_size

    @property
    def plain_bytes(self) -> int:
        """How many bytes are nothing but a body, and so cost next to nothing to read."""
        receiving = self.receiving
        if receiving is None or receiving.chunked_in:
            return 0
        return receiving.content_length - receiving.received

    def end(self) -> None:
        """Read nothing any more, and let go of everything."""
        self.finished = True
        self.head = self.receiving = self._upgrade = None
        # The two know each other: nothing is to be left to the collector.
        self._parser = None

    def _check_sizes(self) -> None:
        head, receiving = self.head, self.receiving
        if self.finished:
            return
        if head is not None:
            most = self._limits.max_header_bytes
            if head.later_size > most or len(head.headers) > self._limits.max_headers:
                self._taker.reject(HEADERS_TOO_LARGE)
        elif receiving is not None and (
            receiving.wire > _CHUNK_ALLOWANCE + _CHUNK_OVERHEAD * receiving.received
        ):
            self._taker.reject(_BAD_CHUNKS)

    def _is_preface(self, data: bytes) -> bool:
        """Tell whether the parser has stopped at the preface of HTTP/2, and it was taken up."""
        head = self.head
        if head is None or head.target != b"*" or head.headers or self.finished:
            return False
        before = head.first_size + head.later_size - len(data)
        return data[: len(PREFACE) - before] == PREFACE[before:] and self._taker.preface_came(
            data[len(PREFACE) - before :]
        )

    def _unreadable(self, error: httptools.HttpParserError) -> None:
        cause = error.__context__
        if self.finished:
            return
        if isinstance(cause, RefusedError):
            self._taker.reject(cause.problem)
        elif isinstance(error, httptools.HttpParserCallbackError):
            _logger.error("request handling failed", exc_info=cause, extra={"action": "http.fault"})
            self._taker.reject(INTERNAL)
        else:
            self._taker.reject(_BAD_SYNTAX)

    # --- parser callbacks ---

    def on_message_begin(self) -> None:
        """Begin a request."""
        if self._replaying:
            return
        if self.finished or not self._taker.accepts_request():
            # Not answered: RFC 9112 §9.3.2 lets a client repeat what was behind a close.
            self.finished = True
            raise RefusedError(_BAD_SYNTAX)
        self.head = Head(self._read_size)

    def on_url(self, url: bytes) -> None:
        """Collect the request target."""
        head = self.head
        if head is not None:
            head.target += url
            if len(head.target) > self._limits.max_target_bytes:
                raise RefusedError(TARGET_TOO_LONG)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header; trailers of a body are read and dropped."""
        head = self.head
        if head is None:
            return
        low, kind = HEADER_NAMES.get(name) or header_name(name)
        # llhttp leaves the white space behind a value on it; it is none of it (RFC 9110 §5.5).
        value = value.rstrip(b" \t")
        if kind:
            if kind == NOTED:
                head.note(low, value)
            elif kind == FORWARDED and self.ends.trusted:
                head.forwarded = True
            else:
                return
        head.headers.append((low, value))

    def on_headers_complete(self) -> None:
        """Check the head, and hand the exchange on."""
        if self._replaying:
            return
        head = self.head
        assert head is not None
        self.head = None
        parser = self._parser
        head.method = method = parser.get_method().decode("ascii")
        version = parser.get_http_version()
        most = self._limits.max_header_bytes
        if len(head.headers) > self._limits.max_headers or (
            head.first_size + head.later_size > most and head.exact_size() > most
        ):
            raise RefusedError(HEADERS_TOO_LARGE)
        raw_path, query, authority = parse_target(head.target, method)
        check_head(head, method, version, authority)
        scope = http_scope(head, version, (raw_path, query), self.ends, self._shared.trusted)
        keep_alive = version != "1.0" and parser.should_keep_alive()
        self.receiving = exchange = self._taker.make_exchange(scope, head, keep_alive)
        if parser.should_upgrade():
            self._upgrade = head
        if not head.wants_websocket:
            self._taker.request_began(exchange)

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
            self._taker.handshake_began(exchange, rest)
            return True
        # llhttp takes all that follows for the other protocol. A fresh parser that is told only the framing
        # reads the body as the sender, and any proxy before us, meant it.
        framing = b"transfer-encoding: chunked\r\n" if exchange.chunked_in else b""
        if head.content_length is not None:
            framing = b"content-length: %d\r\n" % head.content_length
        if not exchange.keep_alive:
            framing += b"connection: close\r\n"
        version = exchange.version.encode("ascii")
        self._parser = self._new_parser()
        self._replaying = True
        self._parser.feed_data(b"%b / HTTP/%b\r\n%b\r\n" % (head.method.encode("ascii"), version, framing))
        self._replaying = False
        return False

"""One connection to another node: a request's bytes out, its response's in, with back pressure both ways.

Carries one request at a time; whose request it is, and where the response goes, is the forwarder's.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any, ClassVar

import httptools

from runtime_node.forwarding.carried import CLOSED, HIGH_WATER, MAX_HEAD_BYTES, BrokenLinkError, Carried
from runtime_node.forwarding.heads import RequestHead
from runtime_node.http.flow import TURN_SECONDS, Flow

_SLICE = 8 * 1024
_PART_BYTES = 64
"""What a piece takes beside its bytes: chunks may be of one byte each."""
_CONTINUE, _SWITCHING = 100, 101


UNCONFIRMED_SECONDS = 4.0
"""After which a connection is broken on which nothing that was sent is confirmed."""
_UNTIL_ITS_TIME = 0.0
"""Only the request's own time limit ends it."""


def break_unconfirmed(connection: socket.socket, seconds: float) -> None:
    """Have the kernel break a connection on which something that was sent is not taken for so long; 0: never.

    To Linux that is also so while the peer lives and does not read (tcp(7), TCP_USER_TIMEOUT).
    """
    if (number := getattr(socket, "TCP_USER_TIMEOUT", None)) is not None:
        connection.setsockopt(socket.IPPROTO_TCP, number, int(seconds * 1000))


class Link(Carried, asyncio.Protocol):
    """A connection to a node, on the front loop. `ask` → `send_body` → `head` → `read` … until b""."""

    carries_trailers: ClassVar[bool] = False
    refused: ClassVar[bool] = False
    """Never told here: a node that lets nothing in says so in a response."""
    trailers: ClassVar[list[tuple[bytes, bytes]]] = []

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop
        self._parser: Any = None
        self._unread = b""
        self._has_turn = False
        self._patient = False
        self._reset(head_only=False)

    def _reset(self, *, head_only: bool) -> None:
        self._expect()
        self.continued = False
        """The other side has asked for the body."""
        self.upgraded = False
        """What comes is not HTTP any more."""
        self._head_only = head_only
        self._has_head = False
        self._until_close = False
        self._keep_alive = False
        self._head_bytes = 0
        self._buffered = 0

    # --- transport ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection."""
        self.transport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER)
        self.flow = Flow(transport, self._loop)

    def data_received(self, data: bytes) -> None:
        """Take bytes of the response, for some milliseconds at a time."""
        self._unread = self._unread + data if self._unread else data
        if not self._has_turn and self._read_turn():
            self._take_turns()

    def eof_received(self) -> bool:
        """Close with the other side."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """End the response: whole if it was one without a length, else broken off."""
        rest, self._unread = self._unread, b""
        if rest and not self._fault:
            self._feed(rest)
        self.lost = True
        if self.upgraded or (self._until_close and exc is None):
            self.complete = True
        elif not self.complete:
            self._fail(CLOSED)
        self._parser = None
        self._news.set()
        self.flow.resume_writing()

    def pause_writing(self) -> None:
        """Make who writes wait."""
        self.flow.pause_writing()

    def resume_writing(self) -> None:
        """Let who writes go on."""
        self.flow.resume_writing()

    # --- reading ---

    def _read_turn(self) -> bool:
        """Parse until this turn is over or enough waits; tell whether there is something for the next one."""
        data, self._unread = self._unread, b""
        over = time.monotonic() + TURN_SECONDS
        position = 0
        while position < len(data) and not self._fault and self._buffered <= HIGH_WATER:
            self._feed(data[position : position + _SLICE])
            position += _SLICE
            if time.monotonic() > over:
                break
        self._unread = b"" if self._fault else data[position:]
        full = self._buffered > HIGH_WATER
        if full:
            self.flow.pause_reading()
        self._news.set()
        return bool(self._unread) and not full

    def _take_turns(self) -> None:
        self._has_turn = True
        self.flow.end_turn(self._next_turn)

    def _next_turn(self) -> bool:
        self._has_turn = self._read_turn()
        return self._has_turn

    def _feed(self, data: bytes) -> None:
        if self.upgraded:
            self._put(data)
            return
        if self._parser is None or self.complete:
            # Nobody has asked: the next request's answer must not begin with it.
            self._fail("it sent more than was asked for")
            self.transport.abort()
            return
        self.heard = True
        if not self._has_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self.upgraded = True
            if rest := data[upgrade.args[0] :]:
                self._put(rest)
        except httptools.HttpParserError as error:
            self._fail(f"its response cannot be read: {type(error).__name__}")
            self.transport.abort()
        if not self._has_head and self._head_bytes > MAX_HEAD_BYTES:
            self._fail("its response's head is too large")
            self.transport.abort()

    def _put(self, data: bytes) -> None:
        self._parts.append(data)
        self._buffered += len(data) + _PART_BYTES

    def _fail(self, why: str) -> None:
        self._fault = self._fault or why
        self._keep_alive = False

    # --- parser callbacks ---

    def on_message_begin(self) -> None:
        """Refuse what nobody asked for."""
        if self.complete:
            raise BrokenLinkError("more than one response")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header; trailers are dropped."""
        if not self._has_head:
            self.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """Take the head; interim ones are for this hop."""
        parser = self._parser
        status = parser.get_status_code()
        if status < 200 and status != _SWITCHING:
            self.headers = []
            self.continued = self.continued or status == _CONTINUE
            return
        names = [name for name, _ in self.headers]
        lengths = names.count(b"content-length")
        chunked = b"transfer-encoding" in names
        if (lengths and chunked) or lengths > 1:
            raise BrokenLinkError("two framings")
        self.status = status
        self._has_head = True
        self._keep_alive = parser.should_keep_alive()
        self._until_close = not (lengths or chunked or self._head_only or status in (101, 204, 304))
        if self._head_only:
            self.complete = True

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        if self._head_only:
            raise BrokenLinkError("a body in the answer to HEAD")
        self._put(body)

    def on_message_complete(self) -> None:
        """End the response."""
        if self._has_head and self.status != _SWITCHING:
            self.complete = True

    # --- whoever has it ---

    def begin(self, *, head_only: bool) -> None:
        """Be ready for the response to one request; `head_only` for one that has no body whatever it says."""
        self._reset(head_only=head_only)
        self._parser = httptools.HttpResponseParser(self)

    def write(self, data: bytes) -> None:
        """Send bytes; wait with `drain` before more."""
        if not self.lost:
            self.transport.write(data)

    def be_patient(self, patient: bool) -> None:
        """Say whether the other side may leave unread what is sent: an app may take its time for a body."""
        self._patient = patient
        connection = self.transport.get_extra_info("socket")
        break_unconfirmed(connection, _UNTIL_ITS_TIME if patient else UNCONFIRMED_SECONDS)

    def ask(self, head: RequestHead) -> None:
        """Send a request's head; its body is to follow, also one of nothing."""
        self._asked = head
        self.begin(head_only=head.head_only)
        if head.has_body != self._patient:
            self.be_patient(head.has_body)
        self.write(head.data)

    async def body_is_wanted(self) -> bool:
        """Wait until the body may be sent; tell whether it is asked for. Raises BrokenLinkError."""
        while self._asked.awaits_continue and not self.continued:
            if self.status:
                return False  # answered without the body, which the client is never asked for then
            await self._wait()
        return True

    def send_body(self, body: bytes, more: bool) -> None:
        """Send a piece of the request's body, framed as its head has said."""
        chunked = self._asked.chunked
        data = b"%x\r\n%b\r\n" % (len(body), body) if chunked and body else body
        if chunked and not more:
            data += b"0\r\n\r\n"
        if data and self._asked.has_body:
            self.write(data)

    async def head(self) -> None:
        """Wait for the response's head. Raises BrokenLinkError."""
        while not self._has_head:
            await self._wait()

    def _taken(self) -> None:
        self._buffered = 0
        if not self.lost:
            self.flow.resume_reading()
            if self._unread and not self._has_turn:
                self._take_turns()

    @property
    def reusable(self) -> bool:
        """Whether it can carry another request now."""
        usable = self._keep_alive and not self.lost and not self.transport.is_closing()
        return usable and self.complete and not (self._unread or self._parts)

"""One connection of HTTP/2 to another node, with one request on it at a time: nobody shares anybody's fate.

What waits on either side is bounded by the windows of the stream: ours is opened as the client reads.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import ClassVar

from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.settings import SettingCodes

from runtime_node.forwarding.carried import CLOSED, HIGH_WATER, MAX_HEAD_BYTES, Carried, Fields
from runtime_node.forwarding.heads import RequestFields
from runtime_node.http.flow import Flow
from runtime_node.http.http2.engine import keep_table_small, new_client_engine
from runtime_node.http.http2.framed import FramedConnection
from runtime_node.http.http2.outbox import Outbox

_PARTS = 64
"""Pieces that wait as they came; a piece of one byte costs fifty."""
_STATUS = re.compile(rb"[2-5][0-9]{2}")


class Http2Link(Carried, FramedConnection):
    """A connection to a node, on the front loop. `ask` → `send_body` → `head` → `read` … until b"".

    Its bodies are as long as they are, and need nobody's word that they may come.
    """

    carries_trailers: ClassVar[bool] = True

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        Carried.__init__(self)
        FramedConnection.__init__(
            self, loop, new_client_engine(MAX_HEAD_BYTES), MAX_HEAD_BYTES, time.monotonic()
        )
        self._leaving = False
        """The node takes no further request here."""
        self._greeted = False
        """It has said that it speaks HTTP/2."""
        self._writable = True
        self._number = 0
        self._outbox: Outbox | None = None
        self._reset()

    def _reset(self) -> None:
        self._expect()
        self.trailers: Fields = []
        self.refused = False
        """The node has let nothing of the request in."""
        self._untaken = 0

    # --- transport ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, and say what it is."""
        self.transport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER)
        self.flow = Flow(transport, self._loop)
        self.flush()

    def eof_received(self) -> bool:
        """Close with the other side."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Break the response off, unless it is whole."""
        # What a turn has left unread, be it the end of the response.
        self.lost = True
        while not self.ended and self.read_turn():
            pass
        self.ended = True
        self._fail(CLOSED)

    def pause_writing(self) -> None:
        """Make who sends wait."""
        self._writable = False
        self.flow.pause_writing()

    def resume_writing(self) -> None:
        """Let who sends go on."""
        self._writable = True
        if self._outbox is None or not self._outbox.waits:
            self.flow.resume_writing()
        self._advance()

    # --- frames ---

    def _now(self) -> float:
        return time.monotonic()

    def _goodbye(self, last_stream: int) -> None:
        self._leaving = True
        if self._number > last_stream and not self.heard:
            self.refused = True
            self._fail("it is closing the connection")

    def _close(self, code: ErrorCodes | int) -> None:
        # What speaks no HTTP/2 has understood nothing of the request.
        self.refused = not self._greeted
        name = code.name if isinstance(code, ErrorCodes) else code
        self._fail(f"its response cannot be read: {name}")
        self.ended = self._leaving = True
        self.abort()

    def _fail(self, why: str) -> None:
        if not self.complete:
            self._fault = self._fault or why
        self._news.set()
        if self._outbox is not None:
            self._outbox.clear()
        self.flow.resume_writing()

    def _handle(self, event: Event) -> None:
        match event:
            case WindowUpdated():
                self._advance()
            case RemoteSettingsChanged():
                self._greeted = True
                if SettingCodes.HEADER_TABLE_SIZE in event.changed_settings:
                    keep_table_small(self.engine)
                self._advance()
            case ResponseReceived() | TrailersReceived() | DataReceived() | StreamEnded() | StreamReset():
                if event.stream_id == self._number:
                    self._take_response(event)

    def _take_response(
        self, event: ResponseReceived | TrailersReceived | DataReceived | StreamEnded | StreamReset
    ) -> None:
        self._news.set()
        match event:
            case ResponseReceived():
                self.heard = True
                (_, status), *self.headers = event.headers
                if _STATUS.fullmatch(status):
                    self.status = int(status)
                else:
                    self._close(ErrorCodes.PROTOCOL_ERROR)
            case DataReceived():
                self._untaken += event.flow_controlled_length
                if event.data:
                    self._parts.append(event.data)
                    if len(self._parts) > _PARTS:
                        self._parts = [b"".join(self._parts)]
            case TrailersReceived():
                self.trailers = list(event.headers)
            case StreamEnded():
                self.complete = True
            case StreamReset():
                # Behind a response that is whole it says that the rest of the request is of no use.
                self._leaving = True
                self._outbox = None
                self.refused = event.error_code == ErrorCodes.REFUSED_STREAM and not self.heard
                self._fail("it reset the request")

    def _advance(self) -> None:
        outbox = self._outbox
        if outbox is None or outbox.ended or self._fault or self.lost:
            return
        while self._writable and (size := outbox.send_frame()):
            self.sent(size)
        if outbox.waits:
            self.flow.pause_writing()
            return
        outbox.finish()
        self.flush()
        if self._writable:
            self.flow.resume_writing()

    # --- whoever has it ---

    def ask(self, head: RequestFields) -> None:
        """Send a request's head; its body, or that it has none, is to follow."""
        self._reset()
        if self._leaving or self.lost:
            # It has ended before anything was sent.
            self.refused = True
            self._fail(CLOSED)
            return
        self._number = self.engine.get_next_available_stream_id()
        self.engine.send_headers(self._number, head.fields)
        self._outbox = Outbox(self.engine, self._number)
        self.flush()

    async def body_is_wanted(self) -> bool:
        """Return True: a front asks for a body as soon as its request is let in."""
        return True

    def send_body(self, body: bytes, more: bool) -> None:
        """Send a piece of the request's body; wait with `drain` before more."""
        outbox = self._outbox
        if outbox is None or outbox.ending or self._fault or self.lost:
            return
        outbox.put(body)
        if not more:
            outbox.end([])
        self._advance()

    async def head(self) -> None:
        """Wait for the response's head. Raises BrokenLinkError."""
        while not self.status:
            await self._wait()

    def _taken(self) -> None:
        count, self._untaken = self._untaken, 0
        if count and not (self.lost or self._fault):
            self.engine.acknowledge_received_data(count, self._number)
            self.flush()

    @property
    def reusable(self) -> bool:
        """Whether it can carry another request now."""
        outbox = self._outbox
        done = self.complete and not self._parts and outbox is not None and outbox.ended
        return done and not (self._leaving or self._fault or self.lost or self.transport.is_closing())

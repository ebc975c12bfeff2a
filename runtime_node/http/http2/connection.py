"""A connection of HTTP/2: its frames in order, its streams, its bounds, its end.

The protocol's own state is kept by `h2`; what may be asked of it for nothing is counted before it sees it.
"""

from __future__ import annotations

import asyncio
import contextlib

from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame

from runtime_node.http.flow import Flow
from runtime_node.http.http2.engine import WINDOW, keep_table_small, new_engine
from runtime_node.http.http2.exchange import StreamExchange
from runtime_node.http.http2.framed import FramedConnection
from runtime_node.http.http2.frames import Budget
from runtime_node.http.http2.request import read_request
from runtime_node.http.http2.stream import Stream
from runtime_node.http.http2.streams import Streams
from runtime_node.http.problems import Problem, RefusedError
from runtime_node.http.scope import Endpoints
from runtime_node.http.shared import FrontShared

_NEVER = float("inf")
_STEADY_BYTES = 64 * 1024
_RESETS = 1000
"""Requests that a client may give up at once before their answer begins; one more for each answer it took."""


class Http2Connection(FramedConnection):
    """A connection of the listener that has begun with the preface of HTTP/2. Belongs to the front loop."""

    def __init__(self, shared: FrontShared, ends: Endpoints, flow: Flow, peer: str | None) -> None:
        super().__init__(shared.loop, new_engine(shared.limits), shared.limits.max_header_bytes, shared.now)
        self.shared = shared
        self.limits = shared.limits
        self.flow = flow
        self.peer = peer
        """For the listener's shares."""
        self.waiting_place: int | None = next(shared.places)
        self._streams = Streams(shared, peer)
        self.deadline = shared.now + shared.limits.header_timeout
        self._ends = ends
        # A proxy stands for many clients.
        many = 10 if ends.trusted else 1
        self._resets = Budget(many * _RESETS, many * 20.0, shared.now)
        self._idle_since = shared.now
        self._begun = False
        """It has had a request."""
        self._head_since = 0.0
        self._consumed = 0
        self._stalled_since = 0.0
        self._untaken = 0
        self._leaving = False
        """GOAWAY was sent or came: no stream is begun any more."""

    # --- transport ---

    def take_over(self, transport: asyncio.Transport, rest: bytes) -> None:
        """Go on with a connection whose preface was read."""
        self.transport = transport
        self.shared.connections.add(self)
        transport.pause_reading()
        transport.set_protocol(self)
        transport.resume_reading()
        self._cutter.feed(rest)
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the apps, and let go of everything."""
        self._end()
        self.shared.connections.discard(self)
        self.shared.shares.leave(self)
        self.flow.resume_writing()

    def eof_received(self) -> bool:
        """Close: a client that reads still would not have closed its side."""
        return False

    def pause_writing(self) -> None:
        """Make senders wait, and take nothing that asks for more, until the client reads."""
        self._stalled_since = self.shared.now
        self._untaken = self.transport.get_write_buffer_size()
        self.hurry(self._stalled_since + self.limits.write_timeout)
        self.flow.pause_writing()
        self.flow.pause_reading()
        for stream in self._streams.all():
            stream.flow.pause_writing()

    def resume_writing(self) -> None:
        """Let senders go on."""
        self._stalled_since = 0.0
        self.flow.resume_writing()
        self.flow.resume_reading()
        self._advance(self._streams.all())

    # --- events ---

    def _now(self) -> float:
        return self.shared.now

    def _goodbye(self, last_stream: int) -> None:
        # Who leaves wants what is under way.
        self._leave()

    def _hold_head(self, held: int) -> None:
        shared = self.shared
        if held and not self.head_bytes:
            self._head_since = shared.now
            self.hurry(shared.now + self.limits.header_timeout)
        shared.head_bytes += held - self.head_bytes
        super()._hold_head(held)
        if shared.head_bytes > self.limits.max_unfinished_head_bytes:
            shared.shares.shed_heads()

    def _handle(self, event: Event) -> None:
        match event:
            case RequestReceived():
                self._begin(event)
            case DataReceived():
                self._consume(event.flow_controlled_length)
                stream = self._streams.get(event.stream_id)
                if stream is not None:
                    stream.feed(event.data, event.flow_controlled_length)
            case StreamEnded():
                stream = self._streams.get(event.stream_id)
                if stream is not None:
                    stream.end_of_body()
            case StreamReset():
                self._reset(event)
            case WindowUpdated():
                stream = self._streams.get(event.stream_id)
                self._advance(self._streams.blocked() if stream is None else [stream])
            case RemoteSettingsChanged():
                if SettingCodes.HEADER_TABLE_SIZE in event.changed_settings:
                    keep_table_small(self.engine)
                self._advance(self._streams.blocked())
            case _:
                pass

    def _consume(self, count: int) -> None:
        self._consumed += count
        if self._consumed >= WINDOW // 4:
            count, self._consumed = self._consumed, 0
            self.engine.increment_flow_control_window(count)

    def _begin(self, event: RequestReceived) -> None:
        shared, number = self.shared, event.stream_id
        if self._leaving or not self._streams.enter():
            self.engine.reset_stream(number, ErrorCodes.REFUSED_STREAM)
            if not self._resets.spend(shared.now):
                self._close(ErrorCodes.ENHANCE_YOUR_CALM)
            return
        self._begun = True
        self.waiting_place = None
        stream = Stream(self, number)
        self._streams.add(stream)
        stream.receiving = event.stream_ended is None
        try:
            request = read_request(shared, self._ends, event.headers, has_body=stream.receiving)
        except RefusedError as error:
            stream.refuse(error.problem)
            return
        stream.exchange = exchange = StreamExchange(stream, request, more_body=stream.receiving)
        gate = shared.gate_for(exchange)
        if gate is None:
            return
        if request.head.awaits_continue and stream.receiving:
            self.engine.send_headers(number, [(b":status", b"100")])
        exchange.enter(gate)
        self.hurry(stream.deadline())

    def _reset(self, event: StreamReset) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is None:
            return
        begun = stream.exchange is not None and stream.exchange.started
        stream.receiving = False
        stream.closed = True
        stream.lose()
        self.forget(stream)
        # Those too that `h2` has reset for what the client did to them: it was made to.
        if not begun and not self._resets.spend(self.shared.now):
            self._close(ErrorCodes.ENHANCE_YOUR_CALM)

    # --- streams ---

    def answered(self) -> None:
        """Take note of a response that was taken to its end."""
        self._resets.earn()

    def wait_for_room(self, stream: Stream) -> None:
        """Have a stream told when the client's windows let more through."""
        self._streams.wait_for_room(stream)
        self.hurry(stream.deadline())

    def _advance(self, waiting: list[Stream]) -> None:
        self._streams.advance(waiting, self.flow)
        self.flush()

    def forget(self, stream: Stream) -> None:
        """Let go of a stream that has ended; without one the connection waits for the next, or leaves."""
        if not self._streams.forget(stream):
            return
        if self.shared.draining and not self._leaving:
            self._leave()
        if self._streams or self.ended:
            return
        if self._leaving:
            self._close(ErrorCodes.NO_ERROR)
            return
        self.waiting_place = next(self.shared.places)
        self._idle_since = self.shared.now
        self.deadline = self._idle_since + self.limits.stream_idle_timeout

    # --- ends ---

    def hurry(self, deadline: float) -> None:
        """Have `expire` called at a time, or before."""
        self.deadline = min(self.deadline, deadline)

    def _leave(self) -> None:
        """Begin no stream any more; close when the last one has ended."""
        if self._leaving or self.ended:
            return
        self._leaving = True
        self.flush_now()
        # Past `h2`, which would not let the streams end.
        goodbye = GoAwayFrame(0)
        goodbye.last_stream_id = self.engine.highest_inbound_stream_id
        self.transport.write(goodbye.serialize())
        if not self._streams:
            self._close(ErrorCodes.NO_ERROR)

    def shutdown(self) -> None:
        """Close when nothing is being served; else after what is."""
        self._leave()

    def cut(self, problem: Problem) -> None:
        """End what is being served, with the problem if it can still be told, and close."""
        for stream in self._streams.all():
            if stream.exchange is not None:
                stream.exchange.cut(problem)
        if not self.ended:
            self._end()
        self.transport.close()

    def give_way(self) -> None:
        """Make room for another connection."""
        self.shared.connections.discard(self)
        self.shared.shares.leave(self)
        self._close(ErrorCodes.NO_ERROR)
        self.transport.close()

    def _close(self, code: ErrorCodes | int) -> None:
        """Say why, and close; read off what is under way, for a reset would take the word from the client."""
        if self.ended:
            return
        with contextlib.suppress(ProtocolError):  # it has said so itself
            self.engine.close_connection(code)
        self._end()
        self.deadline = self.shared.now + self.limits.linger_timeout
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _end(self) -> None:
        self.flush_now()
        self.ended = True
        self.deadline = _NEVER
        self.waiting_place = None
        self._cutter.clear()
        self._hold_head(0)
        for stream in self._streams.all():
            stream.closed = True
            stream.lose()
            self.forget(stream)

    def _reads_on(self) -> bool:
        before, self._untaken = self._untaken, self.transport.get_write_buffer_size()
        return 0 < self._untaken <= before - _STEADY_BYTES

    def expire(self, now: float) -> None:
        """Act on a deadline that has passed; called by the listener's sweep."""
        if self.ended or self.transport.is_closing():
            self.transport.abort()
            return
        if self._stalled_since and now >= self._stalled_since + self.limits.write_timeout:
            if not self._reads_on():
                self._end()
                self.transport.abort()
                return
            self._stalled_since = now
        if self.head_bytes and now >= self._head_since + self.limits.header_timeout:
            self._close(ErrorCodes.ENHANCE_YOUR_CALM)
            return
        self._streams.expire(now)
        if self.ended:
            return
        patience = self.limits.stream_idle_timeout if self._begun else self.limits.header_timeout
        if not self._streams and now >= self._idle_since + patience:
            self._close(ErrorCodes.NO_ERROR)
            return
        until = self._streams.deadline()
        self.deadline = self._idle_since + patience if until is None else until
        if self.head_bytes:
            self.hurry(self._head_since + self.limits.header_timeout)
        if self._stalled_since:
            self.hurry(self._stalled_since + self.limits.write_timeout)

"""One stream of a connection: where its exchange's response goes, as far as the client's windows let it.

The client's own window is opened again only as the app takes what came.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from h2.errors import ErrorCodes

from runtime_node.http.exchange import Exchange
from runtime_node.http.flow import Flow
from runtime_node.http.http2.exchange import StreamExchange
from runtime_node.http.http2.grpc import whole_answer
from runtime_node.http.http2.outbox import Outbox
from runtime_node.http.http2.response import Fields
from runtime_node.http.problems import Problem

if TYPE_CHECKING:
    from runtime_node.http.http2.connection import Http2Connection

_NEVER = float("inf")
_STEADY_BYTES = 64 * 1024
_WINDOW_STEP = 16 * 1024
"""What the app has taken before the client is told so."""


class StreamFlow(Flow):
    """Who waits for a slow client; that an app is slow is told by the window, which is not opened again."""

    __slots__ = ()

    def pause_reading(self) -> None:
        """Take note that the app has enough."""
        self.read_paused = True

    def resume_reading(self) -> None:
        """Take note that the app waits."""
        self.read_paused = False


class Stream:
    """The sink of one exchange."""

    __slots__ = (
        "_connection", "_outbox", "_sent", "_stalled_since", "_untaken", "closed", "exchange", "flow",
        "last_read", "number", "receiving", "shared",
    )  # fmt: skip

    def __init__(self, connection: Http2Connection, number: int) -> None:
        self._connection = connection
        self.shared = connection.shared
        self.number = number
        self.flow: Flow = StreamFlow(connection.transport, connection.shared.loop)
        self.exchange: StreamExchange | None = None
        self.receiving = True
        """The client may send more of its body."""
        self.closed = False
        """Nothing is sent any more."""
        self.last_read = self.shared.now
        self._untaken = 0
        self._outbox = Outbox(connection.engine, number)
        self._stalled_since = 0.0
        self._sent = 0
        if connection.flow.write_paused:
            self.flow.pause_writing()

    # --- driven by the connection ---

    def deadline(self) -> float:
        """Return when `expire` has something to do."""
        exchange = self.exchange
        found = _NEVER
        if exchange is not None and not exchange.complete:
            found = exchange.deadline or _NEVER
            if exchange.more_body and not exchange.grpc:
                found = min(found, self.last_read + self.shared.limits.body_idle_timeout)
        if self._stalled_since:
            found = min(found, self._stalled_since + self.shared.limits.write_timeout)
        return found

    def expire(self, now: float) -> bool:
        """Act on deadlines that have passed; tell whether it is the body that did not come."""
        exchange = self.exchange
        assert exchange is not None
        if self._stalled_since and now >= self._stalled_since + self.shared.limits.write_timeout:
            if self._sent < _STEADY_BYTES:
                self.lose()
                self.reset(ErrorCodes.CANCEL)
                return False
            self._stalled_since, self._sent = now, 0
        if exchange.complete:
            return False
        if exchange.deadline and now >= exchange.deadline:
            exchange.expire()
        elif exchange.more_body and now >= self.last_read + self.shared.limits.body_idle_timeout:
            if exchange.awaits_body():
                return True
            self.last_read = now
        return False

    def feed(self, body: bytes, counted: int) -> None:
        """Take a piece of the body, which has taken `counted` bytes of the window."""
        self._untaken += counted
        self.last_read = self.shared.now
        if self.exchange is not None:
            self.exchange.feed(body)

    def end_of_body(self) -> None:
        """Take note that the request is complete."""
        self.receiving = False
        if self.exchange is not None:
            self.exchange.end_of_body()

    def lose(self) -> None:
        """Take note that the client is gone, or wants no more of this."""
        self._outbox.clear()
        self._stalled_since = 0.0
        if self.exchange is not None:
            self.exchange.disconnected()
        self.flow.resume_writing()

    def advance(self, frames: int = 1 << 30) -> None:
        """Send what the client's windows let through, at most so many frames; the rest waits for it."""
        connection, outbox = self._connection, self._outbox
        while frames and not connection.flow.write_paused and (size := outbox.send_frame()):
            self._sent += size
            frames -= 1
            connection.sent(size)
        if outbox.waits:
            self.flow.pause_writing()
            if not self._stalled_since:
                self._stalled_since, self._sent = self.shared.now, 0
            connection.wait_for_room(self)
            return
        self._stalled_since = 0.0
        if outbox.finish():
            self._close()
        elif not connection.flow.write_paused:
            self.flow.resume_writing()

    def can_advance(self) -> bool:
        """Tell whether there is something to send and room for it."""
        return self._outbox.waits and not self.closed and self._outbox.has_room

    def _close(self) -> None:
        self.closed = True
        self._stalled_since = 0.0
        self.flow.resume_writing()
        if self.receiving:
            # The answer is whole: what is under way of the request is of no use (RFC 9113 §8.1).
            self._connection.engine.reset_stream(self.number, ErrorCodes.NO_ERROR)
        self._connection.answered()
        self._connection.flush()
        self._connection.forget(self)

    def reset(self, code: ErrorCodes) -> None:
        """End the stream in the middle: nothing that was sent may look like a whole response."""
        if self.closed:
            return
        self.closed = True
        self._outbox.clear()
        self._stalled_since = 0.0
        self.flow.resume_writing()
        self._connection.engine.reset_stream(self.number, code)
        self._connection.flush()
        self._connection.forget(self)

    def refuse(
        self, problem: Problem, *, head_only: bool = False, grpc: bool = False, late: bool = False
    ) -> None:
        """Answer with a problem, in gRPC's words where the client speaks it."""
        self.shared.count(problem)
        if grpc:
            self.start(whole_answer(problem, late=late), b"", ends=True, trailers=[])
            return
        body = problem.body()
        fields = [
            (b":status", b"%d" % problem.status),
            (b"date", self.shared.date_line[6:-2]),
            *problem.fields(len(body)),
        ]
        self.start(fields, b"" if head_only else body, ends=True, trailers=[])

    # --- driven by the exchange ---

    @property
    def transport(self) -> Stream:
        """What takes further pieces of a body: the stream itself."""
        return self

    def start(self, fields: Fields, body: bytes, *, ends: bool, trailers: Fields) -> None:
        """Send the head, and with `ends` all there is, the trailers behind the body."""
        if self.closed:
            return
        whole = ends and not body and not trailers
        self._connection.engine.send_headers(self.number, fields, end_stream=whole)
        if whole:
            self._close()
            return
        if body:
            self._outbox.put(body)
        if ends:
            self._outbox.end(trailers)
        self.advance()
        self._connection.flush()

    def write(self, data: bytes) -> None:
        """Send a further piece of the body."""
        if self.closed:
            return
        self._outbox.put(data)
        self.advance()

    def end(self, trailers: Fields) -> None:
        """End the response, with trailers or without."""
        if self.closed or self._outbox.ending:
            return
        self._outbox.end(trailers)
        self.advance()

    def break_off(self, trailers: Fields) -> None:
        """End the response with trailers that say why, without what waits for the client."""
        if self.closed:
            return
        self._outbox.clear()
        self._outbox.end(trailers)
        self.advance()

    def taken(self) -> None:
        """Open the client's window again by what the app has taken."""
        if self._untaken >= _WINDOW_STEP and self.receiving and not self.closed:
            count, self._untaken = self._untaken, 0
            self._connection.engine.increment_flow_control_window(count, self.number)
            self._connection.flush()

    def resume_reading(self) -> None:
        """Nothing: the others on the connection are read from all the time."""

    def closes_after(self, exchange: Exchange) -> bool:
        """Nothing ends with a response but its stream."""
        return False

    def answer(self, exchange: Exchange, problem: Problem) -> None:
        """Send the node's own answer as the exchange's response; the exchange is complete."""
        assert isinstance(exchange, StreamExchange)
        exchange.answered = True
        self.refuse(problem, head_only=exchange.head_only, grpc=exchange.grpc, late=exchange.is_late)

    def exchange_done(self, exchange: Exchange) -> None:
        """Nothing: the stream ends with the last byte that its client takes."""

    def settle(self, exchange: Exchange) -> None:
        """End the stream if the response, complete as it is, was never ended here."""
        if not self._outbox.ending:
            self.abandon()

    def linger(self) -> None:
        """Nothing: what comes for a request that has its answer is dropped."""

    def abandon(self) -> None:
        """End the stream in the middle of a response."""
        self.reset(ErrorCodes.INTERNAL_ERROR)

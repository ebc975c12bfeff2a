"""One client connection: its requests in order, its deadlines, its end.

It has a reader, which turns bytes into requests; what a request means is decided by the router and its gate.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import NamedTuple

from runtime_node.asgi import Scope
from runtime_node.http.connection_shares import peer_key
from runtime_node.http.exchange import Exchange
from runtime_node.http.flow import TURN_SECONDS, Flow
from runtime_node.http.http2 import Http2Connection
from runtime_node.http.problems import (
    BODY_TIMEOUT,
    CROWDED_OUT,
    HEADER_TIMEOUT,
    TOO_MANY_CONNECTIONS,
    Problem,
)
from runtime_node.http.reader import RequestReader
from runtime_node.http.request import Head
from runtime_node.http.scope import Endpoints
from runtime_node.http.shared import FrontShared
from runtime_node.http.websocket import FrontWebSocket

_NEVER = float("inf")
_STEADY_BYTES = 64 * 1024
_SMALL_READ = 4 * 1024
_SLICE = 1024
"""What of a larger read is parsed at once: as many small requests, or chunks, as take about a millisecond."""
_FULL_READ = 64 * 1024


class _Handshake(NamedTuple):
    """A WebSocket handshake whose turn has not come."""

    exchange: Exchange
    rest: bytes


class FrontConnection(asyncio.Protocol):
    """A connection of the listener; one per client, on the front loop."""

    transport: asyncio.Transport
    flow: Flow
    reader: RequestReader

    def __init__(self, shared: FrontShared) -> None:
        self.shared = shared
        self.limits = shared.limits
        self.peer: str | None = None
        self.head_bytes = 0
        """Held of a head that is not complete, as the shares count it."""
        self.waiting_place: int | None = next(shared.places)
        self.deadline = shared.now + shared.limits.header_timeout
        self.exchange: Exchange | None = None
        """The request being served."""
        self.waiting: deque[Exchange | _Handshake | Problem] = deque()
        """Pipelined requests, and the answer to one that could not be read."""
        self.stalled_since = 0.0
        self.untaken = 0
        """What was buffered for the client at the latest look at how it reads."""
        self.half_closed = False
        self.lingering = False
        self._unread = b""
        """What came and had no turn yet."""
        self._first_place = self.waiting_place
        self._successor: Http2Connection | None = None

    # --- transport ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a new connection, or turn it away when there is no room and none can be made."""
        shared = self.shared
        self.transport = transport
        self.flow = Flow(transport, shared.loop)
        client = _address(transport.get_extra_info("peername"))
        trusted = client is not None and shared.trusted.trusts(client[0])
        ends = Endpoints(_address(transport.get_extra_info("sockname")), client, trusted=trusted)
        self.reader = RequestReader(shared, self, ends)
        if client is not None and not trusted:
            # A proxy stands for many clients.
            self.peer = peer_key(client[0])
        shared.connections.add(self)
        if not shared.shares.enter(self):
            # No lingering: that would keep, for each one turned away, what the limit is there to save.
            shared.refused_connections += 1
            shared.count(TOO_MANY_CONNECTIONS)
            self.transport.write(TOO_MANY_CONNECTIONS.encode(date=shared.date_line))
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the app, and let go of everything."""
        self.deadline = _NEVER
        self._forget()
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.disconnected()
        self.reader.end()
        self._count_head()
        self.waiting.clear()
        self.flow.resume_writing()

    def _forget(self) -> None:
        self.waiting_place = None
        self.shared.connections.discard(self)
        self.shared.shares.leave(self)

    def data_received(self, data: bytes) -> None:
        """Read requests: a large piece in slices, for some milliseconds at a time."""
        if len(data) > _SMALL_READ:
            self._unread = data
            if self._read_slices() or len(data) >= _FULL_READ:
                self.flow.end_turn(self._read_slices)
            return
        reader = self.reader
        reader.feed(data)
        if reader.head is not None or self.head_bytes:
            self._count_head()

    def _read_slices(self) -> bool:
        """Read what came, until this turn is over; tell whether something is left for the next one."""
        if self._successor is not None:
            return self._successor.read_turn()
        reader, data = self.reader, self._unread
        position, end = 0, len(data)
        over = time.monotonic() + TURN_SECONDS
        while position < end and not reader.finished:
            size = max(_SLICE, reader.plain_bytes)
            reader.feed(data[position : position + size])
            position += size
            if time.monotonic() > over:
                break
        self._unread = b"" if reader.finished else data[position:]
        if self._successor is not None:
            self._successor.feed(data[position:])
            return self._successor.read_turn()
        self._count_head()
        return bool(self._unread)

    def _count_head(self) -> None:
        shared = self.shared
        held = self.reader.head_bytes
        shared.head_bytes += held - self.head_bytes
        self.head_bytes = held
        if shared.head_bytes > self.limits.max_unfinished_head_bytes:
            shared.shares.shed_heads()

    def eof_received(self) -> bool:
        """Go on with a complete request of a client that has closed its sending side, for a while."""
        exchange = self.exchange
        if self.lingering or exchange is None or exchange.more_body:
            return False
        self.half_closed = True
        self.deadline = min(self.deadline, self.shared.now + self.limits.half_close_timeout)
        return True

    def pause_writing(self) -> None:
        """Make senders wait, and start the client's time to read."""
        self.stalled_since = self.shared.now
        self.untaken = self.transport.get_write_buffer_size()
        self.deadline = min(self.deadline, self.stalled_since + self.limits.write_timeout)
        self.flow.pause_writing()

    def resume_writing(self) -> None:
        """Let senders go on."""
        self.stalled_since = 0.0
        self.flow.resume_writing()

    # --- exchanges ---

    def accepts_request(self) -> bool:
        """Bound what is pipelined, and start the time for a head."""
        if self.exchange is None:
            self.deadline = self.shared.now + self.limits.header_timeout
        return len(self.waiting) < self.limits.max_pipelined

    def make_exchange(self, scope: Scope, head: Head, keep_alive: bool) -> Exchange:
        """Make the exchange for a head that was checked."""
        return Exchange(self, scope, head, keep_alive)

    def request_began(self, exchange: Exchange) -> None:
        """Serve the request, or put it behind those before it."""
        if self.exchange is None:
            self._begin(exchange)
        else:
            self.flow.pause_reading()
            self.waiting.append(exchange)

    def handshake_began(self, exchange: Exchange, rest: bytes) -> None:
        """Go over to WebSocket, after the request before it: its client may have all of its response."""
        self.reader.finished = True
        if self.exchange is None:
            self._go_over(exchange, rest)
        else:
            self.flow.pause_reading()
            self.waiting.append(_Handshake(exchange, rest))

    def _begin(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.waiting_place = None
        gate = self.shared.gate_for(exchange)
        if gate is not None:
            exchange.enter(gate)
            if self.exchange is exchange:
                self.deadline = self._exchange_deadline(exchange)

    def preface_came(self, rest: bytes) -> bool:
        """Go over to HTTP/2 if the client has begun with it; tell whether it did."""
        if self.waiting_place is None or self.waiting_place != self._first_place:
            return False
        ends = self.reader.ends
        self.reader.end()
        self._count_head()
        self.deadline = _NEVER
        self.waiting_place = None
        shared = self.shared
        shared.connections.discard(self)
        # Its place among the peer's goes over with it.
        peer, self.peer = self.peer, None
        self._successor = successor = Http2Connection(shared, ends, self.flow, peer)
        successor.take_over(self.transport, rest)
        if successor.read_turn():
            self.flow.end_turn(successor.read_turn)
        return True

    def _go_over(self, exchange: Exchange, rest: bytes) -> None:
        self.exchange = exchange
        self.waiting_place = None
        exchange.more_body = exchange.keep_alive = False
        gate = self.shared.gate_for(exchange)
        if gate is None:
            return
        self.exchange = None
        self.deadline = _NEVER
        self.reader.end()
        self._count_head()
        shared = self.shared
        shared.connections.discard(self)
        # Its place among the peer's goes over with it.
        peer, self.peer = self.peer, None
        FrontWebSocket(shared, gate, exchange.scope, peer).take_over(self.transport, rest)

    def _exchange_deadline(self, exchange: Exchange) -> float:
        deadline = exchange.deadline or _NEVER
        if exchange.more_body:
            deadline = min(deadline, self.reader.last_read + self.limits.body_idle_timeout)
        if self.stalled_since:
            deadline = min(deadline, self.stalled_since + self.limits.write_timeout)
        if self.half_closed:
            deadline = min(deadline, self.shared.now + self.limits.half_close_timeout)
        return deadline

    def closes_after(self, exchange: Exchange) -> bool:
        """Tell whether the connection ends with this response whatever the client asked for."""
        return self.shared.draining or (self.half_closed and not self.waiting)

    def answer(self, exchange: Exchange, problem: Problem) -> None:
        """Send the node's own answer as the exchange's response; the exchange is complete."""
        keep = exchange.keep_alive and not problem.close and not exchange.more_body
        exchange.keep_alive = keep and not self.closes_after(exchange)
        self.shared.count(problem)
        data = problem.encode(
            date=self.shared.date_line, keep_alive=exchange.keep_alive, head_only=exchange.head_only
        )
        exchange.answered = True
        self.transport.write(data)
        self.exchange_done(exchange)

    def settle(self, exchange: Exchange) -> None:
        """Close if the exchange, complete as it is, was never taken off: nobody knows what was sent of it."""
        if self.exchange is exchange:
            self.exchange = None
            self.abandon()

    def abandon(self) -> None:
        """Close in the middle of a response: nothing more may look like a part of it."""
        self.reader.finished = True
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
        if self.waiting:
            self._next()
            return
        self.waiting_place = next(self.shared.places)
        self.deadline = self.shared.now + self.limits.keep_alive_timeout
        self.flow.resume_reading()
        if self.reader.finished:
            self.linger()

    def _next(self) -> None:
        item = self.waiting.popleft()
        if not self.waiting:
            self.flow.resume_reading()
        if isinstance(item, Problem):
            self._turn_away(item)
        elif isinstance(item, _Handshake):
            self._go_over(item.exchange, item.rest)
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

    def cut(self, problem: Problem) -> None:
        """End what is being served, with the problem if it can still be told, and close."""
        if self.exchange is not None:
            self.exchange.cut(problem)
        self.transport.close()

    def give_way(self) -> None:
        """Make room for another connection: this one has no request."""
        told = self.head_bytes > 0 and not self.transport.get_write_buffer_size()
        self._forget()
        self.reader.end()
        self._count_head()
        self.deadline = _NEVER
        if told:
            self.shared.count(CROWDED_OUT)
            self.transport.write(CROWDED_OUT.encode(date=self.shared.date_line))
            self.transport.close()
        else:
            self.transport.abort()

    def reject(self, problem: Problem) -> None:
        """Read no more, and answer with the problem when its turn comes."""
        reader = self.reader
        reader.finished = True
        exchange = self.exchange
        if exchange is None:
            if reader.receiving is None:
                self._turn_away(problem)
            else:
                # What is wrong is the rest of a request that has its answer; another one would be taken for
                # the answer to what comes next.
                self.linger()
        elif exchange is reader.receiving:
            exchange.cut(problem)
        else:
            if self.waiting and self.waiting[-1] is reader.receiving:
                self.waiting.pop()
            self.waiting.append(problem)
        reader.receiving = None

    def _turn_away(self, problem: Problem) -> None:
        self.shared.count(problem)
        self.transport.write(problem.encode(date=self.shared.date_line))
        self.linger()

    def linger(self) -> None:
        """Close, but read off what is under way: a reset would take the answer from the client."""
        if self.lingering or self.transport.is_closing():
            return
        self.reader.end()
        self.lingering = True
        self.untaken = self.transport.get_write_buffer_size()
        self.deadline = self.shared.now + self.limits.linger_timeout
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _close(self) -> None:
        self.reader.finished = True
        self.untaken = self.transport.get_write_buffer_size()
        self.deadline = self.shared.now + self.limits.write_timeout
        self.transport.close()

    def _reads_on(self) -> bool:
        """Tell whether the client, slow as it is, has taken something worth it since the latest look."""
        before, self.untaken = self.untaken, self.transport.get_write_buffer_size()
        return 0 < self.untaken <= before - _STEADY_BYTES

    def _stalls(self, now: float) -> bool:
        if not self.stalled_since or now < self.stalled_since + self.limits.write_timeout:
            return False
        if self._reads_on():
            self.stalled_since = now
            return False
        return True

    def expire(self, now: float) -> None:
        """Act on a deadline that has passed; called by the listener's sweep."""
        if self.lingering or self.transport.is_closing():
            if self._reads_on():
                self.deadline = now + self.limits.write_timeout
            else:
                self.abandon()
            return
        exchange = self.exchange
        if exchange is None:
            if self.reader.head is not None:
                self.reject(HEADER_TIMEOUT)
            else:
                self._close()
            return
        self.deadline = _NEVER
        if self._stalls(now) or (self.half_closed and not self.stalled_since and now < exchange.deadline):
            exchange.disconnected()
            self.abandon()
        elif exchange.deadline and now >= exchange.deadline:
            exchange.expire()
        elif exchange.more_body and now >= self.reader.last_read + self.limits.body_idle_timeout:
            if exchange.awaits_body():
                exchange.cut(BODY_TIMEOUT)
            else:
                self.reader.last_read = now
        if self.exchange is exchange and self.deadline == _NEVER:
            self.deadline = self._exchange_deadline(exchange)


def _address(name: object) -> tuple[str, int] | None:
    """Return host and port of a socket's name; None for one that has none, as of a Unix socket."""
    if isinstance(name, tuple) and len(name) >= 2:
        return str(name[0]), int(name[1])
    return None

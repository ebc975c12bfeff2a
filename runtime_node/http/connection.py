"""One client connection: its requests in order, its deadlines, its end.

Reading is `reader`'s; what a request means is decided by the router and its gate.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from runtime_node.http.exchange import Exchange
from runtime_node.http.problems import (
    BODY_TIMEOUT,
    HEADER_TIMEOUT,
    NODE_DRAINING,
    TOO_MANY_CONNECTIONS,
    Problem,
    malformed,
)
from runtime_node.http.reader import RequestReader
from runtime_node.http.websocket import FrontWebSocket

if TYPE_CHECKING:
    from runtime_node.http.listener import Listener

_NEVER = float("inf")
_STEADY_BYTES = 64 * 1024
_PIPELINED_HANDSHAKE = malformed("A WebSocket handshake cannot be pipelined.")


class FrontConnection(RequestReader):
    """A connection of the listener; one per client, on the front loop."""

    def __init__(self, front: Listener) -> None:
        super().__init__(front)
        self.deadline = front.now + front.limits.header_timeout
        self.exchange: Exchange | None = None
        """The request being served."""
        self.waiting: deque[Exchange | Problem] = deque()
        """Pipelined requests, and the answer to one that could not be read."""
        self.stalled_since = 0.0
        self.untaken = 0
        """What was buffered for the client at the latest look at how it reads."""
        self.half_closed = False
        self.lingering = False

    # --- transport ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a new connection, or turn it away at the node's limit."""
        super().connection_made(transport)
        front = self.front
        if front.draining:
            self._turn_away(NODE_DRAINING)
        elif len(front.connections) > self.limits.max_connections:
            # No lingering: that would keep, for each one turned away, what the limit is there to save.
            front.refused_connections += 1
            front.count(TOO_MANY_CONNECTIONS)
            self.transport.write(TOO_MANY_CONNECTIONS.encode(date=front.date_line))
            self._close()

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
        self.untaken = self.transport.get_write_buffer_size()
        self.deadline = min(self.deadline, self.stalled_since + self.limits.write_timeout)
        super().pause_writing()

    def resume_writing(self) -> None:
        """Let senders go on."""
        self.stalled_since = 0.0
        super().resume_writing()

    # --- exchanges ---

    def accepts_request(self) -> bool:
        """Bound what is pipelined, and start the time for a head."""
        if self.exchange is None:
            self.deadline = self.front.now + self.limits.header_timeout
        return len(self.waiting) < self.limits.max_pipelined

    def request_began(self, exchange: Exchange) -> None:
        """Serve the request, or put it behind those before it."""
        if self.exchange is None:
            self._begin(exchange)
        else:
            self.flow.pause_reading()
            self.waiting.append(exchange)

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
            deadline = min(deadline, self.last_read + self.limits.body_idle_timeout)
        if self.stalled_since:
            deadline = min(deadline, self.stalled_since + self.limits.write_timeout)
        if self.half_closed:
            deadline = min(deadline, self.front.now + self.limits.half_close_timeout)
        return deadline

    def closes_after(self, exchange: Exchange) -> bool:
        """Tell whether the connection ends with this response whatever the client asked for."""
        return self.front.draining or (self.half_closed and not self.waiting)

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
        elif self.finished:
            self.linger()

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

    def reject(self, problem: Problem) -> None:
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
        self.untaken = self.transport.get_write_buffer_size()
        self.deadline = self.front.now + self.limits.linger_timeout
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _close(self) -> None:
        self.finished = True
        self.untaken = self.transport.get_write_buffer_size()
        self.deadline = self.front.now + self.limits.write_timeout
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
            if self.head is not None or self.receiving is not None:
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
        elif exchange.more_body and now >= self.last_read + self.limits.body_idle_timeout:
            if exchange.awaits_body():
                exchange.cut(BODY_TIMEOUT)
            else:
                self.last_read = now
        if self.exchange is exchange and self.deadline == _NEVER:
            self.deadline = self._exchange_deadline(exchange)

    def websocket_began(self, exchange: Exchange, rest: bytes) -> None:
        """Hand the connection over to a WebSocket, or answer for it."""
        if self.exchange is not None:
            self.reject(_PIPELINED_HANDSHAKE)
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
        self.finished = True
        websocket = FrontWebSocket(self.front, gate, scope)
        self.deadline = _NEVER
        self.connections.discard(self)
        self.transport.set_protocol(websocket)
        websocket.connection_made(self.transport)
        websocket.begin(rest)

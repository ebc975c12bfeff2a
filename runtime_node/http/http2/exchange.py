"""A request that came on a stream: an exchange with trailers, and with gRPC's way to say how it ended."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

from runtime_node.asgi import Message
from runtime_node.http.exchange import Exchange
from runtime_node.http.gate import Gate
from runtime_node.http.http2.grpc import STATUS_FIELDS, status_fields
from runtime_node.http.http2.request import SHORT_BODY, Request
from runtime_node.http.http2.response import Fields, StreamResponse, checked_trailers
from runtime_node.http.problems import LEASE_EXPIRED, Problem
from runtime_node.http.response import Response

if TYPE_CHECKING:
    from runtime_node.http.http2.stream import Stream

_PARTS = 64
"""Pieces of a body that wait as they came; a piece of one byte costs fifty."""


class StreamExchange(Exchange):
    """One request on its stream. Belongs to the front loop; the app sees `receive` and `send`."""

    __slots__ = ("_body_done", "_declared", "_stream", "_trailers", "grpc", "timeout")

    response_type: ClassVar[type[Response]] = StreamResponse

    def __init__(self, stream: Stream, request: Request, *, more_body: bool) -> None:
        super().__init__(stream, request.scope, request.head, True)
        self._stream = stream
        self.grpc = request.grpc
        self.timeout = request.timeout
        """Seconds that its caller gives it."""
        # Here a body may come without its length, and where one is announced it may be asked for at once.
        self.more_body = more_body
        self.awaits_continue = False
        self._declared = False
        self._body_done = False
        self._trailers: Fields = []

    @property
    def is_late(self) -> bool:
        """Whether its caller's own time limit is over."""
        return self.timeout is not None and time.monotonic() >= self.admitted_at + self.timeout

    # --- driven by the connection ---

    def enter(self, gate: Gate) -> None:
        """See Exchange. The caller's time limit holds where it is the shorter one."""
        super().enter(gate)
        if self.timeout is not None:
            self.deadline = min(self.deadline, self.admitted_at + self.timeout)

    def feed(self, body: bytes) -> None:
        """See Exchange."""
        super().feed(body)
        if len(self._parts) > _PARTS:
            self._parts[:] = [b"".join(self._parts)]

    def end_of_body(self) -> None:
        """See Exchange. A body shorter than was announced is nobody's; `h2` finds those that are longer."""
        if self.received < self.content_length and not self.complete and not self.gone:
            self.cut(SHORT_BODY)
        super().end_of_body()

    def awaits_body(self) -> bool:
        """See Exchange. A gRPC client may be silent while it listens: its call has a time limit instead."""
        return not self.grpc and super().awaits_body()

    def _take_body(self) -> Message:
        message = super()._take_body()
        self._stream.taken()
        return message

    # --- ASGI ---

    async def send(self, message: Message) -> None:
        """See Exchange. Takes `http.response.trailers` as well, behind the body of a response that has
        announced them."""
        kind = message["type"]
        if kind == "http.response.trailers":
            await self._send_trailers(message)
            return
        if kind == "http.response.start":
            self._declared = bool(message.get("trailers", False))
        elif self._body_done:
            raise RuntimeError(f"Expected http.response.trailers, got {kind!r}.")
        await super().send(message)

    async def _send_trailers(self, message: Message) -> None:
        if self.flow_paused and not self.gone:
            await self._stream.flow.drain()
        if self.gone or self._lapses():
            await self._send_to_nobody()
            return
        response = self._response
        if response is None or not self._body_done or self.complete:
            raise RuntimeError("http.response.trailers has no place here.")
        self._trailers += checked_trailers(
            message.get("headers", ()),
            self._stream.shared.router.base_domain,
            relayed=self.gate is not None and self.gate.relays,
        )
        if not message.get("more_trailers", False):
            self._declared = False
            self._finish(response)

    @property
    def flow_paused(self) -> bool:
        """Whether the client is slow."""
        return self._stream.flow.write_paused

    def _begin(self, response: Response, body: bytes, more: bool) -> None:
        assert isinstance(response, StreamResponse)
        ends = not more and not self._declared
        fields, body = response.fields(
            body,
            more,
            self.head_only,
            self._stream.shared.date_line,
            tell_length=ends and not self.grpc,
        )
        if self.grpc and not self._declared and (more or body):
            # What an app says in its head that has no trailers to say it in, as one of WSGI.
            self._trailers = [field for field in fields if field[0] in STATUS_FIELDS]
            fields = [field for field in fields if field[0] not in STATUS_FIELDS]
        self.started = True
        self._stream.start(fields, body, ends=ends, trailers=self._trailers)

    def _finish(self, response: Response) -> None:
        if self._declared:
            self._body_done = True
            return
        self._stream.end(self._trailers)
        super()._finish(response)

    def _give_up(self, problem: Problem) -> None:
        if not (self.grpc and self.started) or self.complete or self.gone:
            super()._give_up(problem)
            return
        if self._began and self._has_lapsed():
            problem = LEASE_EXPIRED
        self.gone = True
        self._stream.break_off(status_fields(problem, late=self.is_late))

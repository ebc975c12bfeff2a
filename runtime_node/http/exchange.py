"""One HTTP request and its response, between the connection, the gate and the app (ASGI `http`)."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, ClassVar, Protocol

from runtime_node.asgi import ASGIApp, Message, Scope, UndeliveredError
from runtime_node.http.current import interruption_point, is_interruption
from runtime_node.http.flow import Flow
from runtime_node.http.gate import Gate
from runtime_node.http.gated_request import ClientGoneError
from runtime_node.http.problems import (
    APP_BAD_RESPONSE,
    APP_BLOCKED_LOOP,
    APP_NO_RESPONSE,
    APP_RAISED,
    BODY_TIMEOUT,
    BODY_TOO_LARGE,
    INSTANCE_STOPPING,
    LEASE_EXPIRED,
    REQUEST_TIMEOUT,
    Problem,
    problem_of,
)
from runtime_node.http.response import BadResponseError, Response, plain_bytes
from services.rpc.errors import SupervisorError

if TYPE_CHECKING:
    from runtime_node.http.request import Head
    from runtime_node.http.shared import FrontShared

_READ_HIGH_WATER = 64 * 1024
_UNSENT_LIMIT = 64
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_DISCONNECT = "http.disconnect"


class Writable(Protocol):
    """What takes the bytes of a response."""

    def write(self, data: bytes) -> None:
        """Take bytes; those of a slow client are kept for it."""
        ...


class ResponseSink(Protocol):
    """Where a response goes: a connection, or a stream of one, as its exchange sees it."""

    shared: FrontShared
    flow: Flow

    @property
    def transport(self) -> Writable:
        """Where the bytes of the response go."""
        ...

    def resume_reading(self) -> None:
        """Read on after a complete body, unless requests wait already."""
        ...

    def closes_after(self, exchange: Exchange) -> bool:
        """Tell whether the connection ends with this response whatever the client asked for."""
        ...

    def answer(self, exchange: Exchange, problem: Problem) -> None:
        """Send the node's own answer as the exchange's response; the exchange is complete."""
        ...

    def exchange_done(self, exchange: Exchange) -> None:
        """Go on after a complete response."""
        ...

    def settle(self, exchange: Exchange) -> None:
        """Make sure that an exchange which is complete holds nothing up."""
        ...

    def linger(self) -> None:
        """Close, but read off what is under way."""
        ...

    def abandon(self) -> None:
        """Close in the middle of a response: nothing more may look like a part of it."""
        ...


class Exchange:
    """One request on its connection. Belongs to the front loop; the app sees `receive` and `send`."""

    __slots__ = (
        "_began", "_buffered", "_cut", "_delivered", "_left", "_news", "_parts", "_response",
        "_sink", "_unsent", "admitted_at", "answered", "authority", "awaits_continue", "chunked_in",
        "complete", "content_length", "deadline", "gate", "gone", "head_only", "keep_alive",
        "more_body", "received", "scope", "started", "stretch", "task", "version", "wire", "x_app",
    )  # fmt: skip

    is_websocket = False
    response_type: ClassVar[type[Response]] = Response

    def __init__(self, sink: ResponseSink, scope: Scope, head: Head, keep_alive: bool) -> None:
        self._sink = sink
        self.scope = scope
        self.authority = head.authority
        self.x_app = head.x_app
        self.keep_alive = keep_alive
        # Of the client's, whatever the app makes of its scope.
        self.version: str = scope["http_version"]
        self.head_only = scope["method"] == "HEAD"
        self.gate: Gate | None = None
        self.task: asyncio.Task[None] | None = None
        self.admitted_at = 0.0
        self.stretch = 0
        self.deadline = 0.0
        # The request's body.
        self.content_length = head.content_length or 0
        self.chunked_in = head.chunked
        self.awaits_continue = head.awaits_continue
        self.more_body = self.chunked_in or self.content_length > 0
        self.received = 0
        self.wire = 0
        self._parts: list[bytes] = []
        self._buffered = 0
        self._delivered = False
        self._news: asyncio.Event | None = None
        # The response.
        self.started = False
        self.answered = False
        """Whether the node's own answer is being written, or was."""
        self.complete = False
        self.gone = False
        self._response: Response | None = None
        self._unsent = 0
        # Its place in the gate.
        self._began = False
        self._left = False
        self._cut = False

    # --- driven by the connection ---

    def enter(self, gate: Gate) -> None:
        """Ask the gate to let the request in, with the gate's limits."""
        self.gate = gate
        self.admitted_at = now = time.monotonic()
        limits = gate.limits
        self.deadline = now + limits.request_timeout
        if self.content_length > limits.max_request_body_bytes or (
            self.received > limits.max_request_body_bytes
        ):
            gate.refused_body()
            self.refuse(BODY_TOO_LARGE)
            return
        gate.admit(self, self._sink.shared.loop)

    def feed(self, body: bytes) -> None:
        """Take a piece of the request's body."""
        self.received += len(body)
        gate = self.gate
        if gate is not None and self.received > gate.limits.max_request_body_bytes:
            if not self.complete and not self.gone:
                gate.refused_body()
                self.cut(BODY_TOO_LARGE)
            else:
                self._sink.linger()
            return
        if self.complete or self.gone:
            return
        self._parts.append(body)
        self._buffered += len(body)
        if self._buffered > _READ_HIGH_WATER:
            self._sink.flow.pause_reading()
        if self._news is not None:
            self._news.set()

    def end_of_body(self) -> None:
        """Take note that the request is complete."""
        self.more_body = False
        if self._news is not None:
            self._news.set()

    def awaits_body(self) -> bool:
        """Tell whether it is the client's turn: more of the body is to come, and was asked for."""
        return self.more_body and not self.awaits_continue and not self._sink.flow.read_paused

    def disconnected(self) -> None:
        """Take note that the client is gone: the app learns it from `receive`, and its deadline stays."""
        if self.complete or self.gone:
            return
        self.gone = True
        if self._news is not None:
            self._news.set()
        gate = self.gate
        if gate is None or gate.remove_waiting(self, gone=True) or self.task is None:
            return
        if gate.relays:
            # It ends at the other node, too; a forward that waits for room there does not ask for its client.
            self._stop_task()
        else:
            self._sink.shared.orphans.add(self)

    def expire(self) -> None:
        """End the request because its time is up."""
        gate = self.gate
        assert gate is not None
        if gate.remove_waiting(self, timeout=True):
            self.refuse(REQUEST_TIMEOUT)
        elif self.awaits_body() and not self.started:
            self.cut(BODY_TIMEOUT)
        else:
            self.cut(REQUEST_TIMEOUT, timeout=True)

    # --- driven by the gate ---

    def moved(self, gate: Gate) -> None:
        """Take note that another gate has it from now on."""
        self.gate = gate

    def refuse(self, problem: Problem) -> None:
        """Answer without the app."""
        if self.complete or self.gone:
            return
        self.complete = True
        self._sink.answer(self, problem)

    def cut(self, problem: Problem, *, timeout: bool = False) -> None:
        """End the request: answer with the problem if nothing was sent, else close; cancel the app's task."""
        gate = self.gate
        if gate is not None and gate.remove_waiting(self):
            self.refuse(problem)
            return
        self._leave(error=problem.status >= 500, timeout=timeout)
        if self.complete and not self.gone:
            # Nothing, as a rule. An interruption may have hit the node's own code in the middle of the end.
            self._sink.settle(self)
        self._give_up(problem)
        self.gone = True
        if self._news is not None:
            self._news.set()
        self._stop_task()

    def _stop_task(self) -> None:
        if self.task is not None:
            self._cut = True
            self.task.cancel()
            # A task that never began is thrown away by its cancelling, without a word to the gate.
            if not self._began:
                self._end()

    def close_gently(self) -> None:
        """Nothing: only WebSockets are told."""

    async def run(self, asgi: ASGIApp) -> None:
        """Serve the request with the app; whatever leaves the app ends here."""
        self._began = True
        try:
            await asgi(self.scope, self.receive, self.send)
            interruption_point()
        except asyncio.CancelledError as error:
            if self._cut or self._sink.shared.ended:
                self._fail(INSTANCE_STOPPING)
                raise
            # By the app itself, of this task or of one that it waits for: a fault like any other.
            self._fault(error, APP_RAISED)
        except BadResponseError as error:
            self._fault(error, APP_BAD_RESPONSE)
        except SupervisorError as error:
            if not (isinstance(error, UndeliveredError) and self._put_back(asgi)):
                self._fail(problem_of(error))
        except BaseException as error:  # noqa: BLE001 - even SystemExit of an app must not reach the loop
            if is_interruption(error):
                self._fail(APP_BLOCKED_LOOP)
            else:
                self._fault(error, APP_RAISED)
        else:
            if not self.complete and not self.gone:
                self._fault(None, APP_NO_RESPONSE)
        finally:
            if self._began:
                self._end()

    def _put_back(self, asgi: ASGIApp) -> bool:
        """Have it served by the app's next process; tell whether somebody still waits for that."""
        if self.complete or self.gone or self._left:
            return False
        assert self.gate is not None
        self._began = False
        self.gate.put_back(self, asgi)
        return True

    def _fault(self, error: BaseException | None, problem: Problem) -> None:
        assert self.gate is not None
        if self.gone:
            # What an app does when its client is gone, or when it is cut off, tells nothing of the app.
            return
        # The app may have left anything there, and to show that would run its code.
        method, path = (self.scope.get(key) for key in ("method", "path"))
        asked = f" {method} {path!r}" if type(method) is type(path) is str else ""
        self.gate.fault(error, f"{problem.detail}{asked}")
        self._fail(problem)

    def _fail(self, problem: Problem) -> None:
        if not self.complete and not self.gone:
            self._leave(error=True)
            self._give_up(problem)

    def _give_up(self, problem: Problem) -> None:
        if self.complete or self.gone:
            return
        if self._began and self._has_lapsed():
            problem = LEASE_EXPIRED
        if self.started:
            # The client must see that the response is not whole: only a closed connection says so.
            self.gone = True
            self._sink.abandon()
        else:
            self.complete = True
            self._sink.answer(self, problem)

    def _make_up(self) -> None:
        """Answer where the answer was broken off before anything of it was written: an interruption that was
        meant for the app, and came late, has hit the node's own code."""
        if self.complete:
            self._sink.answer(self, APP_BLOCKED_LOOP)
        else:
            self._fail(APP_BLOCKED_LOOP)

    def _leave(self, *, error: bool = False, timeout: bool = False) -> None:
        if not self._left and self.gate is not None:
            self._left = True
            self.gate.response_done(self, time.monotonic(), error=error, timeout=timeout, gone=self.gone)

    def _end(self) -> None:
        if not (self.complete and (self.started or self.answered)) and not self.gone:
            self._make_up()
        if not self._left:
            self._leave()
        self.task = None
        assert self.gate is not None
        self.gate.task_done(self)
        if self.gone:
            self._sink.shared.orphans.discard(self)

    # --- ASGI ---

    async def receive(self) -> Message:
        """Return the next piece of the request's body, or `http.disconnect` after the end of the response."""
        # Once the response has begun it is too late to ask: the interim one would stand in the middle of it.
        if self.awaits_continue and not self.started:
            self.awaits_continue = False
            if not self.complete and not self.gone:
                self._sink.transport.write(_CONTINUE)
        while not self.complete and not self.gone:
            if self._parts or not (self.more_body or self._delivered):
                return self._take_body()
            if self.more_body:
                self._sink.flow.resume_reading()
            if self._news is None:
                self._news = asyncio.Event()
            self._news.clear()
            await self._news.wait()
        return {"type": _DISCONNECT}

    def _take_body(self) -> Message:
        parts = self._parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._buffered = 0
        self._delivered = not self.more_body
        if self._delivered:
            self._sink.resume_reading()
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def send(self, message: Message) -> None:
        """Send a part of the response. Waits while the client does not read; nothing is sent to a gone one.

        As ASGI asks, the head leaves with the first piece of the body. Raises BadResponseError or TypeError
        for what may not be sent, RuntimeError for a message out of order, ClientGoneError (an OSError) to an
        app that goes on and on sending to a client that is gone.
        """
        flow = self._sink.flow
        if flow.write_paused and not self.gone:
            await flow.drain()
        response = self._response
        # The head alone sends nothing: that its lease holds is looked at with each piece of the body.
        if self.gone or (response is not None and self._lapses()):
            await self._send_to_nobody()
            return
        kind = message["type"]
        if response is None:
            if kind != "http.response.start" or self.complete:
                raise RuntimeError(f"Expected http.response.start, got {kind!r}.")
            self._response = response = self.response_type(
                message["status"],
                message.get("headers", ()),
                self._sink.shared.router.base_domain,
                relayed=self.gate is not None and self.gate.relays,
            )
            if response.widened_cookie and self.gate is not None:
                self.gate.tell_widened_cookie()
            return
        if kind != "http.response.body":
            raise RuntimeError(f"Expected http.response.body, got {kind!r}.")
        if self.complete:
            raise RuntimeError("The response is already complete.")
        body = message.get("body", b"")
        if type(body) is not bytes:
            body = plain_bytes(body)
        more = bool(message.get("more_body", False))
        if self.started:
            data = response.piece(body, more)
            if data:
                self._sink.transport.write(data)
        else:
            self._begin(response, body, more)
        if not more:
            self._finish(response)

    def _has_lapsed(self) -> bool:
        """Tell whether the lease under which the app was asked has run out since, if it needs one."""
        gate = self.gate
        lease = gate.lease if gate is not None else None
        return lease is not None and not lease.covers(self.stretch)

    def _lapses(self) -> bool:
        """End the request if its lease has run out: nothing of it may leave, whoever has looked before."""
        if not self._has_lapsed():
            return False
        self.cut(LEASE_EXPIRED)
        return True

    async def _send_to_nobody(self) -> None:
        # An app that streams without end must let go of the loop, and learn in the end; one that finishes
        # its response goes on to its work after it undisturbed.
        self._unsent += 1
        if self._unsent > _UNSENT_LIMIT:
            raise ClientGoneError
        await asyncio.sleep(0)

    def _begin(self, response: Response, body: bytes, more: bool) -> None:
        sink = self._sink
        # A client that was never told to send its body may or may not do so: what follows cannot be told.
        keep_alive = self.keep_alive and not (
            response.close or self.awaits_continue or sink.closes_after(self)
        )
        version, date = self.version, sink.shared.date_line
        data, self.keep_alive = response.begin(body, more, self.head_only, version, keep_alive, date)
        sink.transport.write(data)
        self.started = True

    def _finish(self, response: Response) -> None:
        self.complete = True
        self._leave(error=response.status >= 500)
        if self._news is not None:
            self._news.set()
        self._sink.exchange_done(self)

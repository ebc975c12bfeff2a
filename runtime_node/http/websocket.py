"""One WebSocket of the front: its bytes, its deadlines, its end, and its place in a gate.

Frames are `websocket_wire`'s; what the app sees is `websocket_app`'s.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from runtime_node.asgi import ASGIApp, Scope
from runtime_node.http.current import interruption_point, is_interruption
from runtime_node.http.flow import TURN_SECONDS, Flow
from runtime_node.http.gate import Gate
from runtime_node.http.gated_request import ClientGoneError
from runtime_node.http.inbound import OWN_BYTES
from runtime_node.http.problems import (
    APP_BAD_RESPONSE,
    APP_BLOCKED_LOOP,
    APP_NO_RESPONSE,
    APP_RAISED,
    INSTANCE_STOPPING,
    LEASE_EXPIRED,
    NODE_DRAINING,
    REQUEST_TIMEOUT,
    Problem,
    malformed,
    problem_of,
)
from runtime_node.http.response import BadResponseError
from runtime_node.http.websocket_app import AppSide, Stage
from runtime_node.http.websocket_wire import Closed, Event, Incoming, Ping, WebSocketWire
from services.rpc.errors import SupervisorError

if TYPE_CHECKING:
    from runtime_node.http.shared import FrontShared

_NEVER = float("inf")
_NORMAL = 1000
_RESTART = 1012
_TRY_LATER = 1013
_INTERNAL_ERROR = 1011
_GONE = 1006
_PING_SECONDS = 20.0
"""Silence before a ping, and for its pong after it."""
_CLOSE_SECONDS = 10.0
"""For the client's answer to a close."""
_HIGH_WATER = 64 * 1024
_EARLY = malformed("Data before the WebSocket handshake's answer.")


class FrontWebSocket(asyncio.BufferedProtocol):
    """A WebSocket of the listener. Its handshake waits at the gate as a request does."""

    is_websocket = True
    waiting_place: int | None = None
    head_bytes = 0

    def __init__(self, shared: FrontShared, gate: Gate, scope: Scope, peer: str | None) -> None:
        self.shared = shared
        self.gate = gate
        self.peer = peer
        limits = gate.limits
        self.admitted_at = time.monotonic()
        self.deadline = self.admitted_at + limits.request_timeout
        self.task: asyncio.Task[None] | None = None
        self.stretch = 0
        self.wire = WebSocketWire(
            limits.max_websocket_message_bytes, compression=limits.websocket_compression
        )
        self.app = AppSide(self, scope)
        self.closing = False
        """It was closing at the latest look, or is meant to close."""
        self.stalled_since = 0.0
        self.pongs = b""
        self._began = self._cut = False
        # It is to close as soon as it is open.
        self._leaves = False
        self._counted = 0
        # Reading was stopped: the app has enough, or all its WebSockets together have.
        self._stopped = False
        self._borrowed_at = 0.0
        self._close_by = _NEVER
        # A ping was sent, and nothing came since.
        self._asked = False
        self._ping_due = _NEVER

    # --- transport ---

    def take_over(self, transport: asyncio.Transport, rest: bytes) -> None:
        """Go on with a connection whose handshake was read: check it, and ask the gate to let it in."""
        self.transport = transport
        self.flow = Flow(transport, self.shared.loop)
        self.shared.connections.add(self)
        # In uvloop how it reads is settled when reading begins.
        transport.pause_reading()
        transport.set_protocol(self)
        transport.resume_reading()
        accepted, answer = self.wire.accept(self.app.scope["headers"])
        if not accepted:
            self.app.stage = Stage.ENDED
            self.transport.write(answer)
            self.close_transport()
            return
        self.app.accepted_head = answer
        self.gate.admit(self, self.shared.loop)
        if rest:
            self.refuse(_EARLY)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes go; one buffer serves all, for it is emptied at once."""
        buffer = self.shared.read_buffer
        return buffer[:OWN_BYTES] if self.gate.inbound.full else buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take bytes of the client; before the handshake's answer it has nothing to say."""
        stage = self.app.stage
        if stage is Stage.ENDED:
            return
        if stage in (Stage.WAITING, Stage.DENYING):
            self.refuse(_EARLY)
            return
        self._asked = False
        self.wire.feed(self.shared.read_buffer[:nbytes])
        if self._read_turn() or nbytes >= OWN_BYTES:
            self.flow.end_turn(self._read_turn)

    def eof_received(self) -> bool:
        """Close: without the client there is nobody to talk to."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the app; a handshake that waited leaves the queue."""
        self.deadline = _NEVER
        self.shared.connections.discard(self)
        self.shared.shares.leave(self)
        if self.task is None:
            self.gate.remove_waiting(self, gone=True)
        self._ended(_GONE)
        # Nobody is told that it may write to a connection that is lost.
        self.flow.resume_writing()

    def pause_writing(self) -> None:
        """Make senders wait, and start the client's time to read."""
        self.stalled_since = self.shared.now
        self.deadline = min(self.deadline, self.stalled_since + self.shared.limits.write_timeout)
        self.flow.pause_writing()

    def resume_writing(self) -> None:
        """Let senders go on."""
        self.stalled_since = 0.0
        pongs, self.pongs = self.pongs, b""
        if pongs and not self.transport.is_closing():
            self.transport.write(pongs)
        self.flow.resume_writing()

    def write(self) -> None:
        """Write what the wire has for the client."""
        data = self.wire.output()
        if data and not self.transport.is_closing():
            self.transport.write(data)

    # --- reading ---

    def read_on(self) -> None:
        """Take events out of what came, as far as the app and its bound have room; then read on, or not."""
        if self._read_turn():
            self.flow.end_turn(self._read_turn)

    def _read_turn(self) -> bool:
        """Do so until this turn is over; tell whether something is left for the next one."""
        app, wire = self.app, self.wire
        over = time.monotonic() + TURN_SECONDS
        while app.stage is not Stage.ENDED:
            if not self._has_room():
                self._stop()
                return False
            event = wire.step()
            if event is None:
                if wire.pending:
                    return True
                break
            self._take(event)
            if time.monotonic() > over:
                return True
        self._count()
        self._stopped = False
        if not self.transport.is_closing():
            self.flow.resume_reading()
        return False

    def _has_room(self) -> bool:
        self._count()
        app = self.app
        if app.waiting_bytes >= _HIGH_WATER:
            return False
        inbound = self.gate.inbound
        if not inbound.may_read(self, self._counted, incomplete=not app.waiting_bytes):
            return False
        if inbound.borrows(self) and not self._borrowed_at:
            self._borrowed_at = self.shared.now
            self.deadline = min(self.deadline, self._borrowed_at + self.shared.limits.body_idle_timeout)
        return True

    def _stop(self) -> None:
        self._stopped = True
        self.flow.pause_reading()

    def _take(self, event: Event) -> None:
        match event:
            case Incoming():
                self.app.put(event)
            case Ping():
                self._answer_ping()
            case Closed(code, reason, broken):
                self._ended(code, reason)
                self.write()
                if broken:
                    self._linger()
                else:
                    self.close_transport()

    def _answer_ping(self) -> None:
        # A client that does not read is owed the latest answer only (RFC 6455 §5.5.3).
        pong = self.wire.output()
        if self.stalled_since:
            self.pongs = pong or self.pongs
        elif pong:
            self.transport.write(pong)

    def _count(self) -> None:
        held = self.app.waiting_bytes + self.wire.held
        if held != self._counted:
            change, self._counted = held - self._counted, held
            self.gate.inbound.count(change)

    def taken(self) -> None:
        """Go on reading when the app has taken enough."""
        if self._borrowed_at:
            self._borrowed_at = 0.0
            self.gate.inbound.repay(self)
        if self._stopped:
            if self.app.waiting_bytes < _HIGH_WATER // 2:
                self.read_on()
        else:
            self._count()

    # --- deadlines ---

    def opened(self) -> None:
        """Take note that the handshake was answered: from now on silence is asked about."""
        self._ping_due = self.shared.now + _PING_SECONDS
        self.deadline = min(self.deadline, self._ping_due)
        if self._leaves:
            self.shared.loop.call_soon(self.shutdown)

    def expire(self, now: float) -> None:
        """Act on a deadline that has passed; called by the listener's sweep."""
        patience = self.shared.limits.write_timeout
        stalled = self.stalled_since and now >= self.stalled_since + patience
        if stalled or now >= self._close_by or (self.closing and self.transport.is_closing()):
            self.transport.abort()
            return
        # Looked at again and again: the other side may close, and a reader may stall anew.
        self.closing = self.transport.is_closing()
        self.deadline = min(now + patience, self.stalled_since + patience if self.stalled_since else _NEVER)
        self.deadline = min(self.deadline, self._close_by)
        if self.app.stage is Stage.WAITING:
            if self.gate.remove_waiting(self, timeout=True):
                self.refuse(REQUEST_TIMEOUT)
            elif now >= self.admitted_at + self.gate.limits.request_timeout:
                self.cut(REQUEST_TIMEOUT)
        elif self.app.stage is Stage.OPEN and not self.closing:
            self._look_at_reading(now)
            if now >= self._ping_due:
                self._keep_alive(now)
            self.deadline = min(self.deadline, self._ping_due)

    def _look_at_reading(self, now: float) -> None:
        """End the one for whose half a message all others wait, if it takes its time."""
        if not self._borrowed_at or self.app.waiting_bytes:
            return
        due = self._borrowed_at + self.shared.limits.body_idle_timeout
        if now >= due:
            self._take(self.wire.fail(_TRY_LATER, "the message took too long"))
        else:
            self.deadline = min(self.deadline, due)

    def _keep_alive(self, now: float) -> None:
        self._ping_due = now + _PING_SECONDS
        if self.flow.read_paused or self.stalled_since:
            # Its pong could not be read, or its ping not be sent: that is ours.
            self._asked = False
        elif self._asked:
            self._take(self.wire.fail(_INTERNAL_ERROR, "no answer to a ping"))
        else:
            self._asked = True
            self.wire.ping()
            self.write()

    # --- driven by the gate ---

    def moved(self, gate: Gate) -> None:
        """Take note that another gate has it from now on."""
        self.gate = gate

    def refuse(self, problem: Problem) -> None:
        """Answer the handshake with a problem, and close."""
        if self.app.stage not in (Stage.WAITING, Stage.DENYING) or self.transport.is_closing():
            return
        self.shared.count(problem)
        self.transport.write(problem.encode(date=self.shared.date_line))
        self._ended(_GONE)
        self.gate.remove_waiting(self)
        self.close_transport()

    def give_way(self) -> None:
        """Close: asked of connections without a request only, which a WebSocket never is."""
        self.shutdown()

    def close_gently(self) -> None:
        """Close with 1012, or as soon as the app has taken it in: to refuse it then would lose it.

        The app is told with `websocket.disconnect`.
        """
        if self.app.stage is Stage.WAITING:
            self._leaves = True
        else:
            self.shutdown()

    def shutdown(self) -> None:
        """Close: the app is told with `websocket.disconnect`, and goes on to its end."""
        if self.transport.is_closing():
            return
        if self.app.stage in (Stage.WAITING, Stage.DENYING):
            self.refuse(NODE_DRAINING if self.shared.draining else INSTANCE_STOPPING)
        else:
            self._close_with(_RESTART)

    def cut(self, problem: Problem) -> None:
        """End it: the handshake with the problem, an open WebSocket by closing; cancel the app's task."""
        if self.gate.remove_waiting(self):
            self.refuse(problem)
            return
        if self.app.stage in (Stage.WAITING, Stage.DENYING):
            self.refuse(problem)
        else:
            self.transport.abort()
        task = self.task
        if task is not None:
            self._cut = True
            task.cancel()
            if not self._began:
                self._end()

    def has_lapsed(self) -> bool:
        """Tell whether the lease under which the app was asked has run out since, and end it then."""
        lease = self.gate.lease
        if lease is None or lease.covers(self.stretch):
            return False
        self.cut(LEASE_EXPIRED)
        return True

    async def run(self, asgi: ASGIApp) -> None:
        """Serve the WebSocket with the app; whatever leaves the app ends here."""
        self._began = True
        app = self.app
        try:
            await asgi(app.scope, app.receive, app.send)
            interruption_point()
        except asyncio.CancelledError as error:
            if self._cut or self.shared.ended:
                self._fail(INSTANCE_STOPPING)
                raise
            self._fault(error, APP_RAISED)
        except ClientGoneError:
            pass
        except SupervisorError as error:
            self._fail(problem_of(error))
        except BaseException as error:  # noqa: BLE001 - even SystemExit of an app must not reach the loop
            if is_interruption(error):
                self._fail(APP_BLOCKED_LOOP)
            else:
                self._fault(error, APP_BAD_RESPONSE if isinstance(error, BadResponseError) else APP_RAISED)
        else:
            if app.stage in (Stage.WAITING, Stage.DENYING) and not self.transport.is_closing():
                self.gate.fault(None, APP_NO_RESPONSE.detail + " It left a WebSocket handshake unanswered.")
                self._fail(APP_NO_RESPONSE)
        finally:
            self._end()
            if app.stage is Stage.OPEN:
                self._close_with(_NORMAL)
            elif self._close_by == _NEVER:
                self.close_transport()

    def _fault(self, error: BaseException, problem: Problem) -> None:
        if self.transport.is_closing():
            # What an app does when its client is gone, or when it is cut off, tells nothing of the app.
            return
        self.gate.fault(error, problem.detail)
        self._fail(problem)

    def _fail(self, problem: Problem) -> None:
        if self.app.stage in (Stage.WAITING, Stage.DENYING):
            self.refuse(problem)
        elif self.app.stage is Stage.OPEN:
            self._close_with(_INTERNAL_ERROR)

    def _end(self) -> None:
        self.task = None
        self.app.drop()
        self._count()
        self.gate.task_done(self)

    # --- ends ---

    def await_close(self) -> None:
        """Give the client a while to answer the app's close; what it still sends is of no use to anybody."""
        self._close_by = self.shared.now + _CLOSE_SECONDS
        self.deadline = min(self.deadline, self._close_by)
        self.read_on()

    def _ended(self, code: int, reason: str = "") -> None:
        self.app.end(code, reason)
        self.wire.drop()
        self._count()
        self.gate.inbound.forget(self)

    def _close_with(self, code: int) -> None:
        self.wire.close(code)
        self.write()
        self._ended(code)
        self.close_transport()

    def _linger(self) -> None:
        """Close, but read off what is under way: a reset would take the close frame from the client."""
        if self.transport.is_closing():
            return
        self._close_by = self.shared.now + self.shared.limits.linger_timeout
        self.deadline = min(self.deadline, self._close_by)
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def close_transport(self) -> None:
        """Close after what is written has left, within a while."""
        self.closing = True
        self.deadline = self.shared.now + self.shared.limits.write_timeout
        self.transport.close()

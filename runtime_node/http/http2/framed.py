"""Reads the frames of one connection by turns, whichever side it is; what costs its peer nothing is counted.

The protocol's own state is kept by `h2`; what follows from an event is for the connection that this becomes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import abstractmethod

from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import Event
from h2.exceptions import ProtocolError

from runtime_node.http.flow import TURN_SECONDS, Flow
from runtime_node.http.http2 import frames
from runtime_node.http.http2.frames import Budget, Frame, FrameCutter, FrameTooLongError

_logger = logging.getLogger(__name__)

_FULL_READ = 64 * 1024
_MOST_UNFLUSHED = 16 * 1024
"""Bytes of bodies that wait for the loop's next turn: whether their peer reads is known behind a write."""
_CONTROLS = 4_000
"""Frames at once that carry nothing of a request."""
_CONTROLS_PER_SECOND = 200.0


class FramedConnection(asyncio.Protocol):
    """Frames in, events out; `engine` has what is to be sent, and `flush` sends it."""

    transport: asyncio.Transport
    flow: Flow

    def __init__(
        self, loop: asyncio.AbstractEventLoop, engine: H2Connection, max_head_bytes: int, now: float
    ) -> None:
        """`max_head_bytes` bounds one head, packed as it comes; `now` is the time as `_now` tells it."""
        self._loop = loop
        self.engine = engine
        self.ended = False
        """Nothing is read any more."""
        self.head_bytes = 0
        """Held of a head that is not complete."""
        self._flushes = False
        """`flush_now` is on its way."""
        self._unflushed = 0
        self._max_head_bytes = max_head_bytes
        self._cutter = FrameCutter()
        self._controls = Budget(_CONTROLS, _CONTROLS_PER_SECOND, now)

    # --- for the connection that this becomes ---

    @abstractmethod
    def _now(self) -> float:
        """Return the monotonic time, in seconds."""

    @abstractmethod
    def _handle(self, event: Event) -> None:
        """Act on what the peer did."""

    @abstractmethod
    def _goodbye(self, last_stream: int) -> None:
        """Take note that the peer begins nothing any more, and of our streams has taken none after a number.

        `h2` is not told: it would send nothing from now on, while what is under way goes on.
        """

    @abstractmethod
    def _close(self, code: ErrorCodes | int) -> None:
        """End the connection for what the peer did."""

    def _hold_head(self, held: int) -> None:
        """Take note of how much is held of a head that is not complete."""
        self.head_bytes = held

    # --- reading ---

    def data_received(self, data: bytes) -> None:
        """Read frames, for some milliseconds at a time."""
        if self.ended:
            return
        self._cutter.feed(data)
        if self.read_turn() or len(data) >= _FULL_READ:
            self.flow.end_turn(self.read_turn)

    def feed(self, data: bytes) -> None:
        """Add bytes that are read in the next turn."""
        self._cutter.feed(data)

    def read_turn(self) -> bool:
        """Take frames until this turn is over; tell whether something is left for the next one."""
        over = time.monotonic() + TURN_SECONDS
        more = False
        try:
            while not self.ended and (frame := self._cutter.take()) is not None:
                self._take(frame)
                if time.monotonic() > over:
                    more = self._cutter.holds
                    break
        except FrameTooLongError:
            self._close(ErrorCodes.FRAME_SIZE_ERROR)
        self.flush()
        return more and not self.ended

    def flush(self) -> None:
        """Send what the protocol has to say, in one piece with what is said until the loop's next turn.

        Each write to a socket costs as much as a third of a request.
        """
        if not self._flushes:
            self._flushes = True
            self._loop.call_soon(self.flush_now)

    def flush_now(self) -> None:
        """Send what the protocol has to say."""
        self._flushes = False
        self._unflushed = 0
        data = self.engine.data_to_send()
        if data and not self.transport.is_closing():
            try:
                self.transport.write(data)
            except RuntimeError:
                # One that was aborted; uvloop says that it is closing only once it has told the protocol.
                self.ended = True

    def sent(self, count: int) -> None:
        """Send a piece of a body of so many bytes; its peer may tell of windows for it."""
        self._controls.earn(2 + count // 1024)
        self._unflushed += count
        if self._unflushed < _MOST_UNFLUSHED:
            self.flush()
        else:
            self.flush_now()

    def _take(self, frame: Frame) -> None:
        block, price = self.head_bytes, frame.price
        if frame.is_of_a_head:
            whole = bool(frame.flags & frames.END_HEADERS)
            self._hold_head(0 if whole else block + len(frame.raw))
            if block + frame.length > self._max_head_bytes:
                self._close(ErrorCodes.ENHANCE_YOUR_CALM)
                return
        elif price:
            # Nothing of a request: each costs this side as much as a useful one.
            if not self._controls.spend(self._now(), price):
                self._close(ErrorCodes.ENHANCE_YOUR_CALM)
                return
            if not block and frame.is_unknown:
                return
            if not block and frame.kind == frames.GOAWAY:
                self._goodbye(frame.last_stream)
                return
        try:
            events = self.engine.receive_data(frame.known)
        except ProtocolError as error:
            self._close(error.error_code)
            return
        except Exception as error:  # noqa: BLE001 - whatever bytes do to a parser, they do to their own connection
            facts = {"action": "http2.unreadable", "error": type(error).__name__}
            _logger.warning("a frame could not be read", extra=facts)
            self._close(ErrorCodes.INTERNAL_ERROR)
            return
        try:
            for event in events:
                self._handle(event)
        except Exception:
            _logger.exception("request handling failed", extra={"action": "http2.fault"})
            self._close(ErrorCodes.INTERNAL_ERROR)

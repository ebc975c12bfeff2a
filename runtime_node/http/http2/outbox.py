"""What one stream has still to send: a body as far as its peer's windows let it, and how it ends."""

from __future__ import annotations

from collections import deque

from h2.connection import H2Connection

from runtime_node.http.http2.response import Fields

_MAX_FRAME = 32 * 1024


class Outbox:
    """Belongs to one stream of a connection; what goes to `engine` is flushed by whoever asked for it."""

    __slots__ = ("_engine", "_number", "_pieces", "_trailers", "ended", "ending")

    def __init__(self, engine: H2Connection, number: int) -> None:
        self._engine = engine
        self._number = number
        self._pieces: deque[memoryview] = deque()
        self._trailers: Fields = []
        self.ending = False
        """Nothing comes behind what waits."""
        self.ended = False
        """The stream's end was sent."""

    @property
    def waits(self) -> bool:
        """Whether there is something of the body to send."""
        return bool(self._pieces)

    @property
    def has_room(self) -> bool:
        """Whether the peer's windows let something through."""
        return self._engine.local_flow_control_window(self._number) > 0

    def put(self, data: bytes) -> None:
        """Add a piece of the body."""
        if data:
            self._pieces.append(memoryview(data))

    def end(self, trailers: Fields) -> None:
        """Let the stream end behind what waits."""
        self.ending, self._trailers = True, trailers

    def clear(self) -> None:
        """Forget what waits."""
        self._pieces.clear()

    def send_frame(self) -> int:
        """Send one frame of the body if there is room for it; return its bytes, 0 for none."""
        pieces, engine = self._pieces, self._engine
        if not pieces:
            return 0
        room = min(engine.local_flow_control_window(self._number), engine.max_outbound_frame_size, _MAX_FRAME)
        if room <= 0:
            return 0
        piece = pieces.popleft()
        if len(piece) > room:
            pieces.appendleft(piece[room:])
            piece = piece[:room]
        self.ended = self.ending and not self._trailers and not pieces
        engine.send_data(self._number, bytes(piece), end_stream=self.ended)
        return len(piece)

    def finish(self) -> bool:
        """Send the end that nothing carried, once it is its turn; tell whether the stream has ended."""
        if self.ending and not self.ended and not self._pieces:
            self.ended = True
            if self._trailers:
                self._engine.send_headers(self._number, self._trailers, end_stream=True)
            else:
                self._engine.end_stream(self._number)
        return self.ended

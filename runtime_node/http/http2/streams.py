"""The streams of one connection: how many there may be, who sends next, and when their time is up."""

from __future__ import annotations

from runtime_node.http.flow import Flow
from runtime_node.http.http2.stream import Stream
from runtime_node.http.problems import BODY_TIMEOUT
from runtime_node.http.shared import FrontShared


class Streams:
    """Streams by number. Each counts among its peer's connections. Belongs to the front loop."""

    __slots__ = ("_blocked", "_by_number", "_peer", "_shared")

    def __init__(self, shared: FrontShared, peer: str | None) -> None:
        self._shared = shared
        self._peer = peer
        self._by_number: dict[int, Stream] = {}
        self._blocked: dict[Stream, None] = {}
        """Those that wait for the client's windows."""

    def __len__(self) -> int:
        return len(self._by_number)

    def get(self, number: int) -> Stream | None:
        """Return a stream that has not ended."""
        return self._by_number.get(number)

    def all(self) -> list[Stream]:
        """Return them as they are now: what is done with one may end others."""
        return list(self._by_number.values())

    def enter(self) -> bool:
        """Count one more; tell whether there is room for it."""
        if len(self._by_number) >= self._shared.limits.max_streams:
            return False
        return self._shared.shares.enter_stream(self._peer)

    def add(self, stream: Stream) -> None:
        """Keep a stream that has entered."""
        self._by_number[stream.number] = stream

    def forget(self, stream: Stream) -> bool:
        """Let go of a stream; tell whether it was here."""
        if self._by_number.pop(stream.number, None) is None:
            return False
        self._blocked.pop(stream, None)
        self._shared.shares.leave_stream(self._peer)
        return True

    # --- who sends ---

    def wait_for_room(self, stream: Stream) -> None:
        """Have a stream go on when the client's windows let more through."""
        self._blocked[stream] = None

    def blocked(self) -> list[Stream]:
        """Return those that wait for the client's windows."""
        return list(self._blocked)

    def advance(self, waiting: list[Stream], flow: Flow) -> None:
        """Let streams send by turns, a frame each, until nobody can."""
        while waiting and not flow.write_paused:
            left: list[Stream] = []
            for stream in waiting:
                self._blocked.pop(stream, None)
                if not stream.closed:
                    stream.advance(1)
                    if stream.can_advance():
                        left.append(stream)
            waiting = left

    # --- time ---

    def deadline(self) -> float | None:
        """Return when `expire` has something to do; None without a stream."""
        return min((stream.deadline() for stream in self._by_number.values()), default=None)

    def expire(self, now: float) -> None:
        """End those whose time is up."""
        for stream in self.all():
            if stream.expire(now) and stream.exchange is not None:
                stream.exchange.cut(BODY_TIMEOUT)

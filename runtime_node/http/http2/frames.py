"""Cuts what a client sends into frames (RFC 9113 §4.1), and counts what it may send for nothing.

Nothing longer than one frame is kept of what is incomplete.
"""

from __future__ import annotations

from typing import Final, NamedTuple

MAX_FRAME_BYTES: Final = 16 * 1024
"""What a client may send in a frame; the least that the protocol lets a server ask for."""
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    range(10)
)

END_STREAM: Final = 1
END_HEADERS: Final = 4
_HEAD = 9
_SETTING = 6
_LAST_SETTING = 8
"""ENABLE_CONNECT_PROTOCOL (RFC 8441); the identifiers behind it mean nothing here."""


class FrameTooLongError(Exception):
    """A frame is longer than this side has said it takes."""


class Frame(NamedTuple):
    """One whole frame; `raw` is all of it, with its head of nine bytes."""

    kind: int
    flags: int
    raw: bytes

    @property
    def length(self) -> int:
        """Bytes of its payload."""
        return len(self.raw) - _HEAD

    @property
    def is_of_a_head(self) -> bool:
        """Whether it is a part of a request's head, or of its trailers."""
        return self.kind in (HEADERS, CONTINUATION)

    @property
    def is_unknown(self) -> bool:
        """Whether it is of a kind that this side does not know, which is to be passed over."""
        return self.kind > CONTINUATION

    @property
    def known(self) -> bytes:
        """Its bytes without settings of a kind that nobody knows: `h2` would keep each of them."""
        if self.kind != SETTINGS or self.length % _SETTING:
            return self.raw
        payload = self.raw[_HEAD:]
        settings = [payload[at : at + _SETTING] for at in range(0, len(payload), _SETTING)]
        kept = b"".join(it for it in settings if it[0] == 0 and it[1] <= _LAST_SETTING)
        return len(kept).to_bytes(3, "big") + self.raw[3:_HEAD] + kept

    @property
    def last_stream(self) -> int:
        """The last stream that a GOAWAY says was taken; 0 for one that is too short to say so."""
        return int.from_bytes(self.raw[_HEAD : _HEAD + 4], "big") & 0x7FFF_FFFF

    @property
    def price(self) -> int:
        """What it costs a client beside what it carries: 0 for what is a part of a request."""
        if self.is_of_a_head or (self.kind == DATA and (self.length or self.flags & END_STREAM)):
            return 0
        # All streams are looked at for each of the settings.
        return (10 if self.kind == SETTINGS else 1) + self.length // 64


class FrameCutter:
    """Takes bytes as they come, and gives whole frames."""

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        """Add what came."""
        self._data += data

    def take(self) -> Frame | None:
        """Return the next frame; None until it is whole. Raises FrameTooLongError by its head alone."""
        data = self._data
        if len(data) < _HEAD:
            return None
        length = int.from_bytes(data[:3], "big")
        if length > MAX_FRAME_BYTES:
            raise FrameTooLongError
        size = _HEAD + length
        if len(data) < size:
            return None
        found = Frame(data[3], data[4], bytes(data[:size]))
        del data[:size]
        return found

    def clear(self) -> None:
        """Forget what came."""
        self._data.clear()

    @property
    def holds(self) -> bool:
        """Whether there is something that was not taken."""
        return bool(self._data)


class Budget:
    """What a client may do that costs it nothing: so much at once, so much a second, and what it earns."""

    __slots__ = ("_left", "_most", "_per_second", "_since")

    def __init__(self, most: int, per_second: float, now: float) -> None:
        self._most = most
        self._left: float = most
        self._per_second = per_second
        self._since = now

    def spend(self, now: float, count: int = 1) -> bool:
        """Take off what was done; tell whether it was there."""
        self._left = min(self._most, self._left + (now - self._since) * self._per_second) - count
        self._since = now
        return self._left >= 0

    def earn(self, count: int = 1) -> None:
        """Add what it has earned by taking a response, or a part of one."""
        self._left += count

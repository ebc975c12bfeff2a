"""Reads what a guest writes, line by line, on the control loop: bounded in length and in rate.

A flood fills the guest's own pipe and slows the guest, never its node.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from runtime_node.tiers.process.wire import text

MAX_LINE_BYTES: Final = 16 << 10
MAX_RECORD_CHARACTERS: Final = 20_000
"""More than is kept of a record, so that a secret which the guest cuts in two here is cut off later."""
MAX_RECORD_BYTES: Final = 128 << 10
"""Its line: a character takes up to six bytes in JSON."""
CHUNK_BYTES: Final = 64 << 10
PAUSE_SECONDS: Final = 0.05
"""Rest after a full chunk: at most about 1.3 MB/s are taken from one stream of one guest."""
LINES_PER_TURN: Final = 512
"""Handed over before the loop turns to others: a chunk may be 65,536 lines with nothing on them."""
REST_SHARE: Final = 19
"""What a turn took is rested for so many times: one flooding stream gets a twentieth of the loop."""
LAST_LINES: Final = 4_096
"""Taken of what a guest left behind; the rest is counted and dropped."""
TAIL_BYTES: Final = 4 << 10
EARLIEST, LATEST = 0.0, 32_503_680_000.0
"""Seconds since the Unix epoch, up to the year 3000: what any clock and calendar can hold."""


class LineReader:
    """Cuts one stream into lines; a longer line than `longest` bytes comes in several."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        descriptor: int,
        on_line: Callable[[str], None],
        longest: int = MAX_LINE_BYTES,
    ) -> None:
        self._loop = loop
        self._descriptor = descriptor
        self._on_line = on_line
        self._longest = longest
        self._rest = b""
        self._lines: deque[bytes] = deque()
        self._resume: asyncio.TimerHandle | None = None
        self._closed = False
        loop.add_reader(descriptor, self._read)

    def close(self) -> None:
        """Take what is left in the pipe, then release it. Repeats do nothing."""
        if self._closed:
            return
        self._closed = True
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self._descriptor)
        # Bounded: a descendant that escaped could go on writing.
        for _ in range(8):
            data = self._take()
            if not data:
                break
            self._cut(data)
        if self._rest:
            self._lines.append(self._rest)
        self._hand_over(LAST_LINES)
        if self._lines:
            self._on_line(f"[{len(self._lines)} more lines of output were dropped at its end]")
            self._lines.clear()
        os.close(self._descriptor)

    def _take(self) -> bytes | None:
        try:
            return os.read(self._descriptor, CHUNK_BYTES)
        except BlockingIOError:
            return None

    def _read(self) -> None:
        data = self._take()
        if data is None:
            return
        if not data:
            self._loop.remove_reader(self._descriptor)
            return
        self._cut(data)
        took = self._hand_over(LINES_PER_TURN)
        if self._lines or len(data) == CHUNK_BYTES:
            self._loop.remove_reader(self._descriptor)
            self._resume = self._loop.call_later(max(PAUSE_SECONDS, REST_SHARE * took), self._go_on)

    def _go_on(self) -> None:
        took = self._hand_over(LINES_PER_TURN)
        if self._lines:
            self._resume = self._loop.call_later(max(PAUSE_SECONDS, REST_SHARE * took), self._go_on)
        else:
            self._resume = None
            self._loop.add_reader(self._descriptor, self._read)

    def _hand_over(self, count: int) -> float:
        """Hand over the next lines, at most `count`; return how many seconds that took."""
        began = time.perf_counter()
        for _ in range(min(count, len(self._lines))):
            self._emit(self._lines.popleft())
        return time.perf_counter() - began

    def _cut(self, data: bytes) -> None:
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        self._lines.extend(lines)
        while len(self._rest) > self._longest:
            self._lines.append(self._rest[: self._longest])
            self._rest = self._rest[self._longest :]

    def _emit(self, line: bytes) -> None:
        for start in range(0, len(line) or 1, self._longest):
            self._on_line(line[start : start + self._longest].decode(errors="replace").rstrip("\r"))


class Tail:
    """The last lines of a stream, at most `TAIL_BYTES`, for the report of a crash."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque()
        self._size = 0

    def add(self, line: str) -> None:
        """Append a line; drops the oldest ones beyond the bound."""
        self._lines.append(line)
        self._size += len(line) + 1
        while self._size > TAIL_BYTES and len(self._lines) > 1:
            self._size -= len(self._lines.popleft()) + 1

    @property
    def text(self) -> str:
        """The lines as text."""
        return "\n".join(self._lines)[-TAIL_BYTES:]


def parse_record(line: str) -> tuple[int, str, float, str] | None:
    """Return (level, logger, time, message) of a guest's log line; None for anything else.

    A guest may write what it likes there: what is returned is fit to be stored, and its time is one.
    """
    try:
        level, name, created, message = json.loads(line)
        if not isinstance(message, str):
            return None
        level, created = min(max(int(level), 0), logging.CRITICAL), float(created)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None
    if not EARLIEST <= created <= LATEST:
        created = time.time()
    return level, text(name, 200), created, text(message, len(message))

"""Writes lines to a descriptor from a thread of its own, so that a reader who pauses pauses nobody else.

What a full queue cannot take is dropped, counted, and told at the place where it is missing.
"""

from __future__ import annotations

import errno
import io
import os
import select
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

MAX_LINES = 10_000
MAX_BYTES = 8 << 20
MAX_LINE_BYTES = 128 << 10
"""A longer line is cut: tracebacks have 16 KiB, the stacks of a whole node some more."""

_CUT = b" [...]\n"
_CHUNK = 4096
"""PIPE_BUF of Linux: so much a pipe takes at once when it says that it takes any."""
_POLL_MS = 500
_RETRY_SECONDS = 1.0
_GONE = frozenset({errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ECONNRESET, errno.ENOTCONN})
"""Nobody will ever read again: the other end of the pipe, terminal or socket is closed."""


class LineOutput:
    """A bounded queue and the daemon thread that empties it into a descriptor, which stays the caller's.

    `put` suits any thread, signal handlers and finalizers, and never waits. `notice` makes the line that
    tells how many were dropped.
    """

    def __init__(self, descriptor: int, notice: Callable[[int], str]) -> None:
        self._descriptor = descriptor
        self._notice = notice
        # A queue of C code: unlike locks it may be entered again by the thread that is in it.
        self._queue: SimpleQueue[bytes | int | None] = SimpleQueue()
        # Two counters instead of one that rises and falls: each has one kind of writer.
        self._put = self._written = 0
        self._gone = False
        self.dropped = 0
        """Lines that were not written, since the start."""
        self._told = 0
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="log-output", daemon=True)
        self._thread.start()

    def put(self, text: str) -> None:
        """Queue text that brings its own line ends."""
        data = text.encode("utf-8", "backslashreplace")
        if len(data) > MAX_LINE_BYTES:
            data = data[: MAX_LINE_BYTES - len(_CUT)].decode(errors="ignore").encode() + _CUT
        full = self._queue.qsize() >= MAX_LINES or self._put - self._written + len(data) > MAX_BYTES
        if full or self._gone:
            self.dropped += 1
            return
        self._put += len(data)
        if self._told != self.dropped:
            self._queue.put(self._untold())
        self._queue.put(data)

    def close(self, timeout: float) -> None:
        """Write what is queued, for at most `timeout` seconds; the rest is lost."""
        self._queue.put(None)
        self._thread.join(timeout)

    def _untold(self) -> int:
        dropped = self.dropped
        untold, self._told = dropped - self._told, dropped
        return untold

    def _run(self) -> None:
        while True:
            patience = None
            if self._told != self.dropped and not self._gone:
                patience = _RETRY_SECONDS if self._failing else 0.0
            try:
                item = self._queue.get(timeout=patience)
            except Empty:
                # All that came before the loss is written, and nothing has come after it yet.
                item = self._untold()
            if item is None:
                return
            if isinstance(item, int):
                if not self._write(self._notice(item).encode()):
                    self._told -= item
                continue
            if not self._write(item):
                self.dropped += 1
            self._written += len(item)

    def _write(self, data: bytes) -> bool:
        left = memoryview(data)
        while left and not self._gone:
            try:
                left = left[os.write(self._descriptor, left[:_CHUNK]) :]
            except BlockingIOError:
                # Whoever shares the descriptor has made it so.
                ready = select.poll()
                ready.register(self._descriptor, select.POLLOUT)
                ready.poll(_POLL_MS)
            except OSError as fault:
                # A full disk may have room again; a reader that is gone never comes back.
                self._gone = fault.errno in _GONE
                self._failing = True
                return False
        self._failing = False
        return not self._gone


class LineStream(io.TextIOBase):
    """Stands for `sys.stdout` or `sys.stderr` of a program: what is printed goes through a LineOutput."""

    def __init__(
        self, output: LineOutput, descriptor: int, name: str, form: Callable[[str], str] | None = None
    ) -> None:
        """`form` writes each line, given without its end, in another way; empty lines are left out then."""
        super().__init__()
        self._form = form
        self._output = output
        self._descriptor = descriptor
        self._name = name
        self._partial = ""

    def write(self, text: str) -> int:
        """Take text; what has no line end yet waits for it, or for `flush`."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        lines, end, rest = (self._partial + text).rpartition("\n")
        self._partial = rest
        if end:
            self._put(lines + end)
        if len(rest) > MAX_LINE_BYTES:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Queue what has no line end."""
        partial, self._partial = self._partial, ""
        if partial:
            self._put(partial)

    def _put(self, text: str) -> None:
        if self._form is None:
            self._output.put(text)
            return
        for line in text.splitlines():
            if line.strip():
                self._output.put(self._form(line) + "\n")

    def close(self) -> None:
        """Do nothing: the stream is the process's."""

    def fileno(self) -> int:
        """Return the descriptor; what is written there passes by the queue."""
        return self._descriptor

    def isatty(self) -> bool:
        """Tell whether it is a terminal."""
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        """Return True."""
        return True

    @property
    def name(self) -> str:
        """`<stdout>` or `<stderr>`."""
        return self._name

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """UTF-8."""
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        """What becomes of what is no UTF-8."""
        return "backslashreplace"

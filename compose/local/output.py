"""Lines of several processes on one terminal, each with the name of who wrote it."""

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import TextIO

from services.rpc.logs import escaped

NAME_WIDTH = 13
QUEUED_LINES = 10_000
COLOURS = {"control-plane": "36", "up": "32"}
COLOURS_OF_OTHERS = ("35", "33", "34", "95", "93", "94")


class Output:
    """Writes lines from a thread of its own, so that a paused terminal pauses nobody's process.

    What a reader that is too slow would miss is counted and told. `on_closed` is called, by that thread,
    when nobody reads any more.
    """

    def __init__(self, on_closed: Callable[[], object], stream: TextIO = sys.stdout) -> None:
        self._on_closed = on_closed
        self._stream = stream
        self._colour = stream.isatty() and "NO_COLOR" not in os.environ
        self._lines: queue.Queue[str | None] = queue.Queue(QUEUED_LINES)
        self._dropped = 0
        self._colours = dict(COLOURS)
        self._thread = threading.Thread(target=self._write, name="output", daemon=True)
        self._thread.start()

    def log(self, name: str, line: str) -> None:
        """Write one line of a process, without what would move a terminal's cursor. Never blocks."""
        self._put(f"{self._paint(name)} | {escaped(line)}")

    def say(self, text: str = "") -> None:
        """Write text of our own, as it is. Never blocks."""
        self._put(text)

    def close(self, timeout: float) -> None:
        """Write what is queued, for at most `timeout` seconds."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=timeout)
            self._thread.join(timeout)

    def _put(self, line: str) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    def _paint(self, name: str) -> str:
        padded = name.ljust(NAME_WIDTH)
        if not self._colour:
            return padded
        others = len(self._colours) - len(COLOURS)
        colour = self._colours.setdefault(name, COLOURS_OF_OTHERS[others % len(COLOURS_OF_OTHERS)])
        return f"\x1b[{colour}m{padded}\x1b[0m"

    def _write(self) -> None:
        try:
            while (line := self._lines.get()) is not None:
                if self._dropped:
                    line, self._dropped = f"({self._dropped} lines were not shown)\n{line}", 0
                self._stream.write(line + "\n")
                if self._lines.empty():
                    self._stream.flush()
            self._stream.flush()
        except (OSError, ValueError):
            self._on_closed()

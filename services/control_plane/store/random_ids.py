"""Random ids, from the system's generator, whose bytes are read ahead of need.

Each read lets another thread have the interpreter; the writer, asking for every command, would wait for it.
"""

from __future__ import annotations

import os
import threading
import uuid

AHEAD = 4_096
"""Bytes read at once: for 180 commands."""


class RandomBytes:
    """Bytes that nobody can guess. Safe from any thread."""

    def __init__(self, ahead: int = AHEAD) -> None:
        self._count = ahead
        self._lock = threading.Lock()
        self._bytes = b""
        # A forked process would give the same ones once more.
        os.register_at_fork(after_in_child=self._forget)

    def take(self, count: int) -> bytes:
        """Return so many bytes, which are given once; `count` is at most what is read ahead."""
        with self._lock:
            if len(self._bytes) < count:
                self._bytes = os.urandom(self._count)
            taken, self._bytes = self._bytes[:count], self._bytes[count:]
            return taken

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._bytes = b""


_RANDOM = RandomBytes()


def new_uid() -> str:
    """Return a random UUID (version 4)."""
    return str(uuid.UUID(bytes=_RANDOM.take(16), version=4))


def new_suffix() -> str:
    """Return twelve random hexadecimal digits."""
    return _RANDOM.take(6).hex()

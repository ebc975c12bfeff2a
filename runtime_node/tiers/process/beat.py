"""A guest's sign of life: a few words of memory that it shares with its node.

The guest writes when its loop will have run again; the node reads, and believes none of it further than its
own clock. The memory is sealed: nothing a guest does to its size can reach the node, which would die of it.
"""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import time
from typing import Final

IDLE_SECONDS: Final = 1.0
"""Between two beats while no request is under way; no guest beats more slowly."""
SIZE: Final = 64
DUE, INTERVAL, ACTIVE, LAG, TAKEN = range(5)
"""Words: due time (monotonic ns; 0 = not serving), interval ns, exchanges under way, the largest delay seen
(ns; the node sets it back to 0), connections taken."""

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_LONGEST_LAG_NS: Final = 3600 * 10**9


def open_memory() -> int:
    """Return the descriptor of a new, sealed memory of `SIZE` bytes. Raises OSError."""
    descriptor = os.memfd_create("beat", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, SIZE)
        # A mapping of a file that was cut off kills whoever touches it with SIGBUS.
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class Beat:
    """The guest's side."""

    def __init__(self, descriptor: int, busy_seconds: float) -> None:
        self._memory = mmap.mmap(descriptor, SIZE)
        self._words = memoryview(self._memory).cast("q")
        self._busy = int(busy_seconds * 1e9)
        self._idle = int(IDLE_SECONDS * 1e9)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to beat."""
        self._loop = loop
        self._arm(self._idle)

    def stop(self) -> None:
        """Stop beating. The node must know why, for it takes silence for a hanging loop."""
        if self._timer is not None:
            self._timer.cancel()
        self._words[DUE] = 0

    def cut_off(self) -> None:
        """Write to memory of its own from now on: a forked child is no sign of its parent's life."""
        self._words = memoryview(bytearray(SIZE)).cast("q")

    def enter(self) -> None:
        """Count an exchange; the first one makes the beat fast."""
        self._words[ACTIVE] += 1
        if self._words[INTERVAL] != self._busy:
            self._arm(self._busy)

    def leave(self) -> None:
        """Count an exchange that ended."""
        self._words[ACTIVE] -= 1

    def take(self) -> None:
        """Count a connection that the node has handed over."""
        self._words[TAKEN] += 1

    def late(self) -> float:
        """Return for how many seconds the loop has not run, as far as it can be told."""
        due = self._words[DUE]
        return (time.monotonic_ns() - due + self._words[INTERVAL]) / 1e9 if due else 0.0

    def _arm(self, interval: int) -> None:
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        self._words[INTERVAL] = interval
        self._words[DUE] = time.monotonic_ns() + interval
        self._timer = self._loop.call_later(interval / 1e9, self._tick)

    def _tick(self) -> None:
        lag = time.monotonic_ns() - self._words[DUE]
        self._words[LAG] = max(self._words[LAG], lag)
        self._arm(self._busy if self._words[ACTIVE] > 0 else self._idle)


class BeatReader:
    """The node's side. What it returns is within bounds, whatever the guest wrote."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, SIZE)
        self._words = memoryview(self._memory).cast("q")

    @property
    def due(self) -> int:
        """When the loop promised to have run again, monotonic ns; any number."""
        return self._words[DUE]

    @property
    def interval(self) -> int:
        """How long before that it promised so, ns."""
        return min(max(self._words[INTERVAL], 0), int(IDLE_SECONDS * 1e9))

    @property
    def active(self) -> int:
        """Exchanges under way, as the guest counts them."""
        return self._words[ACTIVE]

    @property
    def taken(self) -> int:
        """Connections taken, as the guest counts them."""
        return self._words[TAKEN]

    def take_lag(self, now: int) -> int:
        """Return the loop's largest delay since the last call, in ns, a present one included."""
        lag = max(self._words[LAG], 0)
        self._words[LAG] = 0
        if due := self._words[DUE]:
            lag = max(lag, now - due)
        return min(lag, _LONGEST_LAG_NS)

    def close(self) -> None:
        """Give the memory back; what is read afterwards is 0."""
        words, self._words = self._words, memoryview(bytes(SIZE)).cast("q")
        words.release()
        self._memory.close()

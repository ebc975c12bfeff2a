"""When garbage is collected in a process of a thousand apps, so that no collection stops them all for long.

What apps built at their start is frozen: no later collection looks at it. Young garbage is collected as ever.
Stopped apps are freed without the collector (`dismantle`); what that leaves is collected while nobody waits.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

# A young collection looks at no more than this many new containers: about a millisecond.
YOUNG = 5_000
MIDDLE = 10
# Middle-aged collections per full one. A full collection runs over what was allocated since the last freeze
# alone, so this bounds it to YOUNG * MIDDLE * OLD containers: about ten milliseconds.
OLD = 5
# Starts that come in a row are frozen together: freezing costs nothing, but keeps young garbage for ever.
_SETTLE_SECONDS = 0.5


@dataclass(slots=True)
class GCFigures:
    """What the policy has done: counts, and the longest pause in seconds."""

    frozen: int = 0
    full_collections: int = 0
    longest_pause: float = 0.0


class GCPolicy:
    """Owns the collector's settings for the process. Safe to use from any thread.

    `is_idle` tells whether nobody waits for an answer now; a thorough collection runs only then.
    """

    def __init__(self, is_idle: Callable[[], bool] = lambda: False, *, garbage_limit: int = 200) -> None:
        self.figures = GCFigures()
        self._is_idle = is_idle
        self._garbage_limit = garbage_limit
        self._lock = threading.Lock()
        self._unfreed = 0
        self._since = 0.0
        self._wants_freeze = False
        self._started = 0.0

    def install(self) -> None:
        """Set the thresholds, freeze what is there, and measure pauses. Once per process."""
        gc.set_threshold(YOUNG, MIDDLE, OLD)
        gc.callbacks.append(self._measure)
        gc.collect()
        gc.freeze()

    def uninstall(self) -> None:
        """Give the collector back as Python starts with it."""
        if self._measure in gc.callbacks:
            gc.callbacks.remove(self._measure)
        gc.unfreeze()
        gc.set_threshold(700, 10, 10)

    def started(self) -> None:
        """Note that an app has started: what it built will be frozen at the next `tick`."""
        with self._lock:
            self._wants_freeze = True
            self._since = time.monotonic()

    def stopped(self, *, freed: bool) -> None:
        """Note that an app has stopped, and whether its memory went without a collection."""
        with self._lock:
            self._unfreed += not freed

    def tick(self) -> None:
        """Do what is due: call it once a second, from any thread that may pause.

        Freezes after starts. Collects everything when stopped apps have left garbage and nobody waits, or
        when there is too much of it to wait any longer.
        """
        with self._lock:
            freeze = self._wants_freeze and time.monotonic() - self._since >= _SETTLE_SECONDS
            self._wants_freeze = self._wants_freeze and not freeze
            thorough = self._unfreed > 0 and (self._is_idle() or self._unfreed >= self._garbage_limit)
            if thorough:
                self._unfreed = 0
        if thorough:
            self.collect_all()
        elif freeze:
            self.freeze()

    def freeze(self) -> None:
        """Collect what is young and take the rest out of all later collections."""
        gc.collect(1)
        gc.freeze()
        self.figures.frozen = gc.get_freeze_count()

    def collect_all(self) -> None:
        """Collect the whole heap. Stops every thread: about 1 ms per app of 20 routes."""
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        self.figures.frozen = gc.get_freeze_count()
        self.figures.full_collections += 1

    def _measure(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._started = time.perf_counter()
        else:
            self.figures.longest_pause = max(self.figures.longest_pause, time.perf_counter() - self._started)

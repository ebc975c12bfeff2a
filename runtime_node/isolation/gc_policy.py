"""When garbage is collected in a process of a thousand apps, so that no collection stops them all for long.

What apps built at their start is frozen: no later collection looks at it. Young garbage is collected as ever.
Stopped apps are freed without the collector (`dismantle`); what that leaves is collected while nobody waits.
"""

from __future__ import annotations

import gc
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runtime_node.isolation.leaks import Canary

# A young collection looks at about this many new containers: less than a millisecond.
YOUNG = 1_000
# A full collection runs over what was allocated since the last freeze, so the product of the three bounds it
# to 20,000 containers: about ten milliseconds.
MIDDLE = 5
OLD = 4
# Freezing costs nothing, but keeps the garbage of the moment until the next thorough collection: starts in a
# row are frozen together, so many at a time that a collection between them stays short.
_SETTLE_SECONDS = 0.5
_STARTS = 8
_NAMING_SECONDS = 0.5
# What a stopped app made beside itself and never closed (a database engine, with its file) is garbage that
# was frozen with it, and no young collection finds it. Looking for it may stop everybody for this share of
# the time, or for the larger one where nobody has asked for anything for so many ticks; so at a high rate of
# stops some of it is always left.
_SHARE, _IDLE_SHARE = 0.005, 0.05
_IDLE_TICKS = 5
_LEAST_WAIT = 5.0
_MANY_STOPS = 1_000
_LONG_SECONDS = 0.005


@dataclass(slots=True)
class GCFigures:
    """What the policy has done: counts, and the longest pause in seconds."""

    freezes: int = 0
    full_collections: int = 0
    longest_pause: float = 0.0


class GCPolicy:
    """Owns the collector's settings for the process. Safe to use from any thread.

    `is_idle` tells whether nobody waits for an answer now; a thorough collection runs then, or once
    `garbage_limit` stopped apps are in memory still. `on_leak` hears which stopped instance is held by whom.
    """

    def __init__(
        self,
        is_idle: Callable[[], bool] = lambda: False,
        on_leak: Callable[[str, list[str]], None] = lambda instance, sentences: None,
        *,
        garbage_limit: int = 200,
    ) -> None:
        self.figures = GCFigures()
        self._is_idle = is_idle
        self._garbage_limit = garbage_limit
        self._lock = threading.Lock()
        self._on_leak = on_leak
        self._suspects: dict[str, list[Canary]] = {}
        self._unfreed = 0
        self._stops = 0
        self._looked = -math.inf
        self._cost = 0.0
        self._idle_ticks = 0
        self._since = 0.0
        self._starts = 0
        self._started = 0.0
        self._thorough = False

    def install(self) -> None:
        """Set the thresholds, freeze what is there, and measure pauses. Once per process."""
        gc.set_threshold(YOUNG, MIDDLE, OLD)
        gc.callbacks.append(self._measure)
        gc.collect()
        gc.freeze()
        # A full collection waits until a quarter of what survived the last one is new: now nothing survives.
        gc.collect()

    def uninstall(self) -> None:
        """Give the collector back as Python starts with it."""
        if self._measure in gc.callbacks:
            gc.callbacks.remove(self._measure)
        gc.unfreeze()
        gc.set_threshold(700, 10, 10)

    def started(self) -> None:
        """Note that an app has started: what it built will be frozen at the next `tick`."""
        with self._lock:
            self._starts += 1
            self._since = time.monotonic()
            due = self._starts >= _STARTS
        if due:
            self.freeze()

    def stopped(self, *, freed: bool, instance: str = "", suspects: Sequence[Canary] = ()) -> None:
        """Note that an app has stopped, and whether its memory went without a collection.

        What is in memory still (`LoadedCode.suspects`) is looked at again after the next thorough collection;
        `on_leak` then hears of what was no garbage.
        """
        with self._lock:
            self._stops += 1
            if not freed:
                self._unfreed += 1
                self._suspects.setdefault(instance, []).extend(suspects)

    def tick(self) -> None:
        """Do what is due: call it once a second, from any thread that may pause.

        Freezes after starts. Collects everything when stopped apps have left garbage and nobody waits, or
        when there is too much of it to wait any longer; now and then also after apps that left none that is
        known of.
        """
        idle = self._is_idle()
        self._idle_ticks = self._idle_ticks + 1 if idle else 0
        share = _IDLE_SHARE if self._idle_ticks >= _IDLE_TICKS else _SHARE
        next_look = self._looked + max(_LEAST_WAIT, self._cost / share)
        with self._lock:
            freeze = self._starts > 0 and time.monotonic() - self._since >= _SETTLE_SECONDS
            suspects = dict(self._suspects)
            thorough = self._unfreed > 0 and (idle or self._unfreed >= self._garbage_limit)
            if self._stops and time.monotonic() >= next_look:
                thorough = thorough or idle or self._stops >= _MANY_STOPS
            if thorough:
                self._unfreed = self._stops = 0
                self._suspects.clear()
        if thorough:
            self.collect_all()
            self._tell(suspects)
        elif freeze:
            self.freeze()

    def freeze(self) -> None:
        """Collect what is young and take the rest out of all later collections."""
        with self._lock:
            self._starts = 0
        gc.collect(1)
        gc.freeze()
        # Not counted: counting walks over all that was ever frozen, a thousand apps' worth at each start.
        self.figures.freezes += 1

    def collect_all(self) -> None:
        """Collect the whole heap. Stops every thread: about 1 ms per app of 20 routes."""
        self._thorough = True
        began = time.monotonic()
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        self._thorough = False
        self._looked = time.monotonic()
        self._cost = self._looked - began
        self.figures.full_collections += 1

    def _tell(self, suspects: dict[str, list[Canary]]) -> None:
        for instance, canaries in suspects.items():
            sentences = [sentence for canary in canaries for sentence in canary.describe(_NAMING_SECONDS)]
            if sentences:
                self._on_leak(instance, sentences)

    def _measure(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._started = time.perf_counter()
            return
        pause = time.perf_counter() - self._started
        self.figures.longest_pause = max(self.figures.longest_pause, pause)
        if info["generation"] == 2 and pause > _LONG_SECONDS and not self._thorough:
            # What survived a full collection is alive: apps keep what their first requests build. Without
            # this each full collection would look at all of it again. What freezing holds on to by mistake
            # is the garbage of requests in flight, once, until the next thorough collection.
            gc.freeze()

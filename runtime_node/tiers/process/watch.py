"""Watches all guests from outside: blocked loops, memory, numbers of processes.

One timer on the control loop for all of them. It decides that something is so and tells the guest's
owner; what to do about it is the owner's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Final, Protocol

from runtime_node.tiers.process import procfs
from runtime_node.tiers.process.beat import IDLE_SECONDS, BeatReader

PERIOD_SECONDS: Final = 0.1
IDLE_NS: Final = int(IDLE_SECONDS * 1e9)
PROCESS_SCAN_SECONDS: Final = 5.0
TASK_JUMP: Final = 100
"""New threads on the machine between two looks that make the watch count each guest's processes."""
MEMORY_STEP: Final = 16
"""Private memory, which costs more to read, is read again after a sixteenth of the limit more is resident."""


class Watched(Protocol):
    """A guest as the watch sees it."""

    pid: int
    tag: int
    beat: BeatReader
    block_budget: float
    memory_limit: int
    max_processes: int

    @property
    def waiting(self) -> int:
        """How many connections were handed over to it that it has not taken yet."""
        ...

    def on_stalled(self, seconds: float, first: bool) -> None:
        """The loop has not run for so long; called again, `first` no more, at each look until it runs."""
        ...

    def on_deaf(self, seconds: float) -> None:
        """Its loop runs, and yet it has taken none of its connections for so long; called at each look."""
        ...

    def on_memory(self, private_bytes: int) -> None:
        """More memory is used than allowed."""
        ...

    def on_processes(self, count: int) -> None:
        """More processes run than allowed."""
        ...


class _Seen:
    __slots__ = (
        "deaf_since",
        "due",
        "late",
        "private_time",
        "read_at",
        "run_delay",
        "since",
        "taken",
        "told",
    )

    def __init__(self, now: int) -> None:
        self.due = 0
        self.since = now
        """When the beat was first seen to promise `due`, by our own clock."""
        self.late = False
        self.run_delay = 0
        self.told = False
        self.taken = 0
        self.deaf_since = 0
        self.read_at = 0
        self.private_time = 0.0


class Watch:
    """Looks at every guest ten times a second, for as long as there are any."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._guests: dict[Watched, _Seen] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._tasks = 0
        self._scanned = 0.0

    def add(self, guest: Watched) -> None:
        """Begin to watch a guest."""
        self._guests[guest] = _Seen(time.monotonic_ns())
        if self._timer is None:
            self._tasks = procfs.task_count()
            self._timer = self._loop.call_later(PERIOD_SECONDS, self._look)

    def remove(self, guest: Watched) -> None:
        """Watch a guest no longer; does nothing when it isn't watched."""
        self._guests.pop(guest, None)
        if not self._guests and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = self._loop.call_later(PERIOD_SECONDS, self._look)
        now = time.monotonic_ns()
        for guest, seen in list(self._guests.items()):
            self._look_at_beat(guest, seen, now)
            self._look_at_connections(guest, seen, now)
            if guest.memory_limit:
                self._look_at_memory(guest, seen)
        self._look_at_processes()

    def _look_at_beat(self, guest: Watched, seen: _Seen, now: int) -> None:
        due = guest.beat.due
        if due != seen.due:
            seen.due, seen.since, seen.late, seen.told = due, now, False, False
        # A guest can write what it likes there, but it cannot have it change while its loop stands still.
        latest = seen.since + IDLE_NS
        expected = due if 0 < due < latest else latest
        if expected >= now:
            return
        if not seen.late:
            # The first look that finds it late only notes so: this loop, or the machine, may have slept.
            seen.late = True
            seen.run_delay = procfs.run_delay_ns(guest.pid)
            return
        # Time spent waiting for a CPU is the machine's fault, not the app's.
        starved = procfs.run_delay_ns(guest.pid) - seen.run_delay
        seconds = (now - expected + guest.beat.interval - starved) / 1e9
        if seconds >= guest.block_budget:
            first, seen.told = not seen.told, True
            guest.on_stalled(seconds, first)

    def _look_at_connections(self, guest: Watched, seen: _Seen, now: int) -> None:
        taken = guest.beat.taken
        if guest.waiting <= 0 or taken != seen.taken or seen.late:
            seen.taken, seen.deaf_since = taken, now
        elif seen.deaf_since:
            guest.on_deaf((now - seen.deaf_since) / 1e9)

    def _look_at_memory(self, guest: Watched, seen: _Seen) -> None:
        resident = procfs.resident_bytes(guest.pid)
        if resident is None or resident <= guest.memory_limit:
            return
        now = self._loop.time()
        grown = resident - seen.read_at > guest.memory_limit // MEMORY_STEP
        if not grown and now - seen.private_time < 1.0:
            return
        seen.read_at, seen.private_time = resident, now
        memory = procfs.private_bytes(guest.pid)
        private = resident if memory is None else memory[0]
        if private > guest.memory_limit:
            guest.on_memory(private)

    def _look_at_processes(self) -> None:
        now = self._loop.time()
        tasks = procfs.task_count()
        if tasks - self._tasks < TASK_JUMP and now - self._scanned < PROCESS_SCAN_SECONDS:
            return
        self._tasks, self._scanned = tasks, now
        counts = count_processes({guest.pid: guest.tag for guest in self._guests}, procfs.parents())
        for guest in list(self._guests):
            if counts[guest.pid] > guest.max_processes:
                guest.on_processes(counts[guest.pid])


def count_processes(guests: Mapping[int, int], parents: Mapping[int, int]) -> dict[int, int]:
    """Return how many processes each guest has, by its pid; `guests` has their marks.

    Its own are those that descend from it, and, since a daemon descends from nobody any more, those with its
    mark. A child can lose the mark but not its parent.
    """
    offspring: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        offspring.setdefault(parent, []).append(pid)
    owner: dict[int, int] = {}
    for guest in guests:
        found = [guest]
        while found:
            pid = found.pop()
            owner[pid] = guest
            found += [child for child in offspring.get(pid, ()) if child not in guests and child not in owner]
    counts = dict.fromkeys(guests, 0)
    for guest in owner.values():
        counts[guest] += 1
    by_mark = {tag: guest for guest, tag in guests.items()}
    for pid, tag in procfs.marked(by_mark):
        if pid not in owner:
            counts[by_mark[tag]] += 1
    return counts

"""Gives each app its turn: one worker per key, so many per group, and growing pauses for a key that fails.

A group that hangs, such as the apps of a node that has gone silent, holds up nobody in another one. The
frame is that of client-go's work queue.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import ContextVar

from services.control_plane.controller.turns import TURN_SECONDS, Turn
from services.control_plane.reconciler.result import Result

log = logging.getLogger("appsupervisor.reconciler")

WIDTH = 192
"""Workers at once for the keys of one group; more wait their turn in order.

Several times what shares a call to a node or a commit: while one batch is carried out the next is made.
"""

TURN = 32
"""Workers begun together, however many keys of however many groups wait. What they have no time for in their
turn of the loop waits for the next one: what else runs on it, nodes' heartbeats above all, is in between."""

PAUSES = (0.2, 10.0)
"""Seconds, first and longest, before a key that failed is worked on again."""

PASS: ContextVar[str] = ContextVar("pass")
"""Id of the pass that the running task makes, for its log lines."""


class WorkQueue:
    """Gives each key its worker. Lives on one event loop."""

    def __init__(
        self,
        work: Callable[[str], Awaitable[Result]],
        group_of: Callable[[str], str],
        *,
        width: int = WIDTH,
        uniform: Callable[[float, float], float] = random.uniform,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`work(key)` does a key's work; `group_of(key)` tells the group that it belongs to just now.

        `clock` gives seconds, and goes on while the loop is busy.
        """
        self._work = work
        self._group_of = group_of
        self._width = width
        self._uniform = uniform
        self._clock = clock
        self._waiting: dict[str, deque[str]] = {}
        self._queued: set[str] = set()
        self._running: dict[str, str] = {}
        self._under_way: dict[str, int] = {}
        self._again: dict[str, float] = {}
        """Number of the newest news of a key since its work began; endless of news that has none."""
        self._settled: dict[str, int] = {}
        """Number up to which the last work of a key has dealt with its news, until that comes by."""
        self._failures: dict[str, int] = {}
        self._later: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)
        self._begun = 0
        """Workers begun in this turn of the loop, or put off to it."""
        self._turn_ends = -math.inf
        self._is_first = True
        """No worker of this turn has run yet: the first one does, however late it is."""
        self._next_turn: Turn | None = None
        self._late: deque[asyncio.Future[None]] = deque()
        """Workers that had no time left in their turn."""
        self._held_back: dict[str, None] = {}
        """Groups that go on with the next turn, in their order."""
        self._closed = False

    def add(self, key: str, number: float = math.inf) -> None:
        """Have a key worked on as soon as there is room; once more if its work is under way.

        News with a `number` that the key's last work has `settled` asks for nothing.
        """
        settled = self._settled.pop(key, 0)
        if self._closed or key in self._queued or number <= settled:
            return
        if key in self._running:
            self._again[key] = max(number, self._again.get(key, 0))
            return
        group = self._group_of(key)
        self._queued.add(key)
        self._waiting.setdefault(group, deque()).append(key)
        self._fill(group)

    def is_known(self, key: str) -> bool:
        """Tell whether a key is worked on, or will be: in its turn, or once a pause has ended."""
        return key in self._later or key in self._queued or key in self._running

    def count(self) -> tuple[int, int]:
        """Return how many keys wait, and how many are worked on. Safe from any thread."""
        return len(self._queued), len(self._running)

    async def close(self) -> None:
        """Begin nothing more, and end what is under way."""
        self._closed = True
        for timer in self._later.values():
            timer.cancel()
        self._later.clear()
        if self._next_turn is not None:
            self._next_turn.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _fill(self, group: str) -> None:
        waiting = self._waiting.get(group)
        while waiting and not self._closed and self._under_way.get(group, 0) < self._width:
            if not self._may_begin(group):
                return
            key = waiting.popleft()
            self._queued.discard(key)
            self._running[key] = group
            self._under_way[group] = self._under_way.get(group, 0) + 1
            task = asyncio.create_task(self._run(key), name=f"reconcile {key}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if waiting is not None and not waiting:
            del self._waiting[group]

    def _may_begin(self, group: str) -> bool:
        """Count one more worker of this turn; hold the group back for the next one if there are enough."""
        self._await_turn()
        if self._begun < TURN:
            self._begun += 1
            return True
        self._held_back[group] = None
        return False

    def _await_turn(self) -> None:
        if self._next_turn is None:
            self._next_turn = Turn(self._go_on)

    def _go_on(self) -> None:
        """Begin what was held back, now that those begun before have run, or are late."""
        self._next_turn, self._begun = None, len(self._late)
        self._turn_ends, self._is_first = self._clock() + TURN_SECONDS, True
        if self._late:
            self._await_turn()
        late, self._late = self._late, deque()
        for turn in late:
            if not turn.done():
                turn.set_result(None)
        groups, self._held_back, served = self._held_back, {}, []
        for group in groups:
            before = self._begun
            self._fill(group)
            if self._begun > before and group in self._held_back:
                served.append(group)
        for group in served:  # the others have the next turn
            self._held_back[group] = self._held_back.pop(group)

    async def _in_time(self) -> None:
        """Wait for a turn of the loop that has time left."""
        while not self._is_first and self._clock() >= self._turn_ends:
            turn = asyncio.get_running_loop().create_future()
            self._late.append(turn)
            self._await_turn()
            await turn
        self._is_first = False

    async def _run(self, key: str) -> None:
        PASS.set(f"{next(self._numbers):x}")
        try:
            await self._in_time()
            self._settle(key, await self._work(key))
        except Exception:
            log.exception("pass failed: %s", key, extra={"action": "reconcile.failed", "app": key})
            self._put_off(key, None)
        finally:
            self._done(key)

    def _settle(self, key: str, result: Result) -> None:
        if result.failure is not None:
            self._put_off(key, result.failure.message)
            return
        self._failures.pop(key, None)
        timer = self._later.pop(key, None)
        if timer is not None:
            timer.cancel()
        if result.settled:
            self._note_settled(key, result.settled)
        if result.again:
            self._again[key] = math.inf
        elif result.after:
            self._wait(key, result.after)

    def _note_settled(self, key: str, number: int) -> None:
        """Take note that the work has dealt with its own news, whether that has come by or is on its way."""
        told = self._again.get(key)
        if told is None:
            self._settled[key] = number
        elif told <= number:
            del self._again[key]

    def _done(self, key: str) -> None:
        group = self._running.pop(key)
        self._under_way[group] -= 1
        if not self._under_way[group]:
            del self._under_way[group]
        if self._again.pop(key, None) is not None:
            self.add(key)
        self._fill(group)

    def _put_off(self, key: str, why: str | None) -> None:
        tries = self._failures[key] = self._failures.get(key, 0) + 1
        first, longest = PAUSES
        pause = round(min(longest, first * 2 ** min(tries, 16)) * self._uniform(0.5, 1), 2)
        if why is not None:
            log.info("pass put off: %s: %s", key, why,
                     extra={"action": "reconcile.put_off", "app": key, "seconds": pause})  # fmt: skip
        self._wait(key, pause)

    def _wait(self, key: str, pause: float) -> None:
        if self._closed:
            return
        if key in self._later:
            self._later[key].cancel()
        self._later[key] = asyncio.get_running_loop().call_later(pause, self._due, key)

    def _due(self, key: str) -> None:
        del self._later[key]
        self.add(key)


class PassId(logging.Filter):
    """Adds to each record of a pass the id of that pass, as `pass`."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record through."""
        if known := PASS.get(""):
            record.__dict__["pass"] = known
        return True


log.addFilter(PassId())

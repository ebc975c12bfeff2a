"""A thread that watches event loops from outside and interrupts code that blocks one beyond its budget.

It tells the instance's owner of each block; what is done about repeated ones is not decided here.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

from runtime_node.isolation.frames import current_frames
from runtime_node.watchdog import stacks
from runtime_node.watchdog.block import Block, Stage
from runtime_node.watchdog.gil_holds import HoldWatch
from runtime_node.watchdog.interruption import Interruption
from runtime_node.watchdog.loops import Step, WatchedLoop
from runtime_node.watchdog.schedule import run_times
from runtime_node.watchdog.switching import Switching

log = logging.getLogger("runtime_node.watchdog")

PERIOD = 0.05
"""Longest time between two looks; a fifth of the smallest budget where that is shorter."""
SHORTEST_PERIOD = 0.01
SMALLEST_BUDGET = 0.05
STUCK_SECONDS = 1.0
"""An interruption that has not landed after so long is under a call that cannot be interrupted."""
TRIES = 8
"""Interruptions of one step after which its code counts as swallowing them."""
FIRST_PATIENCE, LONGEST_PATIENCE = 0.02, 1.0
"""Seconds between two interruptions of one step: the code gets time to unwind; doubled each time."""
REDUCED, REDUCED_SECONDS = 0.1, 5.0
"""After a rescue on a shared loop an instance has a tenth of its budget for so long: a burst of requests that
all block costs the neighbours one budget, not one each."""


@dataclass(slots=True, eq=False)
class BlockPolicy:
    """How much an instance may block, and who hears of it. `budget` may be changed at any time."""

    budget: float
    """Seconds."""
    on_block: Callable[[Block], None]
    """Called on the watchdog's thread; must not block."""


class Watchdog:
    """Watches loops from `start` to `close`. `watch`, `unwatch`, `enter` and `leave` suit any thread."""

    def __init__(self, holds: HoldWatch | None = None, switching: Switching | None = None) -> None:
        self._holds = holds
        self._switching = switching
        self._lock = threading.Lock()
        self._loops: dict[asyncio.AbstractEventLoop, WatchedLoop] = {}
        self._policies: dict[str, BlockPolicy] = {}
        self._period = PERIOD
        self._retuned = False
        """Some budget is another than when the period was worked out."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._starved = 0.0
        self._on_unclaimed: Callable[[Block], None] = lambda block: None

    def start(self) -> None:
        """Begin to watch."""
        if self._holds is not None:
            self._holds.start()
        self._thread.start()

    def close(self) -> None:
        """End the watching. Safe to repeat, and before `start`."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(5.0)
        if self._holds is not None:
            self._holds.close()

    def subscribe(self, on_unclaimed: Callable[[Block], None]) -> None:
        """Tell of holds of the interpreter's lock that nobody can be blamed for by his thread alone.

        `on_unclaimed` is called on the watchdog's thread; must not block.
        """
        self._on_unclaimed = on_unclaimed

    def watch(self, loop: asyncio.AbstractEventLoop, instance: str = "") -> None:
        """Watch a loop that runs or is about to; `instance` when all of its code belongs to one."""
        watched = WatchedLoop(loop, instance)
        # Asked at once, before any code of an app is on it: only its answer tells its thread.
        watched.ask(time.monotonic())
        with self._lock:
            self._loops[loop] = watched

    def unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch a loop no longer, before it ends; its code is not interrupted after this."""
        with self._lock:
            self._loops.pop(loop, None)

    def enter(self, instance: str, policy: BlockPolicy) -> None:
        """Hold an instance to its policy from now on."""
        with self._lock:
            self._policies[instance] = policy
        self.retune()

    def leave(self, instance: str, policy: BlockPolicy) -> None:
        """Forget an instance, if these are still its policy."""
        with self._lock:
            if self._policies.get(instance) is policy:
                del self._policies[instance]
                for watched in self._loops.values():
                    watched.reduced.pop(instance, None)

    def retune(self) -> None:
        """Take note of changed budgets, at the next look: it goes over those of a thousand apps."""
        self._retuned = True

    # --- the watchdog's thread ---

    def _run(self) -> None:
        wait = self._period
        while True:
            due = time.monotonic() + wait
            if self._ended.wait(wait):
                return
            now = time.monotonic()
            late = now - due
            try:
                self._starved += max(late, 0.0)
                if self._switching is not None:
                    self._switching.note(late)
                if self._holds is not None:
                    self._look_at_lock(late)
                wait = self._look(now)
            except Exception:
                # Whatever it is, the loops go on being watched.
                log.exception("a look failed", extra={"action": "watchdog.fault"})
                wait = PERIOD

    def _look(self, now: float) -> float:
        """Look at every loop; return the seconds until the next look."""
        with self._lock:
            loops = list(self._loops.values())
            if self._retuned:
                self._retuned = False
                smallest = min((policy.budget for policy in self._policies.values()), default=1.0)
                self._period = min(PERIOD, max(SHORTEST_PERIOD, smallest / 5))
        frames = current_frames()
        wait = self._period
        for watched in loops:
            wait = min(wait, self._look_at(watched, frames, now))
        # Frames that are held live on, with all their variables.
        frames.clear()
        return max(wait, 0.001)

    def _look_at(self, watched: WatchedLoop, frames: dict[int, FrameType], now: float) -> float:
        if not watched.sent:
            self._end_step(watched)
            # A loop of one instance that waits for events is not woken for being asked.
            if not watched.instance or not watched.thread or watched.frame(frames) is not None:
                watched.ask(now)
            return self._period
        if not watched.thread:
            return self._period
        key = watched.present(frames)
        step = watched.step
        if step is None or key is not step.key:
            self._end_step(watched)
            if key is not None:
                watched.step = Step(key, now, self._starved, run=run_times(watched.native))
            return self._period
        return self._judge(watched, step, frames, now)

    def _judge(self, watched: WatchedLoop, step: Step, frames: dict[int, FrameType], now: float) -> float:
        """Decide about a step that was seen before; return the seconds until it has to be looked at."""
        if step.interruption is not None:
            self._follow(watched, step, now)
            return 0.005
        if step.instance is None:
            step.instance = self._whose(watched, step)
        policy = self._policies.get(step.instance)
        if step.instance and policy is None:
            return self._period
        budget = max(policy.budget if policy is not None else 1.0, SMALLEST_BUDGET)
        if watched.reduced.get(step.instance, 0.0) > now:
            budget = max(budget * REDUCED, SMALLEST_BUDGET)
        left = budget - self._blocked(watched, step, now)
        if left > 0:
            return left
        if step.instance or (isinstance(step.key, FrameType) and stacks.is_foreign(step.key)):
            self._interrupt(watched, step, policy, frames, now)
        elif not step.stuck:
            step.stuck = True
            where = stacks.text(stacks.summary(watched.frame(frames)))
            log.warning(
                "the node's own code holds up a loop", extra={"action": "watchdog.own_block", "stack": where}
            )
        return 0.005

    def _whose(self, watched: WatchedLoop, step: Step) -> str:
        if watched.instance:
            return watched.instance
        return stacks.instance_of_task(step.key) if isinstance(step.key, asyncio.Task) else ""

    def _blocked(self, watched: WatchedLoop, step: Step, now: float) -> float:
        """Return for how long a step has blocked its loop, without what the machine or others took of it."""
        on_cpu, waited = run_times(watched.native)
        kept = max(self._starved - step.starved, waited - step.run[1])
        return max(on_cpu - step.run[0], now - step.since - kept)

    def _interrupt(
        self,
        watched: WatchedLoop,
        step: Step,
        policy: BlockPolicy | None,
        frames: dict[int, FrameType],
        now: float,
    ) -> None:
        frame = watched.frame(frames) or frames.get(watched.thread)
        step.stack = stack = stacks.summary(frame)
        del frame
        if not self._send(watched, step, now):
            return
        if not watched.instance and step.instance:
            watched.reduced[step.instance] = now + REDUCED_SECONDS
        seconds = now - step.since
        log.warning(
            "interrupted", extra={
                "action": "watchdog.interrupted", "instance": step.instance, "seconds": f"{seconds:.3f}",
            },
        )  # fmt: skip
        if policy is not None:
            policy.on_block(Block(Stage.BEGUN, seconds, stacks.text(stack)))

    def _send(self, watched: WatchedLoop, step: Step, now: float) -> bool:
        # Until it runs, a new thread goes by the id of the one that started it (CPython 3.11): the exception
        # would end it before its first line, and the loop would wait for it for ever.
        if stacks.awaits_thread(current_frames().get(watched.thread)):
            return False
        interruption = Interruption(watched.thread, now - step.since)
        key = step.key
        if isinstance(key, asyncio.Task):
            sent = interruption.send_into(watched.loop, key)
        else:
            sent = watched.present(current_frames()) is key and interruption.send()
        if sent:
            step.interruption = interruption
            step.tries += 1
            step.again = now + min(LONGEST_PATIENCE, FIRST_PATIENCE * 2**step.tries)
        return sent

    def _follow(self, watched: WatchedLoop, step: Step, now: float) -> None:
        """See to a step that goes on although it was interrupted."""
        interruption = step.interruption
        assert interruption is not None
        if interruption.landed is None:
            if now - interruption.sent > STUCK_SECONDS:
                self._stuck(step, now, "a call that cannot be interrupted")
        elif now >= max(step.again, interruption.landed + FIRST_PATIENCE):
            if step.tries >= TRIES:
                self._stuck(step, now, "code that swallows the interruption")
            self._send(watched, step, now)

    def _stuck(self, step: Step, now: float, why: str) -> None:
        if step.stuck:
            return
        step.stuck = True
        seconds = now - step.since
        log.error(
            "a loop stays blocked by %s", why,
            extra={"action": "watchdog.stuck", "instance": step.instance, "seconds": f"{seconds:.3f}"},
        )  # fmt: skip
        policy = self._policies.get(step.instance or "")
        if policy is not None and step.stack is not None:
            policy.on_block(Block(Stage.STUCK, seconds, stacks.text(step.stack)))

    def _end_step(self, watched: WatchedLoop) -> None:
        """Take note that a step is over."""
        step, watched.step = watched.step, None
        if step is None or step.interruption is None:
            return
        interruption = step.interruption
        interruption.take_back()
        seconds = time.monotonic() - step.since
        instance = step.instance or interruption.instance
        log.info(
            "the loop runs again", extra={
                "action": "watchdog.over", "instance": instance, "seconds": f"{seconds:.3f}",
                "tries": step.tries,
            },
        )  # fmt: skip
        policy = self._policies.get(instance)
        if policy is None:
            return
        if not step.instance and step.stack is not None:
            # A callback without a task: whose it was is known only now.
            policy.on_block(Block(Stage.BEGUN, seconds, stacks.text(step.stack)))
        policy.on_block(Block(Stage.OVER, seconds, ""))

    def _look_at_lock(self, late: float) -> None:
        assert self._holds is not None
        with self._lock:
            loops = {watched.native: watched for watched in self._loops.values() if watched.native}
        held = self._holds.look(late, loops)
        if held is None:
            return
        policy = self._policies.get(held.instance)
        log.warning(
            "the interpreter's lock was held", extra={
                "action": "watchdog.held", "instance": held.instance, "seconds": f"{held.seconds:.3f}",
                "stack": held.stack,
            },
        )  # fmt: skip
        block = Block(Stage.HELD, held.seconds, held.stack)
        if policy is not None:
            policy.on_block(block)
        else:
            self._on_unclaimed(block)

"""When an instance that blocks others is moved to a stricter tier or stopped. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TypeAlias

from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec, Limits
from runtime_node.watchdog.block import Block, Stage

Tier: TypeAlias = InstanceSpec.IsolationTier.ValueType

REPEATS, PERIOD = 3, 60.0
"""So many blocks, or so many holds of the interpreter's lock, within so many seconds are too many.

One is too many already if it cannot be interrupted, or if it holds the lock for the whole budget.
"""

_PLACES = {
    InstanceSpec.SHARED: "on the shared event loop",
    InstanceSpec.THREAD: "on an event loop of its own",
    InstanceSpec.PROCESS: "in a process of its own",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done: move the instance to `tier`, or stop it where that is None."""

    tier: Tier | None
    why: str
    """What it did, as the beginning of a sentence."""

    @property
    def sentence(self) -> str:
        """Say what it did and what follows."""
        if self.tier is None:
            return f"{self.why} and was stopped."
        return f"{self.why} and runs {_PLACES[self.tier]} now ({InstanceSpec.IsolationTier.Name(self.tier)})."


@dataclass(slots=True)
class BlockHistory:
    """The recent blocks of one instance. Times are monotonic, in seconds."""

    _blocks: deque[float] = field(default_factory=deque)
    _holds: deque[float] = field(default_factory=deque)

    @property
    def last(self) -> float:
        """When the last one was; 0 for none."""
        return max((times[-1] for times in (self._blocks, self._holds) if times), default=0.0)

    def forget(self) -> None:
        """Begin afresh, in another tier."""
        self._blocks.clear()
        self._holds.clear()

    def judge(
        self,
        block: Block,
        now: float,
        *,
        tier: Tier,
        budget: float,
        action: Limits.BlockAction.ValueType,
        starting: bool = False,
    ) -> Verdict | None:
        """Note a block that began, is stuck or held the lock, and say what follows from it, if anything.

        While it is `starting` one block is enough: its next start would block just so.
        """
        why = self._excess(block, now, budget)
        if why is None and starting and block.stage is Stage.BEGUN:
            why = f"It blocked its event loop for {block.seconds:.1f} s while it started"
        if why is None or action == Limits.REPORT:
            return None
        if action == Limits.STOP:
            return Verdict(None, why)
        stricter = _stricter(tier, block.stage)
        return None if stricter is None else Verdict(stricter, why)

    def _excess(self, block: Block, now: float, budget: float) -> str | None:
        if block.stage is Stage.STUCK:
            return f"It blocked its event loop for {block.seconds:.1f} s, could not be interrupted"
        held = block.stage is Stage.HELD
        times = self._holds if held else self._blocks
        times.append(now)
        while times[0] <= now - PERIOD:
            times.popleft()
        what = "held the interpreter's lock" if held else "blocked its event loop"
        if held and block.seconds >= budget:
            return f"It {what} for {block.seconds:.1f} s"
        if len(times) >= REPEATS:
            return f"It {what} {len(times)} times within {PERIOD:g} s"
        return None


def _stricter(tier: Tier, stage: Stage) -> Tier | None:
    """Return the loosest tier in which an instance harms nobody by such blocks, if it is not there yet."""
    if tier == InstanceSpec.SHARED and stage is not Stage.HELD:
        return InstanceSpec.THREAD
    # On a loop of its own an instance that can be interrupted harms itself alone; one that cannot, or that
    # takes the lock from all, has to be where it can be killed.
    if tier != InstanceSpec.PROCESS and stage is not Stage.BEGUN:
        return InstanceSpec.PROCESS
    return None

"""One event loop as the watchdog sees it: whether it answers, and which step keeps it from that."""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

from runtime_node.watchdog import stacks
from runtime_node.watchdog.interruption import Interruption, current_task


@dataclass(slots=True)
class Step:
    """One uninterrupted stretch of code on a loop: a task between two awaits, or a callback."""

    key: object
    """The task, or the outermost frame of a callback: the same object for as long as the step lasts."""
    since: float
    """Monotonic time at which it was first seen. It began at most one look earlier."""
    starved: float
    """What the watchdog had been kept waiting for in all when it was first seen, in seconds."""
    instance: str | None = None
    """Whose code it is: "" for nobody's, None while nobody has asked."""
    stack: traceback.StackSummary | None = None
    run: tuple[float, float] = (0.0, 0.0)
    """The thread's seconds on a CPU, and of waiting for one, when it was first seen."""
    interruption: Interruption | None = None
    tries: int = 0
    again: float = 0.0
    """Monotonic time before which it is not interrupted again."""
    stuck: bool = False


@dataclass(slots=True, eq=False)
class WatchedLoop:
    """A loop under watch. `answer` runs on it, everything else on the watchdog's thread."""

    loop: asyncio.AbstractEventLoop
    instance: str
    """The instance that it belongs to; "" for a loop that several share."""
    thread: int = 0
    native: int = 0
    sent: float = 0.0
    """Monotonic time of the question that it has not answered; 0 when it has."""
    step: Step | None = None
    reduced: dict[str, float] = field(default_factory=dict)
    """Instances that have just spent their budget at the others' expense, and until when that counts."""
    _runner: CodeType | None = None

    def answer(self) -> None:
        """Answer the question. Called by the loop itself, which so tells its thread and who runs it."""
        if not self.thread:
            self._runner = sys._getframe(1).f_code
            self.native = threading.get_native_id()
            self.thread = threading.get_ident()
        self.sent = 0.0

    def ask(self, now: float) -> bool:
        """Ask for a sign of life; return False when the loop is closed."""
        self.step = None
        self.sent = now
        try:
            self.loop.call_soon_threadsafe(self.answer)
        except RuntimeError:
            return False
        return True

    def frame(self, frames: dict[int, FrameType]) -> FrameType | None:
        """Return the innermost frame of its thread; None while it is between two steps."""
        frame = frames.get(self.thread)
        return None if frame is None or frame.f_code is self._runner else frame

    def present(self, frames: dict[int, FrameType]) -> object | None:
        """Return the key of the step that it is in, or None.

        The question waits in the loop's queue in front of whatever is scheduled after it. So a task that is
        seen twice while one question is open has not finished its step: its next one would come after the
        answer. That is what tells a blocked loop from a busy one.
        """
        task: Any = current_task(self.loop)
        return task if task is not None else stacks.outermost(self.frame(frames), self._runner)

"""What the watchdog tells of an instance that blocks others."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class Stage(Enum):
    """Where a block stands."""

    BEGUN = auto()
    """The budget is spent; an interruption was sent."""
    STUCK = auto()
    """It goes on: a call that cannot be interrupted, or code that swallows the interruption."""
    OVER = auto()
    """The loop runs again."""
    HELD = auto()
    """A call kept the interpreter's lock; it is over, and nothing was interrupted."""


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a loop, or of the whole interpreter, by one instance."""

    stage: Stage
    seconds: float
    """How long it has lasted so far."""
    stack: str
    """Where its code stood, innermost call last; empty for OVER."""

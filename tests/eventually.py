"""The one wait of the tests: look again until what is looked for has come about, or a deadline has passed.

A test that is about time itself takes a clock of its own instead.
"""

import asyncio
import inspect
import time
from collections.abc import Callable, Iterator
from typing import Any

WITHIN = 45.0
"""Seconds until a wait fails: far more than any takes, also on a slow machine that does much else."""

MOST_TOLD = 4_000
"""Characters of what was seen last."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.02


class NeverCameAbout(AssertionError):  # noqa: N818 - said as a sentence
    """What was waited for did not come about; tells what was seen last."""


async def eventually(
    look: Callable[[], Any], holds: Callable[[Any], object] = bool, *, within: float = WITHIN
) -> Any:
    """Look, a coroutine too, until `holds` of what is seen, and return that. Raises NeverCameAbout."""
    for pause in _pauses(within):
        seen = look()
        if inspect.isawaitable(seen):
            seen = await seen
        if holds(seen):
            return seen
        await asyncio.sleep(pause)
    raise NeverCameAbout(f"last seen: {_short(seen)}")


def eventually_blocking(
    look: Callable[[], Any], holds: Callable[[Any], object] = bool, *, within: float = WITHIN
) -> Any:
    """As `eventually`, for tests without a loop."""
    for pause in _pauses(within):
        seen = look()
        if holds(seen):
            return seen
        time.sleep(pause)
    raise NeverCameAbout(f"last seen: {_short(seen)}")


def _short(seen: Any) -> str:
    told = repr(seen)
    return told if len(told) <= MOST_TOLD else f"{told[:MOST_TOLD]}… and {len(told) - MOST_TOLD:,} characters"


def _pauses(within: float) -> Iterator[float]:
    """Yield how long to pause after each look, longer and longer; the last look is after the deadline."""
    deadline, pause = time.monotonic() + within, _FIRST_PAUSE
    while time.monotonic() < deadline:
        yield pause
        pause = min(2 * pause, _LONGEST_PAUSE)
    yield 0.0

"""Lets only so many nodes at once begin to be heard. A thousand that a new leader follows would all be late
together, and found silent; so each has its time from its turn on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

AT_ONCE = 32
"""Nodes: more bring nothing, for one loop hears all."""

TURN_SECONDS = 1.0
"""After which the next one has its turn, of a node that does not answer."""


class Beginnings:
    """Of all nodes that one leader follows. Lives on one event loop."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def turn(self) -> Callable[[], None]:
        """Wait for a turn; return what ends it, at the latest after TURN_SECONDS. Safe to cancel, and to end
        twice."""
        await self._turns.acquire()
        over = False

        def end() -> None:
            nonlocal over
            timer.cancel()
            if not over:
                over = True
                self._turns.release()

        timer = asyncio.get_running_loop().call_later(TURN_SECONDS, end)
        return end

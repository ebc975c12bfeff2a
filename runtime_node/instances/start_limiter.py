"""Bounds how many instances start at once, without letting slow ones hold up the rest.

A start computes at first and waits later; after `patience` seconds it counts as waiting and its slot is free.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress


class Slot:
    """The right to start now. Released once, by its holder or because its time is up."""

    __slots__ = ("_limiter", "_timer")

    def __init__(self, limiter: StartLimiter, patience: float) -> None:
        self._limiter: StartLimiter | None = limiter
        self._timer = asyncio.get_running_loop().call_later(patience, self.release)

    def release(self) -> None:
        """Give the slot back; repeats do nothing."""
        if self._limiter is not None:
            self._timer.cancel()
            limiter, self._limiter = self._limiter, None
            limiter._free()


class StartLimiter:
    """`limit` slots, given in the order they were asked for."""

    def __init__(self, limit: int, patience: float = 0.5) -> None:
        self._limit = limit
        self._patience = patience
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def try_take(self) -> Slot | None:
        """Return a slot if one is free and nobody waits."""
        if self._taken >= self._limit or self._waiting:
            return None
        self._taken += 1
        return self._slot()

    async def take(self) -> Slot:
        """Wait for a slot. Safe to cancel."""
        slot = self.try_take()
        if slot is not None:
            return slot
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._free()
            else:
                with suppress(ValueError):
                    self._waiting.remove(turn)
            raise
        return self._slot()

    def _slot(self) -> Slot:
        return Slot(self, self._patience)

    def _free(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)  # the slot passes on; `_taken` stays
                return
        self._taken -= 1

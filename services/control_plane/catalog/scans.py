"""Searches the whole catalog in slices, so that others who are served on the loop wait for one at most."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from services.rpc.errors import time_is_up

T = TypeVar("T")

SLICE_SECONDS = 0.002
"""How long a scan may hold the loop at once."""

LOOK_EVERY = 64
"""Records between two looks at the time: the longest filter takes a few milliseconds for them."""


class Scans:
    """Takes turns among the scans of a server. Belongs to one loop."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def find(
        self, records: Iterator[T], matches: Callable[[T], bool], limit: int | None, deadline: float
    ) -> list[T]:
        """Return the first `limit` records that match, or all of them.

        Raises OPERATION_DEADLINE_EXCEEDED once the monotonic clock has passed `deadline`.
        """
        found: list[T] = []
        over = False
        while not over:
            # However many scan, one slice is run in each turn of the loop.
            async with self._turn:
                over = _look(records, matches, limit, deadline, found)
                if not over:
                    await asyncio.sleep(0)  # with the turn in hand: another's slice is for the next turn
        return found


def _look(
    records: Iterator[T], matches: Callable[[T], bool], limit: int | None, deadline: float, found: list[T]
) -> bool:
    """Look at one slice of records, and add those that match; tell whether the scan is over."""
    end = time.monotonic() + SLICE_SECONDS
    for number, record in enumerate(records):
        if matches(record):
            found.append(record)
            if len(found) == limit:
                return True
        if number % LOOK_EVERY:
            continue
        now = time.monotonic()
        if now > deadline:
            raise time_is_up("everything was looked at")
        if now > end:
            return False
    return True

"""Brings drains and rebalances on: looks again at each whenever something has changed in the catalog."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from services.control_plane.fleet import drains, rebalances
from services.control_plane.fleet.relocations import Step
from services.control_plane.store.interface import Transaction
from services.control_plane.store.mirror import Mirror
from services.control_plane.store.records import DRAIN, REBALANCE
from services.rpc.errors import SupervisorError

log = logging.getLogger("appsupervisor.reconciler")

PAUSE_SECONDS = 0.05
"""Least time between two looks: many apps move at once, and each look is at all that is on the node."""

PAUSES = 4.0
"""The same in times of what a look took, for nodes with very many apps: others write meanwhile."""

LOOK_SECONDS = 0.1
"""Least time between two looks for a drain that begins, while there is none: each change would be one."""

IDLE_SECONDS = 60.0

TRIES = 2
"""Moves of one app in one operation: what has failed to start elsewhere twice stays where it serves."""


ADVANCE = {DRAIN: drains.advance, REBALANCE: rebalances.advance}


class Relocations:
    """Follows the operations that move many apps. Lives on one event loop."""

    def __init__(self, mirror: Mirror, write: Callable[[Callable[[Transaction], Any]], Future[Any]]) -> None:
        self._mirror = mirror
        self._write = write
        self._tries: dict[str, Counter[str]] = {}

    async def run(self) -> None:
        """Go on for ever."""
        while True:
            position = self._mirror.apps.revision
            going_on = self._mirror.open_fleet_operations()
            for name in self._tries.keys() - going_on.keys():
                del self._tries[name]
            clock = asyncio.get_running_loop().time
            began = clock()
            for name, verb in going_on.items():
                await self._advance(name, verb)
            pause = max(PAUSE_SECONDS, PAUSES * (clock() - began)) if going_on else LOOK_SECONDS
            await asyncio.sleep(pause)
            # Every change of the catalog moves this feed, also of operations and of nodes.
            await self._mirror.apps.wait(position, IDLE_SECONDS)
            if self._mirror.apps.closed:
                return

    async def _advance(self, name: str, verb: str) -> None:
        advance = ADVANCE[verb]
        tries = self._tries.setdefault(name, Counter())
        spent = frozenset(app for app, count in tries.items() if count >= TRIES)
        try:
            written = self._write(partial(advance, mirror=self._mirror, name=name, spent=spent))
            step: Step = await asyncio.wrap_future(written)
        except SupervisorError as failure:
            log.warning("moves put off: %s: %s", name, failure.message,
                        extra={"action": "moves.put_off", "operation": name})  # fmt: skip
        else:
            tries.update(step.begun)

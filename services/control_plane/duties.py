"""What only the leader does, begun and ended with its term: a controller with its pruning, and batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from services.control_plane.controller.batches import BatchRunner
from services.control_plane.controller.controller import Controller
from services.control_plane.store.interface import CatalogStore
from services.control_plane.tenure import Tenure


class LeaderDuties:
    """Runs one controller per term, over a store whose writes carry the term."""

    def __init__(
        self,
        store: CatalogStore,
        make: Callable[[CatalogStore, Tenure], Controller],
        make_batches: Callable[[CatalogStore], BatchRunner],
    ) -> None:
        self._store = store
        self._make = make
        self._make_batches = make_batches
        self._controller: Controller | None = None
        self._batches: BatchRunner | None = None

    async def begin(self, tenure: Tenure) -> None:
        """Start a controller that leads under a term, from all that was stored under those before it."""
        await asyncio.wrap_future(self._store.catch_up())
        store = self._store.led_by(tenure.term)
        controller, batches = self._make(store, tenure), self._make_batches(store)
        self._controller, self._batches = controller, batches
        await controller.start()
        await batches.start()

    async def end(self) -> None:
        """Close the controller; what runs on the nodes is left as it is."""
        batches, self._batches = self._batches, None
        if batches is not None:
            await batches.close()
        controller, self._controller = self._controller, None
        if controller is not None:
            await controller.close()

    def queue(self) -> tuple[int, int]:
        """Return how many apps wait for a pass, and how many passes are under way; none if another leads."""
        return self._controller.queue() if self._controller is not None else (0, 0)

"""The store as a leader's work sees it: each write carries the term, so that a late one is refused."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from appsupervisor.catalog.v1.app_catalog_pb2 import AppEvent
from services.control_plane.store.history import Histories
from services.control_plane.store.interface import CatalogStore, LeaderSeat, Transaction
from services.control_plane.store.mirror import Mirror

T = TypeVar("T")


class LeaderStore:
    """A `CatalogStore` under one term. Whoever opened the store behind it closes that."""

    def __init__(self, store: CatalogStore, term: int) -> None:
        self._store = store
        self._term = term

    @property
    def catalog_id(self) -> str:
        """See `CatalogStore`."""
        return self._store.catalog_id

    @property
    def mirror(self) -> Mirror:
        """See `CatalogStore`."""
        return self._store.mirror

    @property
    def histories(self) -> Histories:
        """See `CatalogStore`."""
        return self._store.histories

    @property
    def seat(self) -> LeaderSeat:
        """See `CatalogStore`."""
        return self._store.seat

    def write(
        self, command: Callable[[Transaction], T], *, term: int | None = None, request_id: str = ""
    ) -> Future[T]:
        """Run a command if this term is still the newest; see `CatalogStore.write`."""
        term = self._term if term is None else term
        return self._store.write(command, term=term, request_id=request_id)

    def catch_up(self) -> Future[int]:
        """See `CatalogStore`."""
        return self._store.catch_up()

    def led_by(self, term: int) -> CatalogStore:
        """See `CatalogStore`."""
        return self._store.led_by(term)

    def now(self) -> int:
        """See `CatalogStore`."""
        return self._store.now()

    def written(self) -> tuple[int, int]:
        """See `CatalogStore`."""
        return self._store.written()

    def events(self, app: str, limit: int, before: str = "") -> list[AppEvent]:
        """See `CatalogStore`."""
        return self._store.events(app, limit, before)

    def events_after(self, after: int, up_to: int, limit: int, app: str = "") -> list[AppEvent]:
        """See `CatalogStore`."""
        return self._store.events_after(after, up_to, limit, app)

    def prune(self, *, term: int | None = None) -> int:
        """Forget what is beyond its bounds, if this term is still the newest; see `CatalogStore.prune`."""
        return self._store.prune(term=self._term if term is None else term)

    def close(self) -> None:
        """Do nothing: the store serves others too."""

"""`CatalogStore` over SQL: opens, migrates and loads the database, and puts the parts together.

Writes go to the writer's thread, reads to the mirror; only events are read from the database.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from appsupervisor.catalog.v1.app_catalog_pb2 import AppEvent
from services.control_plane.store.clock import RemoteClock, SteadyClock, monotonic_clock, wall_clock
from services.control_plane.store.errors import StoreError, told, unavailable
from services.control_plane.store.history import Histories
from services.control_plane.store.interface import CatalogStore, Transaction
from services.control_plane.store.leader_store import LeaderStore
from services.control_plane.store.mirror import Mirror
from services.control_plane.store.sql.database import Database
from services.control_plane.store.sql.migrate import migrate
from services.control_plane.store.sql.opening import load, open_database
from services.control_plane.store.sql.pruning import Bounds, find_prunable
from services.control_plane.store.sql.seat import SqlLeaderSeat
from services.control_plane.store.sql.storage import BatchStorage
from services.control_plane.store.sql.timelines import events_after, newest_events
from services.control_plane.store.writer import Writer

T = TypeVar("T")

CLOSE_SECONDS = 30.0
"""How long closing waits for the accepted commands; a disk that hangs must not hold up the exit."""

CLOCK_SECONDS = 60.0
"""How far the clock may be behind the catalog's newest time before that is worth a warning."""

_log = logging.getLogger(__name__)


class SqlCatalogStore:
    """The catalog in an SQL database; made by `open_store`."""

    def __init__(
        self,
        database: Database,
        writer: Writer,
        *,
        seat: SqlLeaderSeat,
        clock: SteadyClock,
        bounds: Bounds,
        stack: ExitStack,
    ) -> None:
        self._database = database
        self._state = writer.state
        self._writer = writer
        self._seat = seat
        self._clock = clock
        self._bounds = bounds
        self._stack = stack
        self._closing = threading.Lock()

    @property
    def catalog_id(self) -> str:
        """Random id of this catalog, made with it; part of its resume tokens."""
        return self._state.catalog_id

    @property
    def mirror(self) -> Mirror:
        """Everything in memory, never behind an answered write of this process."""
        return self._state.mirror

    @property
    def histories(self) -> Histories:
        """Which history made which revision; see `CatalogStore.histories`."""
        return self._state.histories

    @property
    def seat(self) -> SqlLeaderSeat:
        """Where the replicas agree on who leads."""
        return self._seat

    def write(
        self, command: Callable[[Transaction], T], *, term: int | None = None, request_id: str = ""
    ) -> Future[T]:
        """Run a command durably; see `CatalogStore.write`."""
        return self._writer.write(command, term, request_id)

    def catch_up(self) -> Future[int]:
        """Have the mirror take in all that is committed now; see `CatalogStore.catch_up`."""
        return self._writer.catch_up()

    def led_by(self, term: int) -> CatalogStore:
        """Return this store for a leader's work; see `CatalogStore.led_by`."""
        return LeaderStore(self, term)

    def now(self) -> int:
        """Return the catalog's time; see `CatalogStore.now`."""
        return self._clock()

    def written(self) -> tuple[int, int]:
        """See CatalogStore."""
        return self._writer.commits, self._writer.commands

    def events(self, app: str, limit: int, before: str = "") -> list[AppEvent]:
        """Return up to `limit` events of an app or of all (""), newest first, older than the id `before`.

        Raises SupervisorError INVALID_PAGE_TOKEN if `before` is no event id, STORE_UNAVAILABLE if
        the database cannot be read.
        """
        with self._reading("Events cannot be read") as connection:
            return newest_events(connection, app, limit, before)

    def events_after(self, after: int, up_to: int, limit: int, app: str = "") -> list[AppEvent]:
        """Return events in their order; see `CatalogStore.events_after`."""
        with self._reading("Events cannot be read") as connection:
            return events_after(connection, app, after, up_to, limit, self._bounds.events)

    @contextmanager
    def _reading(self, failing: str) -> Iterator[Connection]:
        """Lend a connection to read with. Raises SupervisorError STORE_UNAVAILABLE."""
        try:
            with self._database.reader.connect() as connection:
                yield connection
        except (DBAPIError, PoolTimeoutError, OSError) as error:
            line, whole = told(error)
            _log.warning("%s: %s", failing, line, extra={"action": "store.unreadable"}, exc_info=whole)
            raise unavailable(error) from error

    def prune(self, *, term: int | None = None) -> int:
        """Forget a bounded part of what is beyond its bounds; return how many records went.

        0 says that nothing is left to forget. Raises SupervisorError as the futures of `write` do.
        """
        with self._reading("Pruning cannot read") as connection:
            prunable = find_prunable(connection, self._state, self._bounds, self._clock())
        return self._writer.write(prunable.forget, term).result() if prunable else 0

    def close(self) -> None:
        """Finish the accepted commands and close the database; a second call does nothing."""
        with self._closing:
            self._stack.close()


def open_store(
    database_url: str,
    *,
    clock: Callable[[], int] | None = None,
    elapsed: Callable[[], int] = monotonic_clock,
    bounds: Bounds | None = None,
    on_fatal: Callable[[BaseException], None] | None = None,
) -> SqlCatalogStore:
    """Open a catalog, made first if there is none: own the file, migrate, load, start the writer.

    `clock` gives microseconds since the Unix epoch; without it the database's is used where several
    machines share one, else this machine's. `elapsed` gives them since any moment: see `SteadyClock`.
    `bounds` say what `prune` keeps. `on_fatal` is called, on the writer's thread, if the writer must end:
    nothing can be written any more, and the process should exit.

    Raises StoreError, with nothing changed, if the URL is not usable, if another control plane has
    the file, if the schema is not known to this program, or if a record cannot be decoded.
    """
    began = time.monotonic()
    with ExitStack() as stack:
        database = open_database(database_url, stack)
        try:
            migrate(database, (clock or wall_clock)())
            state, now = load(database)
        except (SQLAlchemyError, OSError) as error:
            raise StoreError(f"The catalog {database.label} cannot be opened: {_cause(error)}.") from error
        if database.finish is not None:
            stack.callback(database.finish)
        remote = RemoteClock(now, elapsed) if clock is None and now is not None else None
        wall = clock or remote or wall_clock
        ahead = (state.now - wall()) / 1e6
        if ahead > CLOCK_SECONDS:
            _log.warning(
                "The clock is %.0f s behind the catalog's last write; its times go on from there",
                ahead,
                extra={"action": "store.clock_behind", "seconds": ahead},
            )
        _log.info(
            "Opened the catalog %s: %d apps in %.2f s",
            database.label,
            len(state.mirror.apps),
            time.monotonic() - began,
            extra={"action": "store.opened", "revision": state.revision, "apps": len(state.mirror.apps)},
        )
        steady = SteadyClock(wall, elapsed, state.now)
        storage = BatchStorage(database, state, remote)
        writer = Writer(storage, state, steady, on_fatal)
        stack.callback(writer.close, CLOSE_SECONDS)
        seat = SqlLeaderSeat(database)
        stack.callback(seat.close)
        if database.listen is not None:
            listener = database.listen(lambda sender: None if sender == storage.writer_id else writer.wake())
            stack.callback(listener.close)
        return SqlCatalogStore(
            database, writer, seat=seat, clock=steady, bounds=bounds or Bounds(), stack=stack.pop_all()
        )


def _cause(error: Exception) -> str:
    # The driver's own words: around them SQLAlchemy puts statements and links.
    words = str(error.orig if isinstance(error, DBAPIError) else error)
    return " ".join(words.split()).rstrip(".")

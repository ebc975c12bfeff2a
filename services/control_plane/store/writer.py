"""Group commit: one thread runs all commands, follows what others write, and alone moves the mirror.

Order of one batch: the catalog's lock, what others have committed since, the commands on write sets in
memory, one flush and commit, the mirror, the futures. Commands that arrive together share one batch.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from services.control_plane.store.clock import SteadyClock
from services.control_plane.store.errors import (
    StoreError,
    busy,
    leadership_lost,
    shutting_down,
    told,
    unavailable,
)
from services.control_plane.store.records import RequestRecord
from services.control_plane.store.state import State
from services.control_plane.store.transaction import CommandTransaction
from services.control_plane.store.write_set import Batch

T = TypeVar("T")
Command = Callable[[CommandTransaction], Any]

QUEUE = 10_000
"""Commands that may wait; at 1,000 commands/s the last of them waits for ten seconds."""
BATCH = 256
"""Commands that share a commit: beyond it the commit's own cost is spread thin enough."""
DOUBT_SECONDS = 1.0
"""How often a commit of unknown outcome is looked up while nothing else is written."""
POLL_SECONDS = 1.0
"""How often a catalog that others may write is looked at, if nobody says that it has changed."""

_log = logging.getLogger(__name__)


class UnreadableError(BaseException):
    """The database failed under a command's read; not an Exception, for no command shall catch it."""


class Storage(Protocol):
    """Where batches are stored. Used by the writer's thread alone."""

    shared: bool
    """Whether others may write the catalog too."""

    @property
    def in_doubt(self) -> bool:
        """Whether it is unknown if the last commit has happened; nothing can be stored until then."""
        ...

    def begin(self) -> Batch:
        """Lock the catalog, take into the state what others have committed, return a batch over that."""
        ...

    def find_requests(self, ids: Collection[str]) -> dict[str, RequestRecord | None]:
        """Read stored requests, expired or not; None for those that are not there."""
        ...

    def store(self, batch: Batch) -> None:
        """Write and commit a batch; on an error nothing is stored, unless `in_doubt`."""
        ...

    def settle(self) -> Batch | None:
        """Find out whether the commit in doubt has happened, and return it if so; drops the connection."""
        ...

    def follow(self) -> None:
        """Take into the state what others have committed."""
        ...

    def disconnect(self) -> None:
        """Drop the connection; the next use makes a new one."""
        ...

    def is_of_one_command(self, error: BaseException) -> bool:
        """Tell a row that the database refuses from a database that cannot be used."""
        ...

    def is_lost_connection(self, error: BaseException) -> bool:
        """Tell whether a new connection, made at once, may serve where this one failed."""
        ...


@dataclass(slots=True)
class _Job:
    command: Command
    future: Future[Any]
    term: int | None = None
    """The leader's term under which alone it may run."""
    request_id: str = ""
    """The request that it will look for."""
    result: Any = None
    error: BaseException | None = None

    def answer(self) -> None:
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class Writer:
    """The writing thread and its queue. `on_fatal` is called on it if it must end; see `write`."""

    def __init__(
        self,
        storage: Storage,
        state: State,
        clock: SteadyClock,
        on_fatal: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.state = state
        self._storage = storage
        self._clock = clock
        self._on_fatal = on_fatal
        self._failing = False
        self._arrived = threading.Condition()
        self._queue: deque[_Job] = deque()
        self._running: list[_Job] = []
        self._woken = False
        self._waiting: list[Future[int]] = []
        self._catching_up: list[Future[int]] = []
        self.commits = 0
        """Batches that were stored."""
        self.commands = 0
        """Commands in them."""
        self._closing = False
        self._fatal: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def write(
        self, command: Callable[[CommandTransaction], T], term: int | None = None, request_id: str = ""
    ) -> Future[T]:
        """Queue a command; see `CatalogStore.write`.

        After a fatal fault (a bug, or the database has lost what was committed) every future fails with
        STORE_UNAVAILABLE, those that wait included, until the process is started again.
        """
        future: Future[T] = Future()
        with self._arrived:
            refusal = self._refusal()
            if refusal is None:
                self._queue.append(_Job(command, future, term, request_id))
                if len(self._queue) == 1:
                    self._arrived.notify()
        if refusal is not None:
            future.set_exception(refusal)
        return future

    def catch_up(self) -> Future[int]:
        """Have the mirror take in all that is committed now; see `CatalogStore.catch_up`."""
        future: Future[int] = Future()
        if not self._storage.shared:
            future.set_result(self.state.revision)
            return future
        with self._arrived:
            refusal = self._refusal()
            if refusal is None:
                # Those who come while one look at the database is under way share the next.
                self._waiting.append(future)
                self._wake()
        if refusal is not None:
            future.set_exception(refusal)
        return future

    def wake(self) -> None:
        """Have the writer look at what others have written."""
        with self._arrived:
            self._wake()

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            self._arrived.notify()

    def _refusal(self) -> Exception | None:
        if self._fatal is not None:
            return unavailable()
        if self._closing:
            return shutting_down()
        return busy() if len(self._queue) >= QUEUE else None

    def close(self, timeout: float) -> None:
        """Finish the accepted commands, within `timeout` seconds, and end the thread."""
        with self._arrived:
            self._closing = True
            self._arrived.notify()
        self._thread.join(timeout)
        if self._thread.is_alive():
            _log.error("The store's writer did not end in time", extra={"action": "store.close_timeout"})

    def _run(self) -> None:
        try:
            while self._take():
                if self._storage.in_doubt:
                    self._settle()
                if self._running:
                    self._serve(self._running)
                elif self._storage.shared:
                    self._follow()
                self._running = []
        except BaseException as error:  # noqa: BLE001  # whatever ended the writer must not end in silence
            self._die(error)
        finally:
            self._storage.disconnect()

    def _take(self) -> bool:
        with self._arrived:
            while not self._queue and not self._woken:
                if self._closing:
                    self._refuse(self._waiting, shutting_down())
                    return False
                if not self._arrived.wait(self._patience()):
                    break
            self._woken = False
            self._catching_up, self._waiting = self._waiting, []
        self._running = self._next(BATCH)
        return True

    def _next(self, limit: int) -> list[_Job]:
        with self._arrived:
            jobs = [self._queue.popleft() for _ in range(min(len(self._queue), limit))]
        return [job for job in jobs if job.future.set_running_or_notify_cancel()]

    def _patience(self) -> float | None:
        if self._storage.in_doubt:
            return DOUBT_SECONDS
        return POLL_SECONDS if self._storage.shared else None

    def _follow(self) -> None:
        """Take in what others have written, because somebody has said so, or it is time to look."""
        try:
            if self._storage.in_doubt:
                raise UnreadableError("It is unknown whether the last commit has happened")
            try:
                self._storage.follow()
            except Exception as error:
                if not self._storage.is_lost_connection(error):
                    raise
                self._storage.disconnect()
                self._storage.follow()
        except StoreError:
            raise
        except (Exception, UnreadableError) as error:  # noqa: BLE001  # it is looked at again soon
            self._storage.disconnect()
            self._note(error)
            self._refuse(self._catching_up, unavailable())
        else:
            self._note(None)
            self._answer_caught_up()

    def _answer_caught_up(self) -> None:
        self._clock.reach(self.state.now)
        futures, self._catching_up = self._catching_up, []
        for future in futures:
            if future.set_running_or_notify_cancel():
                future.set_result(self.state.revision)

    def _refuse(self, futures: list[Future[int]], refusal: Exception) -> None:
        refused = list(futures)
        futures.clear()
        for future in refused:
            if future.set_running_or_notify_cancel():
                future.set_exception(refusal)

    def _serve(self, jobs: list[_Job], *, again: bool = True) -> None:
        """Carry out commands in one batch; on a connection that turns out to be dead, once `again`."""
        try:
            if self._storage.in_doubt:
                raise UnreadableError("It is unknown whether the last commit has happened")
            batch = self._storage.begin()
            self._answer_caught_up()
            if jobs is self._running and self._storage.shared:
                # While others had the lock more have come: they need not wait for it once again.
                jobs += self._next(BATCH - len(jobs))
            if ids := {job.request_id for job in jobs if job.request_id}:
                batch.requests.update(self._storage.find_requests(ids))
            for job in jobs:
                self._execute(job, batch)
            self._storage.store(batch)
        except StoreError:
            raise
        except (Exception, UnreadableError) as error:  # noqa: BLE001  # sorted out by its kind
            if not self._recover(jobs, error, again):
                return
        else:
            batch.publish()
            self.commits += 1
            self.commands += len(jobs)
            self._note(None)
        for job in jobs:
            job.answer()

    def _execute(self, job: _Job, batch: Batch) -> None:
        now = self.state.now = max(self._clock(), self.state.now)
        transaction = CommandTransaction(batch, now)
        job.result = job.error = None
        if job.term is not None and job.term != batch.term:
            job.error = leadership_lost(job.term, batch.term)
            return
        try:
            job.result = job.command(transaction)
        except UnreadableError:
            raise
        except BaseException as error:  # noqa: BLE001  # it is the caller's, whatever it is
            job.error = error
        else:
            batch.keep(transaction.revision, now, transaction.write_set)

    def _recover(self, jobs: list[_Job], error: BaseException, again: bool) -> bool:
        """After a batch could not be stored: return whether its jobs are still to be answered, and can be."""
        if self._storage.is_of_one_command(error):
            if len(jobs) == 1:
                jobs[0].error = error
                return True
            # Nothing tells whose row it was: each command gets a commit of its own.
            for job in jobs:
                self._serve([job])
            return False
        if self._settle():
            return True
        if again and not self._storage.in_doubt and self._storage.is_lost_connection(error):
            # The server was restarted, or another took over: nothing was stored, so it may be tried again.
            self._serve(jobs, again=False)
            return False
        self._note(error)
        self._refuse(self._catching_up, unavailable(error))
        for job in jobs:
            job.error = unavailable(error)
        return True

    def _settle(self) -> bool:
        """Return whether the commit in doubt is known to have happened."""
        batch = self._storage.settle()
        if batch is None:
            return False
        batch.publish()
        return True

    def _note(self, error: BaseException | None) -> None:
        """Log when the database begins to fail, and when it works again."""
        if error is not None and not self._failing:
            line, whole = told(error)
            _log.error(
                "The catalog's database cannot be used: %s",
                line,
                extra={"action": "store.unavailable"},
                exc_info=whole,
            )
        elif error is None and self._failing:
            _log.info("The catalog's database can be used again", extra={"action": "store.available"})
        self._failing = error is not None

    def _die(self, error: BaseException) -> None:
        with self._arrived:
            self._fatal = error
            left = [*self._running, *self._queue]
            self._queue.clear()
            self._refuse(self._waiting, unavailable())
        self._refuse(self._catching_up, unavailable())
        _log.critical("The store's writer ended", extra={"action": "store.fatal"}, exc_info=error)
        for job in left:
            if not job.future.done():
                job.future.set_exception(unavailable())
        if self._on_fatal is not None:
            self._on_fatal(error)

"""Group commit: one thread runs all commands; those that arrive together share one commit.

Order of one batch: commands on layers in memory, one flush and commit, the mirror, the futures.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Engine

from services.control_plane.store.errors import StoreError, busy, shutting_down, unavailable
from services.control_plane.store.write_set import Batch, State
from services.control_plane.store.sql.storage import BatchStorage, UnreadableError, is_of_one_command
from services.control_plane.store.transaction import CommandTransaction

T = TypeVar("T")
Command = Callable[[CommandTransaction], Any]

QUEUE = 10_000
"""Commands that may wait; at 1,000 commands/s the last of them waits for ten seconds."""
BATCH = 256
"""Commands that share a commit: beyond it the commit's own cost is spread thin enough."""
DOUBT_SECONDS = 1.0
"""How often a commit of unknown outcome is looked up while nothing else is written."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Job:
    command: Command
    future: Future[Any]
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
        engine: Engine,
        state: State,
        clock: Callable[[], int],
        on_fatal: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.state = state
        self._storage = BatchStorage(engine, state)
        self._clock = clock
        self._on_fatal = on_fatal
        self._failing = False
        self._arrived = threading.Condition()
        self._queue: deque[_Job] = deque()
        self._running: list[_Job] = []
        self.commits = 0
        """Batches that were stored."""
        self.commands = 0
        """Commands in them."""
        self._closing = False
        self._fatal: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def write(self, command: Callable[[CommandTransaction], T]) -> Future[T]:
        """Queue a command; see `CatalogStore.write`.

        After a fatal fault (a bug, or another program wrote the catalog) every future fails with
        STORE_UNAVAILABLE, those that wait included, until the process is started again.
        """
        future: Future[T] = Future()
        with self._arrived:
            refusal = self._refusal()
            if refusal is None:
                self._queue.append(_Job(command, future))
                if len(self._queue) == 1:
                    self._arrived.notify()
        if refusal is not None:
            future.set_exception(refusal)
        return future

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
                self._running = []
        except BaseException as error:  # noqa: BLE001  # whatever ended the writer must not end in silence
            self._die(error)
        finally:
            self._storage.disconnect()

    def _take(self) -> bool:
        with self._arrived:
            while not self._queue:
                if self._closing:
                    return False
                if not self._arrived.wait(DOUBT_SECONDS if self._storage.in_doubt else None):
                    break
            count = min(len(self._queue), BATCH)
            jobs = [self._queue.popleft() for _ in range(count)]
        self._running = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        return True

    def _serve(self, jobs: list[_Job]) -> None:
        batch = Batch(self.state, self._storage.find_request)
        try:
            if self._storage.in_doubt:
                raise UnreadableError("It is unknown whether the last commit has happened")
            for job in jobs:
                self._execute(job, batch)
            self._storage.store(batch)
        except StoreError:
            raise
        except (Exception, UnreadableError) as error:  # noqa: BLE001  # sorted out by its kind
            if not self._recover(jobs, error):
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
        try:
            job.result = job.command(transaction)
        except UnreadableError:
            raise
        except BaseException as error:  # noqa: BLE001  # it is the caller's, whatever it is
            job.error = error
        else:
            batch.keep(transaction.revision, now, transaction.write_set)

    def _recover(self, jobs: list[_Job], error: BaseException) -> bool:
        """After a batch could not be stored: return whether its jobs can be answered all the same."""
        if isinstance(error, Exception) and is_of_one_command(error):
            if len(jobs) == 1:
                jobs[0].error = error
                return True
            # Nothing tells whose row it was: each command gets a commit of its own.
            for job in jobs:
                self._serve([job])
            return False
        if self._settle():
            return True
        self._note(error)
        for job in jobs:
            job.error = unavailable()
        return True

    def _settle(self) -> bool:
        """Return whether the commit in doubt is known to have happened."""
        batch = self._storage.settle()
        if batch is None:
            return False
        batch.publish()
        return True

    def _note(self, error: BaseException | None) -> None:
        """Log when writing begins to fail, and when it works again."""
        if error is not None and not self._failing:
            _log.error("The catalog cannot be written", extra={"action": "store.unavailable"}, exc_info=error)
        elif error is None and self._failing:
            _log.info("The catalog can be written again", extra={"action": "store.available"})
        self._failing = error is not None

    def _die(self, error: BaseException) -> None:
        with self._arrived:
            self._fatal = error
            left = [*self._running, *self._queue]
            self._queue.clear()
        _log.critical("The store's writer ended", extra={"action": "store.fatal"}, exc_info=error)
        for job in left:
            if not job.future.done():
                job.future.set_exception(unavailable())
        if self._on_fatal is not None:
            self._on_fatal(error)

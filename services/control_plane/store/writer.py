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

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, ProgrammingError
from sqlmodel import select

from services.control_plane.store.errors import StoreError, busy, shutting_down, unavailable
from services.control_plane.store.records import RequestRecord
from services.control_plane.store.statements import Statements
from services.control_plane.store.tables import MetaRow
from services.control_plane.store.transaction import Batch, CommandTransaction, State

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
        self._engine = engine
        self.statements = Statements(engine.dialect)
        self.state = state
        self._clock = clock
        self._on_fatal = on_fatal
        self._connection: Connection | None = None
        self._doubt: Batch | None = None
        self._arrived = threading.Condition()
        self._queue: deque[_Job] = deque()
        self._running: list[_Job] = []
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
                if self._doubt is not None:
                    self._settle()
                if self._running:
                    self._serve(self._running)
                    self._running = []
        except BaseException as error:  # noqa: BLE001  # whatever ended the writer must not end in silence
            self._die(error)
        finally:
            self._disconnect()

    def _take(self) -> bool:
        with self._arrived:
            while not self._queue:
                if self._closing:
                    return False
                if not self._arrived.wait(DOUBT_SECONDS if self._doubt is not None else None):
                    break
            count = min(len(self._queue), BATCH)
            jobs = [self._queue.popleft() for _ in range(count)]
        self._running = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        return True

    def _serve(self, jobs: list[_Job]) -> None:
        try:
            self._commit(jobs)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001  # sorted out below, by kind
            if len(jobs) > 1 and _is_of_one_command(error):
                # The layers cannot tell whose row it was: each command gets a commit of its own.
                for job in jobs:
                    self._serve([job])
                return
            if _is_of_one_command(error):
                jobs[0].error = error
            elif not self._try_settle():
                _log.error(
                    "The catalog cannot be written",
                    extra={"action": "store.unavailable", "commands": len(jobs)},
                    exc_info=error,
                )
                for job in jobs:
                    job.error = unavailable()
        for job in jobs:
            job.answer()

    def _commit(self, jobs: list[_Job]) -> None:
        batch = Batch(self.state, self._find_request)
        for job in jobs:
            now = self.state.now = max(self._clock(), self.state.now)
            transaction = batch.begin(now)
            job.result = job.error = None
            try:
                job.result = job.command(transaction)
            except _Unreadable as error:
                self._rollback()
                raise error.cause from None
            except BaseException as error:  # noqa: BLE001  # it is the caller's, whatever it is
                job.error = error
            else:
                batch.keep(transaction)
        if not batch.commits:
            self._rollback()
            return
        connection = self._connect()
        try:
            self.statements.write(connection, batch)
        except BaseException:
            self._rollback()
            raise
        self._doubt = batch
        connection.commit()
        self._publish()

    def _publish(self) -> None:
        """Take the batch that is known to be stored into memory."""
        batch, self._doubt = self._doubt, None
        assert batch is not None
        state, layer = self.state, batch.layer
        for domain, app in layer.domains.items():
            if app is None:
                state.domains.pop(domain, None)
            else:
                state.domains[domain] = app
        state.revision = batch.revision
        state.eventful.update((app, None) for app, _, _ in layer.events)
        state.oldest_revision = max(state.oldest_revision, layer.oldest_revision)
        for revision, _, changed in batch.commits:
            state.mirror.apply(
                revision,
                apps=changed.apps.items(),
                environments=changed.environments.items(),
                nodes=changed.nodes.items(),
                operations=changed.operations.items(),
            )

    def _try_settle(self) -> bool:
        """Find out, after a failed commit, whether it has happened all the same."""
        self._disconnect()
        if self._doubt is None:
            return False
        try:
            return self._settle()
        except (DBAPIError, OSError):
            return False

    def _settle(self) -> bool:
        assert self._doubt is not None
        ours = self._doubt.revision
        stored = self._connect().execute(select(MetaRow.revision)).scalar_one()
        self._rollback()
        if stored == ours:
            self._publish()
            return True
        if stored != self.state.revision:
            raise StoreError("Another program has written the catalog; only one control plane may.")
        self._doubt = None
        return False

    def _find_request(self, request_id: str) -> RequestRecord | None:
        try:
            return self.statements.find_request(self._connect(), request_id)
        except (DBAPIError, OSError) as error:
            raise _Unreadable(error) from error

    def _connect(self) -> Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
        return self._connection

    def _rollback(self) -> None:
        if self._connection is None:
            return
        try:
            self._connection.rollback()
        except (DBAPIError, OSError):
            self._disconnect()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            connection.invalidate()
            connection.close()
        except (DBAPIError, OSError) as error:
            _log.warning("Closing the catalog failed: %s", error, extra={"action": "store.close_failed"})

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


class _Unreadable(BaseException):
    """The database failed under a command's read: not for the command to catch."""

    def __init__(self, cause: Exception) -> None:
        super().__init__()
        self.cause = cause


def _is_of_one_command(error: Exception) -> bool:
    """Tell a row that the database refuses from a database that cannot be used."""
    if isinstance(error, DBAPIError):
        return isinstance(error, (IntegrityError, DataError, ProgrammingError)) and not isinstance(
            error, InterfaceError
        )
    return not isinstance(error, OSError)

"""Takes lines from any thread without ever waiting, and writes them to each app's files on one thread.

What comes faster than an app may log, or than the disk takes, is dropped and counted; the count becomes an
entry of its own at the place of the loss, as soon as it is one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from itertools import chain
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

from runtime_node.logs.entries import MAX_TEXT_BYTES, UNWRITTEN, Entry, storable
from runtime_node.masking import Masker

if TYPE_CHECKING:
    from runtime_node.logs.files import AppLog

log = logging.getLogger("runtime_node.logs")

WINDOW_SECONDS = 1.0
LINES_PER_WINDOW = 2_000
CHARACTERS_PER_WINDOW = 1 << 20
"""An app that logs more within a window loses the rest of it: about 1 MB/s outlasts what is kept in 4 s."""

MAX_PENDING = 50_000
"""Lines of all apps that may wait for the disk; so many per app as two windows."""

GATHER_SECONDS = 0.01
"""Lines that come within so long share a write, and a wake-up of the writer."""
IDLE_SECONDS = 0.5
BATCH = 4_000


class Line(NamedTuple):
    """A line on its way to the disk."""

    channel: Channel
    time: float
    level: int
    source: str
    text: str
    begins_cut: bool
    ends_cut: bool


class Loss(NamedTuple):
    """A place at which lines of an app were dropped before they were queued."""

    account: Account
    shed: int
    """How many in all, up to here."""


Item = Line | Loss | tuple[Callable[[], None], "Future[None]"] | None
"""What is queued: a line, a loss, work for the writer's thread, or the end."""


class Account:
    """What one app has logged so far, for its rate and its figures. Counters are written without a lock:
    CPython switches threads at calls and backward jumps alone, not within an addition."""

    __slots__ = (
        "_characters", "_lines", "_until", "accepted", "channels", "dropped", "log", "noted", "shed", "told",
        "unwritten", "written",
    )  # fmt: skip

    def __init__(self, app_log: AppLog) -> None:
        self.log = app_log
        self.channels = 0
        """Instances that have been heard and may go on."""
        self.accepted = 0
        """Lines that were queued."""
        self.written = 0
        """Of those, the ones that the writer is done with."""
        self.dropped = 0
        """All lines that were not kept."""
        self.shed = 0
        """Of those, the ones that were not queued."""
        self.noted = 0
        """Of the shed, the ones whose place is queued."""
        self.told = 0
        """Of the shed, the ones that an entry tells of."""
        self.unwritten = 0
        """Lines that could not be written and that no entry tells of yet."""
        self._until = 0.0
        self._lines = self._characters = 0

    def admit(self, size: int) -> bool:
        """Tell whether one more line may come now, and count it either way."""
        now = time.monotonic()
        if now >= self._until:
            self._until = now + WINDOW_SECONDS
            self._lines = self._characters = 0
        self._lines += 1
        self._characters += size
        if (
            self._lines > LINES_PER_WINDOW
            or self._characters > CHARACTERS_PER_WINDOW
            or self.accepted - self.written > 2 * LINES_PER_WINDOW
        ):
            self.drop()
            return False
        self.accepted += 1
        return True

    def drop(self) -> None:
        """Count a line that is not queued."""
        self.dropped += 1
        self.shed += 1

    def loss(self) -> Loss | None:
        """Return the place for what was shed and has none yet."""
        if self.shed == self.noted:
            return None
        self.noted = self.shed
        return Loss(self, self.noted)


class Channel:
    """Where the lines of one instance go."""

    __slots__ = ("_mask", "_secrets", "account", "instance")

    def __init__(self, instance: str, account: Account, secrets: tuple[str, ...]) -> None:
        self.instance = instance
        self.account = account
        self._secrets = secrets
        self._mask: Masker | None = None

    @property
    def mask(self) -> Masker:
        """What blanks out the instance's secrets; made on first use: of many secrets that takes 100 ms."""
        if self._mask is None:
            self._mask = Masker(self._secrets)
        return self._mask


class LogWriter:
    """The queue and the thread behind it. `echo` is told of each entry that was written."""

    def __init__(
        self,
        echo: Callable[[AppLog, Entry], None] | None = None,
        idle_work: Callable[[], None] = lambda: None,
    ) -> None:
        """`idle_work` is called every half second or so on the writer's thread."""
        self._echo = echo
        self._idle_work = idle_work
        self._queue: SimpleQueue[Item] = SimpleQueue()
        self._lossy: set[Account] = set()
        """Accounts of which something may have to be told still."""
        self._failing: set[AppLog] = set()
        self._thread = threading.Thread(target=self._run, name="app-logs", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def put(
        self,
        channel: Channel,
        level: int,
        source: str,
        text: str,
        *,
        when: float | None = None,
        begins_cut: bool = False,
        ends_cut: bool = False,
    ) -> None:
        """Queue a line, or drop it. Any thread, also in signal handlers and finalizers; never waits."""
        account = channel.account
        if self._queue.qsize() > MAX_PENDING:
            account.drop()
        elif account.admit(len(text)):
            if (loss := account.loss()) is not None:
                self._queue.put(loss)
            ends_cut = ends_cut or len(text) > 4 * MAX_TEXT_BYTES
            text = text[: 4 * MAX_TEXT_BYTES]
            now = time.time() if when is None else when
            self._queue.put(Line(channel, now, level, source, text, begins_cut, ends_cut))
            return
        if account not in self._lossy:
            # The first one tells where it begins; how many they become is told with the next line, or soon.
            self._lossy.add(account)
            if (loss := account.loss()) is not None:
                self._queue.put(loss)

    def call(self, work: Callable[[], None]) -> Future[None]:
        """Run something on the writer's thread, after all lines that are queued now."""
        done: Future[None] = Future()
        if self._thread.is_alive():
            self._queue.put((work, done))
        else:
            self._work(work, done)
        return done

    def settle(self, account: Account) -> None:
        """Tell what was lost of an app that says no more. On the writer's thread."""
        if account.told != account.shed or account.unwritten:
            self._append(account, [Loss(account, account.shed)])
        self._lossy.discard(account)

    def close(self, timeout: float = 5.0) -> None:
        """Write what is queued and end the thread."""
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        ending = False
        tidied = time.monotonic()
        while not ending:
            try:
                first = self._queue.get(timeout=IDLE_SECONDS)
            except Empty:
                pass
            else:
                if isinstance(first, Line):
                    time.sleep(GATHER_SECONDS)
                ending = self._take(first)
            if ending or time.monotonic() - tidied >= IDLE_SECONDS:
                self._tidy(final=ending)
                tidied = time.monotonic()

    def _take(self, first: Item) -> bool:
        """Write a batch; return whether the end was asked for."""
        batch: list[Line | Loss] = []
        for item in chain([first], self._waiting(BATCH)):
            if isinstance(item, (Line, Loss)):
                batch.append(item)
            else:
                self._write(batch)
                batch = []
                if item is None:
                    return True
                self._work(*item)
        self._write(batch)
        return False

    def _waiting(self, most: int) -> Iterator[Item]:
        for _ in range(most):
            try:
                yield self._queue.get_nowait()
            except Empty:
                return

    def _work(self, work: Callable[[], None], done: Future[None]) -> None:
        try:
            work()
        except Exception as fault:  # noqa: BLE001 - belongs to whoever asked
            done.set_exception(fault)
        else:
            done.set_result(None)

    def _write(self, batch: list[Line | Loss]) -> None:
        by_account: dict[Account, list[Line | Loss]] = {}
        for item in batch:
            account = item.channel.account if isinstance(item, Line) else item.account
            by_account.setdefault(account, []).append(item)
        for account, group in by_account.items():
            self._append(account, group)
            account.written += sum(isinstance(item, Line) for item in group)

    def _append(self, account: Account, items: list[Line | Loss]) -> None:
        """Add lines to an app's log, and entries that tell of lost ones in their places."""
        app_log = account.log
        first = 0
        entries: list[Entry] = []
        try:
            app_log.load()
            first = app_log.next
            entries = _entries(first, account, items)
            app_log.append(entries)
        except Exception as fault:  # noqa: BLE001 - told by _note_failure
            kept = entries[: app_log.next - first] if first else []
            _note_told(account, kept)
            lines = sum(isinstance(item, Line) for item in items) - sum(not entry.dropped for entry in kept)
            self._note_failure(account, lines, fault)
            return
        _note_told(account, entries)
        self._failing.discard(app_log)
        if self._echo is not None and not app_log.ended:
            for entry in entries:
                self._echo(app_log, entry)

    def _note_failure(self, account: Account, lines: int, fault: Exception) -> None:
        app_log = account.log
        account.dropped += lines
        account.unwritten += lines
        self._lossy.add(account)
        app_log.lose(lines)
        if app_log not in self._failing:
            self._failing.add(app_log)
            log.exception(
                "an app's log cannot be written", exc_info=fault,
                extra={"action": "logs.write_failed", "directory": app_log.directory},
            )  # fmt: skip

    def _tidy(self, *, final: bool) -> None:
        try:
            for account in list(self._lossy):
                if account.told == account.shed and not account.unwritten:
                    self._lossy.discard(account)
                    continue
                account.noted = account.shed
                loss = Loss(account, account.shed)
                if final:
                    self._append(account, [loss])
                else:
                    # Behind what is queued already: that came before the loss.
                    self._queue.put(loss)
            self._idle_work()
        except Exception:
            log.exception("tidying failed", extra={"action": "logs.tidy_failed"})


def _note_told(account: Account, entries: list[Entry]) -> None:
    """Take note of the losses that entries which are written tell of."""
    for entry in entries:
        if entry.tells_unwritten:
            account.unwritten -= entry.dropped
            account.log.told += entry.dropped
        elif entry.dropped:
            account.told += entry.dropped


def _entries(first: int, account: Account, items: list[Line | Loss]) -> list[Entry]:
    entries: list[Entry] = []
    told = account.told
    if account.unwritten:
        entries.append(_marker(first, account.unwritten, UNWRITTEN))
    for item in items:
        cursor = first + len(entries)
        if isinstance(item, Line):
            entries.append(_entry(cursor, item))
        elif item.shed > told:
            entries.append(
                _marker(cursor, item.shed - told, "dropped: the app logs faster than its log is kept")
            )
            told = item.shed
    return entries


def _marker(cursor: int, lines: int, why: str) -> Entry:
    return Entry(cursor, time.time_ns() // 1000, logging.WARNING, "", "node", f"{lines} lines {why}", lines)


def _entry(cursor: int, line: Line) -> Entry:
    text = line.channel.mask(line.text, begins_cut=line.begins_cut, ends_cut=line.ends_cut)
    instance = line.channel.instance.rpartition("/")[2]
    return Entry(cursor, int(line.time * 1e6), line.level, instance, line.source[:200], storable(text))

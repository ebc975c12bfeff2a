"""Takes lines from any thread without ever waiting, and writes them to each app's files on one thread.

What comes faster than an app may log, or than the disk takes, is dropped and counted; the count becomes an
entry of its own.
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

from runtime_node.logs.entries import MAX_TEXT_BYTES, Entry, storable
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


Item = Line | tuple[Callable[[], None], "Future[None]"] | None
"""What is queued: a line, work for the writer's thread, or the end."""


class Account:
    """What one app has logged so far, for its rate and its figures. Counters are written without a lock:
    CPython switches threads at calls and backward jumps alone, not within an addition."""

    __slots__ = (
        "_characters", "_lines", "_until", "accepted", "channels", "dropped", "log", "marked", "written",
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
        self.marked = 0
        """Dropped lines that an entry has told of."""
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
            self.dropped += 1
            return False
        self.accepted += 1
        return True

    @property
    def flooding(self) -> bool:
        """Whether lines are being dropped in the present window: their number is told when it is over."""
        return time.monotonic() < self._until


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

    def __init__(self, echo: Callable[[AppLog, Entry], None] | None = None) -> None:
        self._echo = echo
        self._queue: SimpleQueue[Item] = SimpleQueue()
        self._flooded: set[Account] = set()
        self._failing: set[AppLog] = set()
        self._thread = threading.Thread(target=self._run, name="app-logs", daemon=True)
        self.idle_work: Callable[[], None] = lambda: None
        """Called every half second or so on the writer's thread."""

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
            account.dropped += 1
        elif account.admit(len(text)):
            ends_cut = ends_cut or len(text) > 4 * MAX_TEXT_BYTES
            text = text[: 4 * MAX_TEXT_BYTES]
            now = time.time() if when is None else when
            self._queue.put(Line(channel, now, level, source, text, begins_cut, ends_cut))
            return
        self._flooded.add(account)

    def call(self, work: Callable[[], None]) -> Future[None]:
        """Run something on the writer's thread, after all lines that are queued now."""
        done: Future[None] = Future()
        if self._thread.is_alive():
            self._queue.put((work, done))
        else:
            self._work(work, done)
        return done

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
        lines: list[Line] = []
        for item in chain([first], self._waiting(BATCH)):
            if isinstance(item, Line):
                lines.append(item)
            else:
                self._write(lines)
                lines = []
                if item is None:
                    return True
                self._work(*item)
        self._write(lines)
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

    def _write(self, lines: list[Line]) -> None:
        by_account: dict[Account, list[Line]] = {}
        for line in lines:
            by_account.setdefault(line.channel.account, []).append(line)
        for account, group in by_account.items():
            self._append(account, group)
            account.written += len(group)

    def _append(self, account: Account, lines: list[Line], *, final: bool = False) -> None:
        """Add lines to an app's log, after an entry that tells of dropped ones."""
        app_log = account.log
        first = 0
        entries: list[Entry] = []
        try:
            app_log.load()
            entries = self._marker(account, final=final)
            first = app_log.next
            start = first + len(entries)
            entries += [_entry(start + number, line) for number, line in enumerate(lines)]
            app_log.append(entries)
        except Exception as fault:
            kept = entries[: app_log.next - first] if first else []
            account.marked += sum(entry.dropped for entry in kept)
            account.dropped += len(lines) - sum(not entry.dropped for entry in kept)
            self._flooded.add(account)
            if app_log not in self._failing:
                self._failing.add(app_log)
                log.exception(
                    "an app's log cannot be written", exc_info=fault,
                    extra={"action": "logs.write_failed", "directory": app_log.directory},
                )  # fmt: skip
            return
        self._failing.discard(app_log)
        account.marked += sum(entry.dropped for entry in entries)
        if self._echo is not None and not app_log.ended:
            for entry in entries:
                self._echo(app_log, entry)

    def _marker(self, account: Account, *, final: bool) -> list[Entry]:
        """Return the entry that tells of dropped lines, once the window in which they came is over."""
        dropped = account.dropped - account.marked
        if not dropped or (account.flooding and not final):
            return []
        self._flooded.discard(account)
        text = f"{dropped} lines dropped: the app logs faster than its log is kept"
        now = time.time_ns() // 1000
        return [Entry(account.log.next, now, logging.WARNING, "", "node", text, dropped)]

    def _tidy(self, *, final: bool) -> None:
        try:
            for account in list(self._flooded):
                if final or not account.flooding:
                    self._append(account, [], final=final)
            self.idle_work()
        except Exception:
            log.exception("tidying failed", extra={"action": "logs.tidy_failed"})


def _entry(cursor: int, line: Line) -> Entry:
    text = line.channel.mask(line.text, begins_cut=line.begins_cut, ends_cut=line.ends_cut)
    instance = line.channel.instance.rpartition("/")[2]
    return Entry(cursor, int(line.time * 1e6), line.level, instance, line.source[:200], storable(text))

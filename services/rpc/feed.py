"""A watchable map: the newest value per key, ordered by revision.

A reader holds nothing but a position, so a slow one costs no memory, never delays a writer, and gets
the newest value of each key it missed. Deleted keys stay as tombstones, up to a bound.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import islice
from operator import attrgetter
from typing import Generic, TypeVar

from sortedcontainers import SortedDict, SortedKeyList

from services.rpc.errors import SupervisorError

V = TypeVar("V")

PAGE = 256
"""Entries read under the lock at once: bounds how long a reader can hold up the writer."""


FIRST_PAGE = 64
"""Entries read first by those who mostly stop early: a page of a list with its default size."""


@dataclass(frozen=True, slots=True)
class Entry(Generic[V]):
    """The newest state of one key: its value, or None once deleted, as of `revision`."""

    key: str
    revision: int
    value: V | None


class Signal(Enum):
    """What a watch tells beside entries."""

    SYNCED = auto()
    IDLE = auto()


@dataclass(frozen=True, slots=True)
class Mark:
    """The reader is complete up to `revision`: after the snapshot (SYNCED) or while idle (IDLE)."""

    signal: Signal
    revision: int


class ChangeFeed(Generic[V]):
    """Newest value per key with its revision. Every method may be called from any thread."""

    def __init__(
        self,
        *,
        revision: int = 0,
        oldest_revision: int = 0,
        tombstones: int = 100_000,
        entry: Callable[[str, int, V | None], Entry[V]] = Entry,
    ) -> None:
        """`entry` makes the entry of a key, a revision and a value."""
        self._entry = entry
        self._lock = threading.Lock()
        self._entries: SortedDict[str, Entry[V]] = SortedDict()
        self._order: SortedKeyList[Entry[V]] = SortedKeyList(key=attrgetter("revision"))
        self._dead: dict[str, Entry[V]] = {}
        self._graves: deque[Entry[V]] = deque()
        self._max_tombstones = tombstones
        self._revision = revision
        self._oldest = oldest_revision
        self._waiters: dict[asyncio.AbstractEventLoop, dict[asyncio.Future[None], None]] = {}
        self._closed = False

    @property
    def revision(self) -> int:
        """The revision up to which the feed is complete."""
        return self._revision

    @property
    def oldest_revision(self) -> int:
        """The oldest position a reader can resume after."""
        return self._oldest

    @property
    def closed(self) -> bool:
        """Whether every watch has been told to end."""
        return self._closed

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> V | None:
        """Return the value of a key, or None."""
        entry = self._entries.get(key)
        return None if entry is None else entry.value

    def entry(self, key: str) -> Entry[V] | None:
        """Return the entry of a living key, or None."""
        entry: Entry[V] | None = self._entries.get(key)
        return entry

    def was_deleted(self, key: str) -> bool:
        """Tell whether a key's deletion is remembered."""
        return key in self._dead

    def publish(self, revision: int, changes: Iterable[tuple[str, V | None]]) -> None:
        """Set or delete (None) keys as of `revision`, which must not fall, and wake the readers."""
        with self._lock:
            for key, value in changes:
                self._put(self._entry(key, revision, value), living=value is not None)
            self._revision = max(self._revision, revision)
            waiting = bool(self._waiters)
        if waiting:
            self._wake_all()

    def advance(self, revision: int) -> None:
        """Complete the feed up to `revision` without a change; nobody is woken: there is nothing to read."""
        with self._lock:
            self._revision = max(self._revision, revision)

    def fill(self, entries: Sequence[tuple[int, str, V | None]]) -> None:
        """Take in keys that the feed doesn't have, each with its revision, in order of that; wakes nobody.

        Many at once cost a third of as many that are published one after the other.
        """
        with self._lock:
            living = [self._entry(key, at, value) for at, key, value in entries if value is not None]
            self._entries.update((entry.key, entry) for entry in living)
            self._order.update(living)
            for at, key, value in entries:
                if value is None:
                    self._put(self._entry(key, at, value), living=False)

    def close(self) -> None:
        """End every watch, with SupervisorError SHUTTING_DOWN, so that a shutdown need not wait for them."""
        self._closed = True
        self._wake_all()

    def _wake_all(self) -> None:
        with self._lock:
            waiters, self._waiters = self._waiters, {}
        for loop, those in waiters.items():
            try:
                loop.call_soon_threadsafe(_wake, those)
            except RuntimeError:
                continue  # the loop has closed; its readers are gone with it

    def _put(self, entry: Entry[V], *, living: bool) -> None:
        old = self._entries.get(entry.key) or self._dead.pop(entry.key, None)
        if old is not None:
            self._order.remove(old)
        if living:
            self._entries[entry.key] = entry
            self._order.add(entry)
            return
        self._entries.pop(entry.key, None)
        self._dead[entry.key] = entry
        self._order.add(entry)
        self._graves.append(entry)
        while len(self._graves) > self._max_tombstones:
            grave = self._graves.popleft()
            self._oldest = max(self._oldest, grave.revision)
            if self._dead.get(grave.key) is grave:
                del self._dead[grave.key]
                self._order.remove(grave)

    def since(self, revision: int, limit: int = PAGE) -> list[Entry[V]]:
        """Return up to `limit` entries changed after `revision`, oldest first, never splitting one.

        A revision's entries are returned together, so the last one's revision is a safe position.
        """
        with self._lock:
            tail = self._order.irange_key(min_key=revision + 1)
            page: list[Entry[V]] = list(islice(tail, limit))
            for entry in tail if page else ():
                if entry.revision != page[-1].revision:
                    break
                page.append(entry)
            return page

    def page(self, after_key: str, limit: int = PAGE) -> list[Entry[V]]:
        """Return up to `limit` living entries whose keys follow `after_key`, by key."""
        with self._lock:
            keys = islice(self._entries.irange(minimum=after_key, inclusive=(False, True)), limit)
            return [self._entries[key] for key in keys]

    def values(self, after_key: str = "") -> Iterator[V]:
        """Yield the living values whose keys follow `after_key`, by key; changes may come in between."""
        for page in self._pages(after_key):
            for entry in page:
                value = entry.value
                if value is not None:
                    yield value

    def entries(self, after_key: str = "") -> Iterator[Entry[V]]:
        """Yield the living entries whose keys follow `after_key`, by key; changes may come in between."""
        for page in self._pages(after_key):
            yield from page

    def _pages(self, after_key: str) -> Iterator[list[Entry[V]]]:
        limit = FIRST_PAGE
        while page := self.page(after_key, limit):
            yield page
            after_key, limit = page[-1].key, PAGE

    async def wait(self, revision: int, timeout: float) -> bool:
        """Wait until something is published after `revision`; return whether the feed has passed it.

        Within `timeout` seconds; a revision that was only advanced to ends no wait. Safe to cancel.
        """
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._revision > revision or self._closed:
                return self._revision > revision
            waiter = loop.create_future()
            self._waiters.setdefault(loop, {})[waiter] = None
        # Each reader waits for each change: this costs less than half of what `asyncio.wait` does.
        timer = loop.call_later(timeout, _wake, (waiter,))
        try:
            await waiter
        finally:
            timer.cancel()
            with self._lock:
                waiting = self._waiters.get(loop, {})
                waiting.pop(waiter, None)
                if not waiting:
                    self._waiters.pop(loop, None)
        return self._revision > revision

    async def watch(self, resume_after: int | None, idle_seconds: float) -> AsyncIterator[Entry[V] | Mark]:
        """Yield a snapshot (or what changed after a position), SYNCED, changes, and IDLE marks.

        Raises SupervisorError RESUME_TOKEN_EXPIRED when `resume_after` is not covered, also in
        mid-stream when a reader fell further behind than the tombstones reach; SHUTTING_DOWN once closed.
        """
        if resume_after is None:
            position, key = self._revision, ""
            while page := self.page(key):
                for entry in page:
                    yield entry
                key = page[-1].key
                await asyncio.sleep(0)  # a reader that passes over all of it would hold the loop
        else:
            position = resume_after
            async for entry in self._drain(position):
                position = entry.revision
                yield entry
        yield Mark(Signal.SYNCED, position)
        clock = asyncio.get_running_loop().time
        told = clock()
        while True:
            await self.wait(position, max(0.0, told + idle_seconds - clock()))
            if self._closed:
                raise SupervisorError("SHUTTING_DOWN", "The server is shutting down; try again.")
            target = self._revision
            async for entry in self._drain(position):
                position = entry.revision
                yield entry
                told = clock()
            position = max(position, target)
            # Revisions that change nothing here move the position all the same, and it is told.
            if clock() >= told + idle_seconds:
                yield Mark(Signal.IDLE, position)
                told = clock()

    async def _drain(self, position: int) -> AsyncIterator[Entry[V]]:
        while True:
            page = self.since(position)
            # Looked at only now: a deletion that was forgotten before the page was taken is missing from it.
            if position < self._oldest or position > self._revision:
                raise SupervisorError(
                    "RESUME_TOKEN_EXPIRED",
                    "The change log no longer covers this position; start again without a token.",
                    metadata={"oldest_revision": str(self._oldest)},
                )
            if not page:
                return
            for entry in page:
                yield entry
            position = page[-1].revision
            if len(page) >= PAGE:
                await asyncio.sleep(0)  # as above; most often, though, a page is one change


def _wake(waiters: Iterable[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)

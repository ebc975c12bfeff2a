"""TailLogs: turns what is kept of an app's log into a stream that can be resumed. Free of gRPC."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from appsupervisor.runtime.v1.runtime_environment_pb2 import LogEntry, TailLogsRequest, TailLogsResponse
from runtime_node.logs.app_logs import AppLogs
from runtime_node.logs.entries import Entry
from runtime_node.logs.files import AppLog, LogReader
from runtime_node.rules import check_tail
from services.rpc.errors import Code, SupervisorError

T = TypeVar("T")

BOOKMARK_SECONDS = 2.0
"""Silence after which a follower is told that nothing has come."""

MESSAGE_BYTES = 256 << 10
"""Text of one message: a client takes 4 MiB at most."""

READERS = 4
"""Threads that read files for all streams."""

_LEVELS = sorted(LogEntry.Level.values())[1:]


class Tails:
    """The streams of one node. Belongs to the control loop."""

    def __init__(
        self,
        logs: AppLogs,
        newest_uid: Callable[[str], str],
        is_here: Callable[[str], bool],
    ) -> None:
        """`newest_uid` of an app that has instances here, else ""; `is_here` tells of an instance."""
        self._logs = logs
        self._newest_uid = newest_uid
        self._is_here = is_here
        self._streams: set[asyncio.Event] = set()
        self._closed = False
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="log-reader")

    def close(self) -> None:
        """End every stream with NODE_DRAINING, once it has told all there is."""
        self._closed = True
        self.look()

    def look(self) -> None:
        """Let every stream look again: an instance has gone."""
        for woken in self._streams:
            woken.set()

    async def tail(self, request: TailLogsRequest) -> AsyncIterator[TailLogsResponse]:
        """Carry out TailLogs; see there for the errors."""
        app, after = check_tail(request)
        uid = request.app_uid or self._newest_uid(app)
        if not uid:
            uid = await self._in_thread(lambda: self._logs.newest_uid(app))
        known = bool(uid) and (
            uid == self._newest_uid(app) or await self._in_thread(lambda: self._logs.has_log(app, uid))
        )
        if not known:
            raise SupervisorError(
                "APP_NOT_FOUND", f"apps/{app} has neither an instance nor logs on this node.",
                resource=f"apps/{app}",
            )  # fmt: skip
        woken = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(woken.set)

        log = await self._logs.open_log(app, uid, wake)
        self._streams.add(woken)
        stream = _Stream(log, request, after)
        try:
            async for message in self._messages(stream, request, woken):
                yield message
        finally:
            self._streams.discard(woken)
            self._logs.close_log(app, uid, wake)
            self._readers.submit(stream.close)

    async def _messages(
        self, stream: _Stream, request: TailLogsRequest, woken: asyncio.Event
    ) -> AsyncIterator[TailLogsResponse]:
        for message in stream.begin():
            yield message
        if request.HasField("tail_line_count"):
            for message in await self._in_thread(lambda: [*stream.newest(request.tail_line_count)]):
                yield message
        synced = False
        while True:
            woken.clear()
            # Asked before reading: what an instance said last is on the disk when it is gone.
            over = stream.log.ended or self._closed or self._is_gone(request)
            if over:
                await self._logs.written()
            while messages := await self._in_thread(lambda: [*stream.more()]):
                for message in messages:
                    yield message
            if not synced:
                synced = True
                yield stream.message(TailLogsResponse.SYNCED)
            if not request.follow:
                return
            if over:
                if self._closed:
                    raise SupervisorError(
                        "NODE_DRAINING", "The node is shutting down.", code=Code.UNAVAILABLE
                    )
                return
            try:
                async with asyncio.timeout(BOOKMARK_SECONDS):
                    await woken.wait()
            except TimeoutError:
                yield stream.message(TailLogsResponse.BOOKMARK)

    def _is_gone(self, request: TailLogsRequest) -> bool:
        return bool(request.instance) and not self._is_here(request.instance)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, work)


class _Stream:
    """One reader: what it wants and where it is. All but `begin` and `message` block on the disk."""

    def __init__(self, log: AppLog, request: TailLogsRequest, after: tuple[str, int] | None) -> None:
        self.log = log
        self._app = request.name
        self._instance = request.instance.rpartition("/")[2]
        self._least = request.min_level
        self._since = request.start_time.ToMicroseconds() if request.HasField("start_time") else 0
        self._after = after
        same = after is not None and after[0] == log.id and after[1] < log.next
        self._lost_its_place = after is not None and not same
        start = after[1] if after is not None and same else log.oldest - 1
        self._told = start
        self._reader = LogReader(log, start)
        self._born = log.next
        self._lost = log.told
        """Of the lines that could not be written, how many it was told of."""
        self._ahead = 0
        """Of those, how many before their entry was written."""

    def begin(self) -> list[TailLogsResponse]:
        """Return what is to be said first: that the point to resume after is of another log."""
        return [self.message(TailLogsResponse.GAP)] if self._lost_its_place else []

    def newest(self, count: int) -> list[TailLogsResponse]:
        """Return the newest entries of those there are."""
        kept: deque[Entry] = deque(maxlen=count)
        while entries := self._reader.read():
            kept.extend(entry for entry in entries if self._matches(entry))
        self._told = self._reader.cursor
        return [*self._packed(kept)]

    def more(self) -> list[TailLogsResponse]:
        """Return messages with the next entries; none at the end of the log."""
        lost = self.log.lost  # before reading: what was written meanwhile came after it
        while entries := self._reader.read():
            lost = self.log.lost
            messages: list[TailLogsResponse] = []
            if entries[0].cursor > self._told + 1:
                # Within a file entries follow each other, unless a line was spoilt: that is a gap, too.
                gap = self.message(TailLogsResponse.GAP, entries[0].cursor - 1)
                gap.dropped_count = entries[0].cursor - self._told - 1
                messages.append(gap)
            self._told = entries[-1].cursor
            messages += self._packed(
                e for e in map(self._untold, entries) if e is not None and self._matches(e)
            )
            if messages:
                return messages
        return self._unwritten(lost)

    def _unwritten(self, lost: int) -> list[TailLogsResponse]:
        """Tell of lines behind the last entry which the disk does not take."""
        lines, self._lost = lost - self._lost, max(lost, self._lost)
        if lines <= 0:
            return []
        self._ahead += lines
        gap = self.message(TailLogsResponse.GAP)
        gap.dropped_count = lines
        return [gap]

    def _untold(self, entry: Entry) -> Entry | None:
        """Return the entry without what a GAP has told already; None if that is all."""
        if not entry.tells_unwritten or entry.cursor < self._born:
            return entry
        known = min(self._ahead, entry.dropped)
        self._ahead -= known
        self._lost += entry.dropped - known
        return entry._replace(dropped=entry.dropped - known) if known < entry.dropped else None

    def close(self) -> None:
        """Release the file."""
        self._reader.close()

    def message(self, kind: TailLogsResponse.Type.ValueType, cursor: int | None = None) -> TailLogsResponse:
        """Return a message that is resumed after `cursor`, or after all that was told."""
        at = self._told if cursor is None else cursor
        return TailLogsResponse(type=kind, resume_token=f"{self.log.id}.{at}" if self.log.id else "")

    def _matches(self, entry: Entry) -> bool:
        if entry.time < self._since:
            return False
        if entry.dropped:
            return True
        return entry.level >= self._least and self._instance in ("", entry.instance)

    def _packed(self, entries: Iterable[Entry]) -> Iterable[TailLogsResponse]:
        message, size = None, 0
        for entry in entries:
            if message is None or size > MESSAGE_BYTES:
                if message is not None:
                    yield message
                message, size = self.message(TailLogsResponse.ENTRIES), 0
            message.entries.append(_entry(entry, self._app))
            message.resume_token = f"{self.log.id}.{entry.cursor}"
            size += len(entry.text) + 100
        if message is not None:
            yield message


def _entry(entry: Entry, app: str) -> LogEntry:
    when = Timestamp()
    when.FromMicroseconds(entry.time)
    level = max((level for level in _LEVELS if level <= entry.level), default=LogEntry.VERBOSE)
    return LogEntry(
        cursor=entry.cursor,
        log_time=when,
        level=level,
        instance=f"{app}/instances/{entry.instance}" if entry.instance else "",
        source=entry.source,
        text=entry.text,
        dropped_count=entry.dropped,
    )

"""The logs of a fake node's apps: lists in memory, told as TailLogs tells files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from runtime_node import rules
from services.rpc.errors import SupervisorError

BOOKMARK_SECONDS = 0.2
LOG_ID = "0000cafe"


@dataclass
class FakeLogs:
    """Entries by app uid. `newest_uid` of an app that has instances here, or ""; `is_here` of an instance."""

    newest_uid: Callable[[str], str]
    is_here: Callable[[str], bool]
    entries: dict[str, list[pb.LogEntry]] = field(default_factory=dict)
    open_streams: int = 0
    forgotten: dict[str, int] = field(default_factory=dict)
    """How many of the oldest entries are not kept any more, by uid."""

    def __post_init__(self) -> None:
        self._changed = asyncio.Event()

    def add(self, instance: str, uid: str, text: str, level: pb.LogEntry.Level.ValueType) -> None:
        """Let an instance log a line."""
        log = self.entries.setdefault(uid, [])
        entry = pb.LogEntry(cursor=len(log) + 1, instance=instance, level=level, text=text, source="stdout")
        entry.log_time.GetCurrentTime()
        log.append(entry)
        self.look()

    def look(self) -> None:
        """Let every stream look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def tail(self, request: pb.TailLogsRequest) -> AsyncIterator[pb.TailLogsResponse]:
        """TailLogs."""
        app, after = rules.check_tail(request)
        uid = request.app_uid or self.newest_uid(app)
        if uid not in self.entries and (not uid or uid != self.newest_uid(app)):
            raise SupervisorError("APP_NOT_FOUND", "It has neither an instance nor logs here.")
        kind = pb.TailLogsResponse
        oldest = self.forgotten.get(uid, 0)
        told = oldest
        if after is not None and after[0] == LOG_ID:
            told = after[1]
            if told < oldest:
                yield kind(type=kind.GAP, dropped_count=oldest - told, resume_token=f"{LOG_ID}.{oldest}")
                told = oldest
        elif after is not None:
            yield kind(type=kind.GAP, resume_token=f"{LOG_ID}.{told}")
        if request.HasField("tail_line_count"):
            kept = [e for e in self.entries.get(uid, []) if e.cursor > told and _matches(e, request)]
            kept = kept[-request.tail_line_count :] if request.tail_line_count else []
            told = kept[0].cursor - 1 if kept else len(self.entries.get(uid, []))
        synced = False
        self.open_streams += 1
        try:
            while True:
                changed = self._changed
                over = uid not in self.entries and synced
                over = over or bool(request.instance and not self.is_here(request.instance))
                fresh = [e for e in self.entries.get(uid, []) if e.cursor > told]
                if fresh:
                    told = fresh[-1].cursor
                    fresh = [entry for entry in fresh if _matches(entry, request)]
                if fresh:
                    yield kind(type=kind.ENTRIES, entries=fresh, resume_token=f"{LOG_ID}.{told}")
                if not synced:
                    synced = True
                    yield kind(type=kind.SYNCED, resume_token=f"{LOG_ID}.{told}")
                if over or not request.follow:
                    return
                try:
                    async with asyncio.timeout(BOOKMARK_SECONDS):
                        await changed.wait()
                except TimeoutError:
                    yield kind(type=kind.BOOKMARK, resume_token=f"{LOG_ID}.{told}")
        finally:
            self.open_streams -= 1


def _matches(entry: pb.LogEntry, request: pb.TailLogsRequest) -> bool:
    if (
        request.HasField("start_time")
        and entry.log_time.ToMicroseconds() < request.start_time.ToMicroseconds()
    ):
        return False
    return entry.level >= request.min_level and request.instance in ("", entry.instance)

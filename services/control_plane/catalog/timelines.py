"""The timelines of apps: a page of one, newest first, or a stream of one or of all, as events come.

All is read from the database; the feed of apps only tells when there may be something new.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from services.control_plane.catalog.changes import app_not_found
from services.control_plane.catalog.pages import fitting, request_digest
from services.control_plane.catalog.positions import event_position_of, event_token_at
from services.control_plane.catalog.watches import BOOKMARK_SECONDS, OpenWatches
from services.control_plane.rules.filters import Filter, compile_event_filter
from services.control_plane.rules.names import WILDCARD, app_name, parse_app_name
from services.control_plane.rules.paging import decode_page_token, encode_page_token, page_size
from services.control_plane.store.errors import unavailable
from services.control_plane.store.interface import CatalogStore
from services.control_plane.store.records import EVENTS_PER_COMMAND, event_number, last_event_number
from services.rpc.errors import SupervisorError, Violation, invalid_fields, time_is_up
from services.rpc.pipeline.call import Caller

READERS = 4
"""Threads that read timelines from the database."""

READ_SECONDS = 10.0
"""How long a stream waits for one read before it says that the catalog cannot be read."""

PAUSE_SECONDS = 0.05
"""Between two reads of one stream: what comes meanwhile is read together, however busy the catalog is."""

PAGE = 256
"""Events that a stream holds at once, some 4 MiB if each has the longest traceback."""

MAX_TAIL = 1_000
LOOKED_THROUGH = 10_000
"""The newest events among which a stream of all apps looks for those to begin with."""

T = TypeVar("T")


class AppTimelines:
    """Answers what is asked about events."""

    def __init__(self, store: CatalogStore) -> None:
        self._store = store
        self._feed = store.mirror.apps
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="catalog-read")
        self.watches = OpenWatches()

    async def list_events(self, request: pb.ListAppEventsRequest, caller: Caller) -> pb.ListAppEventsResponse:
        """Carry out ListAppEvents. The timeline of a deleted app can still be read."""
        name = app_name(parse_app_name(request.parent, "parent"))
        size = page_size(request.page_size)
        digest = request_digest(name)
        before = str(decode_page_token(request.page_token, digest)[0]) if request.page_token else ""
        try:
            events = await self._read(lambda: self._store.events(name, size + 1, before), caller.timeout)
        except TimeoutError as late:
            raise time_is_up("the catalog was read") from late
        if not events and not before and self._feed.get(name) is None:
            raise app_not_found(name)
        size = fitting(events[:size], pb.AppEvent.ByteSize)
        response = pb.ListAppEventsResponse(app_events=events[:size])
        if len(events) > size:
            last = events[size - 1].name.rpartition("/")[2]
            response.next_page_token = encode_page_token((last,), digest)
        return response

    def watch(self, request: pb.WatchAppEventsRequest) -> AsyncGenerator[pb.WatchAppEventsResponse, None]:
        """Carry out WatchAppEvents; see there for the errors."""
        return self.watches.counted(self._watch(request))

    async def _watch(
        self, request: pb.WatchAppEventsRequest
    ) -> AsyncGenerator[pb.WatchAppEventsResponse, None]:
        app = _checked_parent(request)
        matches = compile_event_filter(request.filter)
        digest = request_digest("events", request.parent, request.filter)
        app = app or matches.exact_name or ""
        if request.resume_token:
            position = await event_position_of(self._store, request.resume_token, digest)
        else:
            position = last_event_number(self._feed.revision)
            for event in await self._tail(app, matches, request.tail_count, position):
                yield pb.WatchAppEventsResponse(type=pb.WatchAppEventsResponse.EVENT, app_event=event)
        synced, told = False, time.monotonic()
        while True:
            # Not beyond what this replica knows: a token must not name what it couldn't resume after.
            target = last_event_number(self._feed.revision)
            while position < target:
                page = await self._page(app, position, target)
                position = event_number(page[-1]) if len(page) == PAGE else target
                for event in page:
                    if matches(event):
                        token = event_token_at(self._store, event_number(event), digest)
                        yield pb.WatchAppEventsResponse(
                            type=pb.WatchAppEventsResponse.EVENT, app_event=event, resume_token=token
                        )
                        told = time.monotonic()
            now = time.monotonic()
            if not synced or now >= told + BOOKMARK_SECONDS:
                kind = pb.WatchAppEventsResponse.BOOKMARK if synced else pb.WatchAppEventsResponse.SYNCED
                token = event_token_at(self._store, position, digest)
                yield pb.WatchAppEventsResponse(type=kind, resume_token=token)
                synced, told = True, now
            await self._feed.wait(position // EVENTS_PER_COMMAND, told + BOOKMARK_SECONDS - now)
            if self._feed.closed:
                raise SupervisorError("SHUTTING_DOWN", "The server is shutting down; try again.")
            await asyncio.sleep(PAUSE_SECONDS)

    async def _page(self, app: str, position: int, target: int) -> list[pb.AppEvent]:
        return await self._soon(lambda: self._store.events_after(position, target, PAGE, app))

    async def _tail(self, app: str, matches: Filter, count: int, up_to: int) -> list[pb.AppEvent]:
        """Return the newest `count` events that match, oldest first, none with a number above `up_to`."""
        found: list[pb.AppEvent] = []
        before, left = f"{up_to + 1:016x}", LOOKED_THROUGH
        while len(found) < count and left > 0:
            page = await self._soon(lambda before=before: self._store.events(app, PAGE, before))  # type: ignore[misc]
            found += [event for event in page if matches(event)]
            left -= len(page)
            if len(page) < PAGE:
                break
            before = page[-1].name.rpartition("/")[2]
        return found[:count][::-1]

    async def _soon(self, read: Callable[[], T]) -> T:
        try:
            return await self._read(read, READ_SECONDS)
        except TimeoutError as late:
            raise unavailable() from late

    async def _read(self, read: Callable[[], T], timeout: float) -> T:
        """Read from the database, on one of a few threads of its own: it may hang, and others be answered."""
        reading = asyncio.get_running_loop().run_in_executor(self._readers, read)
        return await asyncio.wait_for(reading, timeout)


def _checked_parent(request: pb.WatchAppEventsRequest) -> str:
    """Return the one app that is asked for, "" for all. Raises SupervisorError INVALID_FIELD."""
    app_id = parse_app_name(request.parent, "parent", wildcard=True)
    violations = []
    if not 0 <= request.tail_count <= MAX_TAIL:
        violations.append(Violation("tail_count", f"must be 0 to {MAX_TAIL:,}"))
    if request.resume_token and request.tail_count:
        violations.append(Violation("tail_count", "cannot be given with a resume_token"))
    if violations:
        raise invalid_fields(violations)
    return "" if app_id == WILDCARD else app_name(app_id)

"""The questions about apps: one, a page, a stream. All are answered from the mirror."""

from __future__ import annotations

import heapq
import time
from collections.abc import AsyncGenerator, Iterator
from itertools import islice

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from services.control_plane.catalog.changes import app_not_found
from services.control_plane.catalog.code_changes import Figures
from services.control_plane.catalog.pages import fitting, page_end, page_start, request_digest
from services.control_plane.catalog.scans import Scans
from services.control_plane.catalog.watches import OpenWatches
from services.control_plane.catalog.watching import watched
from services.control_plane.rules.filters import Filter, compile_filter
from services.control_plane.rules.names import parse_app_name
from services.control_plane.rules.ordering import Order, compile_order
from services.control_plane.rules.paging import (
    Position,
    decode_page_token,
    encode_page_token,
    page_size,
)
from services.control_plane.store.interface import CatalogStore
from services.control_plane.store.records import AppRecord
from services.rpc.errors import invalid_field
from services.rpc.feed import Entry, Mark, Signal
from services.rpc.pipeline.call import Timed

_VIEWS = frozenset(pb.App.View.values())


class AppQueries:
    """Answers what is asked about apps."""

    def __init__(self, store: CatalogStore, figures: Figures) -> None:
        self._store = store
        self._figures = figures
        self._feed = store.mirror.apps
        self._scans = Scans()
        self.watches = OpenWatches()

    async def get(self, request: pb.GetAppRequest, caller: Timed) -> bytes:
        """Carry out GetApp; return a serialized App."""
        record = self._feed.get(request.name)
        if record is None:  # else its name is well formed
            parse_app_name(request.name, "name")
        full = is_full(request.view)
        if record is None:
            raise app_not_found(request.name)
        if not full:
            return record.wire
        (app,) = await self._figures.with_figures([record.public], caller.timeout / 2)
        return app.SerializeToString()

    async def list_apps(self, request: pb.ListAppsRequest, caller: Timed) -> bytes:
        """Carry out ListApps; return a serialized ListAppsResponse.

        Raises OPERATION_DEADLINE_EXCEEDED when the call's time is up first.
        """
        deadline = time.monotonic() + caller.timeout
        full = is_full(request.view)
        order = compile_order(request.order_by)
        matches = compile_filter(request.filter)
        digest = request_digest(request.filter, request.order_by)
        if order.is_default:
            count, after = page_start(request.page_size, request.page_token, digest)
            found = await self._first(matches, after, count + 1, deadline)
            records, token = page_end(found, count, lambda record: record.name, _bytes_of, digest)
        else:
            records, token = await self._ordered(matches, order, request, digest, deadline)
        if full:
            left = (deadline - time.monotonic()) / 2
            apps = await self._figures.with_figures([record.public for record in records], left)
            return pb.ListAppsResponse(apps=apps, next_page_token=token).SerializeToString()
        # Fields of a message may come in pieces: each app was serialized as an element once.
        rest = pb.ListAppsResponse(next_page_token=token).SerializeToString()
        return b"".join([*(record.list_item for record in records), rest])

    async def _first(self, matches: Filter, after: str, limit: int, deadline: float) -> list[AppRecord]:
        """Return the first apps by name that match, from the one that follows `after`."""
        if matches.matches_all:
            return list(islice(self._feed.values(after), limit))
        candidates = self._candidates(matches, after)
        return await self._scans.find(candidates, lambda record: matches(record.public), limit, deadline)

    async def _ordered(
        self, matches: Filter, order: Order, request: pb.ListAppsRequest, digest: str, deadline: float
    ) -> tuple[list[AppRecord], str]:
        count = page_size(request.page_size)
        after = decode_page_token(request.page_token, digest) if request.page_token else None
        page = _Smallest(count + 1, order)

        def look(record: AppRecord) -> bool:
            if matches(record.public):
                key = order.key(record.public)
                if after is None or order.follows(key, after):
                    page.add(key, record)
            return False

        await self._scans.find(self._candidates(matches, ""), look, None, deadline)
        pairs = page.sorted()
        count = fitting([record for _, record in pairs[:count]], _bytes_of)
        chosen = [record for _, record in pairs[:count]]
        return chosen, encode_page_token(pairs[count - 1][0], digest) if len(pairs) > count else ""

    def _candidates(self, matches: Filter, after: str) -> Iterator[AppRecord]:
        """Return the apps that can match, by name, from the one that follows `after`."""
        if matches.exact_name is None:
            return self._feed.values(after)
        record = self._feed.get(matches.exact_name)
        return iter([record] if record is not None and record.name > after else [])

    def watch(self, request: pb.WatchAppsRequest) -> AsyncGenerator[pb.WatchAppsResponse, None]:
        """Carry out WatchApps."""
        return self.watches.counted(self._watch(request))

    async def _watch(self, request: pb.WatchAppsRequest) -> AsyncGenerator[pb.WatchAppsResponse, None]:
        matches = compile_filter(request.filter)
        digest = request_digest(request.filter)
        view: _FilteredView | None = None

        def told(entry: Entry[AppRecord], resumed: bool) -> pb.WatchAppsResponse | None:
            nonlocal view
            if view is None and request.filter:
                view = _FilteredView(matches, resumed=resumed)
            return _message(entry, view)

        # A revision changes one app, so each message is a place to resume after.
        async for message in watched(
            self._store, self._feed, request.resume_token, digest, entry=told, mark=_mark
        ):
            yield message


def is_full(view: pb.App.View.ValueType) -> bool:
    """Tell whether a view has the figures, too. Raises SupervisorError INVALID_FIELD for an unknown one."""
    if view not in _VIEWS:
        known = ", ".join(word for word in pb.App.View.keys() if word != "VIEW_UNSPECIFIED")  # noqa: SIM118
        raise invalid_field("view", f"must be one of {known}")
    return view == pb.App.FULL


class _Smallest:
    """Keeps the first so many of what is added, in an order."""

    def __init__(self, limit: int, order: Order) -> None:
        self._limit = limit
        self._order = order
        self._pairs: list[tuple[Position, AppRecord]] = []

    def add(self, key: Position, record: AppRecord) -> None:
        """Add an app under its position."""
        self._pairs.append((key, record))
        if len(self._pairs) >= 4 * self._limit:
            self._pairs = self.sorted()

    def sorted(self) -> list[tuple[Position, AppRecord]]:
        """Return the first ones, in order."""
        return heapq.nsmallest(self._limit, self._pairs, key=lambda pair: self._order.sort_key(pair[0]))


def _bytes_of(record: AppRecord) -> int:
    return len(record.list_item)


def _mark(mark: Mark) -> pb.WatchAppsResponse:
    idle = mark.signal is Signal.IDLE
    kind = pb.WatchAppsResponse.BOOKMARK if idle else pb.WatchAppsResponse.SYNCED
    return pb.WatchAppsResponse(type=kind, revision=mark.revision)


class _FilteredView:
    """Which apps a reader with a filter has been told of: it is told of each that leaves, once."""

    def __init__(self, matches: Filter, *, resumed: bool) -> None:
        self._matches = matches
        self._shown: set[str] = set()
        # What a resumed reader was shown before is not known: it is told of every app that doesn't match.
        # Of removed ones nothing is kept: names that are used once would pile up.
        self._gone: set[str] | None = set() if resumed else None

    def shows(self, app: pb.App) -> bool:
        """Tell whether the reader sees the app, and take note."""
        if not self._matches(app):
            return False
        self._shown.add(app.name)
        if self._gone is not None:
            self._gone.discard(app.name)
        return True

    def loses(self, name: str, *, removed: bool) -> bool:
        """Tell whether the reader may know an app that it doesn't see now, or that is gone, and take note."""
        known = name in self._shown or (self._gone is not None and name not in self._gone)
        self._shown.discard(name)
        if self._gone is not None:
            (self._gone.discard if removed else self._gone.add)(name)
        return known


def _message(entry: Entry[AppRecord], view: _FilteredView | None) -> pb.WatchAppsResponse | None:
    """Return what to tell of a change; None if the reader never saw the app and need not now."""
    record = entry.value
    if record is not None and (view is None or view.shows(record.public)):
        message = pb.WatchAppsResponse(type=pb.WatchAppsResponse.UPSERT, revision=entry.revision)
        # Parsed right into its place: a snapshot of all apps would else make each of them twice.
        message.app.MergeFromString(record.wire)
        return message
    if view is not None and not view.loses(entry.key, removed=record is None):
        return None
    return pb.WatchAppsResponse(
        type=pb.WatchAppsResponse.REMOVE, app=pb.App(name=entry.key), revision=entry.revision
    )

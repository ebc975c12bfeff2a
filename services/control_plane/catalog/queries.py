"""The questions about apps: one, a page, a stream, a timeline. All but timelines come from the mirror."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from services.control_plane.catalog.commands import app_not_found
from services.control_plane.rules.filters import AppFilter, compile_filter
from services.control_plane.rules.names import app_name, parse_app_name
from services.control_plane.rules.ordering import compile_order
from services.control_plane.rules.paging import (
    decode_page_token,
    decode_resume_token,
    encode_page_token,
    encode_resume_token,
    page_size,
    request_digest,
    take_page,
)
from services.control_plane.store.interface import CatalogStore
from services.control_plane.store.records import AppRecord
from services.rpc.feed import Entry, Mark, Signal

BOOKMARK_SECONDS = 5.0
"""Silence after which a watcher is told that nothing has happened."""


class AppQueries:
    """Answers what is asked about apps."""

    def __init__(self, store: CatalogStore) -> None:
        self._store = store
        self._feed = store.mirror.apps

    def get(self, name: str) -> pb.App:
        """Carry out GetApp. The message returned is shared: it must not be modified."""
        name = app_name(parse_app_name(name, "name"))
        record = self._feed.get(name)
        if record is None:
            raise app_not_found(name)
        return record.public

    def list(self, request: pb.ListAppsRequest) -> pb.ListAppsResponse:
        """Carry out ListApps."""
        size = page_size(request.page_size)
        order = compile_order(request.order_by)
        matches = compile_filter(request.filter)
        digest = request_digest(request.filter, request.order_by)
        after = ""
        if order.is_default and (position := decode_page_token(request.page_token, digest)):
            after = str(position[0])
        page = take_page(
            self._matching(matches, after),
            size=size,
            token=request.page_token,
            digest=digest,
            values=order.values,
            key_of=order.key_of,
            is_sorted=order.is_default,
        )
        return pb.ListAppsResponse(apps=page.items, next_page_token=page.next_page_token)

    def _matching(self, matches: AppFilter, after: str) -> Iterator[pb.App]:
        """Yield the apps that match, by name, from the one that follows `after`."""
        if matches.exact_name is not None:
            record = self._feed.get(matches.exact_name)
            apps = iter([record.public] if record is not None else [])
        else:
            apps = (record.public for record in self._feed.values(after))
        return apps if matches.matches_all else filter(matches.matches, apps)

    async def watch(self, request: pb.WatchAppsRequest) -> AsyncIterator[pb.WatchAppsResponse]:
        """Carry out WatchApps."""
        matches = compile_filter(request.filter)
        catalog, digest = self._store.catalog_id, request_digest(request.filter)
        resume: int | None = None
        if request.resume_token:
            resume = decode_resume_token(request.resume_token, catalog, digest)
        # What a resumed reader was shown before is not known: it is told of every app that left.
        shown: set[str] | None = set() if request.filter and resume is None else None
        exact = resume is not None
        async for item in self._feed.watch(resume, BOOKMARK_SECONDS):
            message = _mark(item) if isinstance(item, Mark) else _message(item, matches, shown)
            if message is None:
                continue
            exact = exact or isinstance(item, Mark)
            if exact:  # a revision changes one app, so each message is a place to resume after
                message.resume_token = encode_resume_token(catalog, item.revision, digest)
            yield message

    def events(self, request: pb.ListAppEventsRequest) -> pb.ListAppEventsResponse:
        """Carry out ListAppEvents. The timeline of a deleted app can still be read."""
        name = app_name(parse_app_name(request.parent, "parent"))
        size = page_size(request.page_size)
        digest = request_digest(name)
        position = decode_page_token(request.page_token, digest)
        before = str(position[0]) if position else ""
        events = self._store.events(name, size + 1, before)
        if not events and not before and self._feed.get(name) is None:
            raise app_not_found(name)
        response = pb.ListAppEventsResponse(app_events=events[:size])
        if len(events) > size:
            last = events[size - 1].name.rpartition("/")[2]
            response.next_page_token = encode_page_token((last,), digest)
        return response


def _mark(mark: Mark) -> pb.WatchAppsResponse:
    idle = mark.signal is Signal.IDLE
    kind = pb.WatchAppsResponse.BOOKMARK if idle else pb.WatchAppsResponse.SYNCED
    return pb.WatchAppsResponse(type=kind, revision=mark.revision)


def _message(
    entry: Entry[AppRecord], matches: AppFilter, shown: set[str] | None
) -> pb.WatchAppsResponse | None:
    """Return what to tell of a change; None if the reader never saw the app and need not now."""
    app = entry.value.public if entry.value is not None else None
    if app is not None and matches(app):
        if shown is not None:
            shown.add(entry.key)
        return pb.WatchAppsResponse(type=pb.WatchAppsResponse.UPSERT, app=app, revision=entry.revision)
    if shown is not None:
        if entry.key not in shown:
            return None
        shown.discard(entry.key)
    return pb.WatchAppsResponse(
        type=pb.WatchAppsResponse.DELETE, app=pb.App(name=entry.key), revision=entry.revision
    )

"""TailAppLogs: the log of an app, read from the node that it is on, for as long as the app exists."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from appsupervisor.catalog.v1.app_catalog_pb2 import TailAppLogsRequest, TailAppLogsResponse
from appsupervisor.runtime.v1.runtime_environment_pb2 import LogEntry, TailLogsRequest, TailLogsResponse
from services.control_plane.nodes.pool import NodePool
from services.control_plane.rules.names import app_name, parse_app_name
from services.control_plane.store.mirror import Mirror
from services.control_plane.store.records import AppRecord, home_of
from services.rpc.errors import SupervisorError, Violation, invalid_fields

MAX_TAIL_LINES = 100_000

LOOK_SECONDS = 2.0
"""How often a stream without a node says that nothing has come."""


class AppTails:
    """Streams the logs of apps, at any replica."""

    def __init__(self, mirror: Mirror, nodes: NodePool) -> None:
        self._mirror = mirror
        self._nodes = nodes
        self._closed = asyncio.Event()
        self.streams = 0
        """Streams open now."""

    def close(self) -> None:
        """End every stream with SHUTTING_DOWN."""
        self._closed.set()

    async def tail(self, request: TailAppLogsRequest) -> AsyncIterator[TailAppLogsResponse]:
        """Carry out TailAppLogs; see there for the errors."""
        name = app_name(parse_app_name(request.name, "name"))
        _check(request, name)
        record = self._existing(name, "")
        wanted = _for_node(request, name, record.uid)
        self.streams += 1
        try:
            async for message in self._follow(name, record.uid, wanted):
                yield message
        finally:
            self.streams -= 1

    async def _follow(
        self, name: str, uid: str, wanted: TailLogsRequest
    ) -> AsyncIterator[TailAppLogsResponse]:
        """Read from one node after another: the app may be without one, or change it."""
        synced = False
        while True:
            record = self._existing(name, uid)
            node = self._node_of(name)
            moved = asyncio.create_task(self._moved(record, node), name=f"tail {name}")
            try:
                async with aclosing(self._from_node(record, node, wanted, moved)) as messages:
                    async for message in messages:
                        synced = synced or message.type == TailLogsResponse.SYNCED
                        yield _public(message)
                if moved.done():
                    continue
                if not synced:
                    synced = True
                    yield TailAppLogsResponse(
                        type=TailAppLogsResponse.SYNCED, resume_token=wanted.resume_token
                    )
                if not wanted.follow or (wanted.instance and node):
                    return
                # Nothing to read yet; or its data has gone from the node, and in a moment the app has, too.
                await asyncio.wait({moved}, timeout=LOOK_SECONDS)
            finally:
                moved.cancel()
                await asyncio.wait({moved})
            yield TailAppLogsResponse(type=TailAppLogsResponse.BOOKMARK, resume_token=wanted.resume_token)

    async def _from_node(
        self, record: AppRecord, node: str, wanted: TailLogsRequest, moved: asyncio.Task[None]
    ) -> AsyncGenerator[TailLogsResponse, None]:
        """Yield what the app's node tells, until it has no more or the app isn't there any longer.

        `wanted` is kept as what to ask the next node for. Without a node there is nothing to tell.
        """
        if not node:
            return
        async with self._nodes.client_of(node) as client, aclosing(client.tail_logs(wanted)) as messages:
            while True:
                step = asyncio.ensure_future(anext(messages))
                try:
                    await asyncio.wait({step, moved}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not step.done():
                        step.cancel()
                        await asyncio.wait({step})
                if step.cancelled():
                    return
                try:
                    message = step.result()
                except StopAsyncIteration:
                    return
                except SupervisorError as failure:
                    self._existing(record.name, record.uid)
                    if failure.reason == "APP_NOT_FOUND":
                        return  # it is placed there and has not been started yet
                    raise
                if message.resume_token:
                    wanted.resume_token = message.resume_token
                    wanted.ClearField("tail_line_count")
                yield message

    async def _moved(self, record: AppRecord, node: str) -> None:
        """Return once the app is gone or on another node, or the server shuts down."""
        feed = self._mirror.apps
        closed = asyncio.create_task(self._closed.wait())
        try:
            while not closed.done():
                position = feed.revision
                now = feed.get(record.name)
                if now is None or (now.uid, self._node_of(now.name)) != (record.uid, node):
                    return
                change = asyncio.create_task(feed.wait(position, LOOK_SECONDS))
                try:
                    await asyncio.wait({change, closed}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    change.cancel()
        finally:
            closed.cancel()

    def _node_of(self, app: str) -> str:
        return home_of(self._mirror.placements_of(app))

    def _existing(self, name: str, uid: str) -> AppRecord:
        if self._closed.is_set():
            raise SupervisorError("SHUTTING_DOWN", "The server is shutting down; try again.")
        record = self._mirror.apps.get(name)
        if record is None or (uid and record.uid != uid):
            raise SupervisorError("APP_NOT_FOUND", f"{name} does not exist.", resource=name)
        return record


def _check(request: TailAppLogsRequest, name: str) -> None:
    violations: list[Violation] = []
    if request.instance and not request.instance.startswith(f"{name}/instances/"):
        violations.append(Violation("instance", f"must be one of the app's: {name}/instances/{{instance}}"))
    if request.HasField("tail_line_count"):
        if not 0 <= request.tail_line_count <= MAX_TAIL_LINES:
            violations.append(Violation("tail_line_count", f"must be 0 to {MAX_TAIL_LINES:,}"))
        if request.resume_token:
            violations.append(Violation("tail_line_count", "must not be set with resume_token"))
    if request.min_level not in LogEntry.Level.values():
        violations.append(Violation("min_level", "must be one of its documented values"))
    if violations:
        raise invalid_fields(violations)


def _for_node(request: TailAppLogsRequest, name: str, uid: str) -> TailLogsRequest:
    wanted = TailLogsRequest(
        name=name,
        app_uid=uid,
        instance=request.instance,
        follow=request.follow,
        min_level=request.min_level,
        resume_token=request.resume_token,
    )
    if request.HasField("start_time"):
        wanted.start_time.CopyFrom(request.start_time)
    if request.HasField("tail_line_count"):
        wanted.tail_line_count = request.tail_line_count
    return wanted


def _public(message: TailLogsResponse) -> TailAppLogsResponse:
    return TailAppLogsResponse(
        # The values of both enums are the same.
        type=message.type,  # type: ignore[arg-type]
        entries=message.entries,
        dropped_count=message.dropped_count,
        resume_token=message.resume_token,
    )

"""TailAppLogs: the log of an app, read from the nodes that it is on, for as long as the app exists."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from appsupervisor.catalog.v1.app_catalog_pb2 import TailAppLogsRequest, TailAppLogsResponse
from appsupervisor.runtime.v1.runtime_environment_pb2 import LogEntry, TailLogsRequest, TailLogsResponse
from services.control_plane.nodes import tail_tokens
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
        tokens = tail_tokens.read(request.resume_token)
        self.streams += 1
        try:
            async for message in self._merged(record, request, tokens):
                yield message
        finally:
            self.streams -= 1

    async def _merged(
        self, record: AppRecord, request: TailAppLogsRequest, tokens: dict[int, str]
    ) -> AsyncIterator[TailAppLogsResponse]:
        """Read the logs of all replicas: what there is by time, then what comes as it comes."""
        logs: dict[int, _Log] = {}
        synced = False
        try:
            while True:
                for number in self._replicas_of(record.name):
                    if number not in logs:
                        wanted = _for_node(request, record, tokens.get(number, ""))
                        if synced:
                            wanted.ClearField("tail_line_count")  # it is new, all of it
                        logs[number] = _Log(self._patiently(record, wanted, number))
                replica = await _next_of(logs, synced=synced)
                message = logs[replica].take() if replica is not None else None
                if message is not None and replica is not None:
                    if message.resume_token:
                        tokens[replica] = message.resume_token
                    if message.type != TailLogsResponse.SYNCED:
                        yield _public(message, tail_tokens.written(tokens))
                if not synced and all(it.synced for it in logs.values()):
                    synced = True
                    token = tail_tokens.written(tokens)
                    yield TailAppLogsResponse(type=TailAppLogsResponse.SYNCED, resume_token=token)
                if all(it.ended for it in logs.values()):
                    return
        finally:
            for it in logs.values():
                await it.close()

    async def _patiently(
        self, record: AppRecord, wanted: TailLogsRequest, replica: int
    ) -> AsyncGenerator[TailLogsResponse, None]:
        """Read one replica's log; of several, a node that cannot be heard keeps nobody from the others'."""
        while True:
            try:
                async with aclosing(self._follow(record, wanted, replica)) as messages:
                    async for message in messages:
                        yield message
                return
            except SupervisorError as failure:
                if failure.reason != "NODE_UNREACHABLE" or len(self._replicas_of(record.name)) == 1:
                    raise
            yield TailLogsResponse(type=TailLogsResponse.GAP)
            yield TailLogsResponse(type=TailLogsResponse.SYNCED)
            if not wanted.follow:
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def _follow(
        self, record: AppRecord, wanted: TailLogsRequest, replica: int
    ) -> AsyncGenerator[TailLogsResponse, None]:
        """Read from one node after another: the replica may be without one, or change it."""
        synced = False
        while True:
            record = self._existing(record.name, record.uid)
            node = self._node_of(record.name, replica)
            moved = asyncio.create_task(self._moved(record, node, replica), name=f"tail {record.name}")
            try:
                async with aclosing(self._from_node(record, node, wanted, moved)) as messages:
                    async for message in messages:
                        synced = synced or message.type == TailLogsResponse.SYNCED
                        yield message
                if moved.done():
                    continue
                if not synced:
                    synced = True
                    yield TailLogsResponse(type=TailLogsResponse.SYNCED, resume_token=wanted.resume_token)
                if not wanted.follow or (wanted.instance and node):
                    return
                # Nothing to read yet; or its data has gone from the node, and in a moment the app has, too.
                await asyncio.wait({moved}, timeout=LOOK_SECONDS)
            finally:
                moved.cancel()
                await asyncio.wait({moved})
            yield TailLogsResponse(type=TailLogsResponse.BOOKMARK, resume_token=wanted.resume_token)

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

    async def _moved(self, record: AppRecord, node: str, replica: int) -> None:
        """Return once the app is gone, or the replica on another node, or the server shuts down."""
        feed = self._mirror.apps
        closed = asyncio.create_task(self._closed.wait())
        try:
            while not closed.done():
                position = feed.revision
                now = feed.get(record.name)
                if now is None or (now.uid, self._node_of(now.name, replica)) != (record.uid, node):
                    return
                change = asyncio.create_task(feed.wait(position, LOOK_SECONDS))
                try:
                    await asyncio.wait({change, closed}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    change.cancel()
        finally:
            closed.cancel()

    def _replicas_of(self, app: str) -> list[int]:
        """Return the numbers of the app's replicas; of an app that is nowhere yet, that of its first."""
        return sorted({it.replica for it in self._mirror.placements_of(app)}) or [0]

    def _node_of(self, app: str, replica: int) -> str:
        return home_of(it for it in self._mirror.placements_of(app) if it.replica == replica)

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


class _Log:
    """One replica's log: the message that is next, once it has come."""

    def __init__(self, messages: AsyncGenerator[TailLogsResponse, None]) -> None:
        self._messages = messages
        self._step: asyncio.Task[TailLogsResponse | None] | None = None
        self.synced = False
        self.ended = False

    def step(self) -> asyncio.Task[TailLogsResponse | None]:
        """Return the task whose result is the next message, None at the end."""
        if self._step is None:
            self._step = asyncio.create_task(self._advance())
        return self._step

    async def _advance(self) -> TailLogsResponse | None:
        return await anext(self._messages, None)

    def take(self) -> TailLogsResponse | None:
        """Return the message that has come, None at the end. Raises SupervisorError if the log broke off."""
        step, self._step = self.step(), None
        message = step.result()
        self.ended = message is None
        self.synced = self.synced or message is None or message.type == TailLogsResponse.SYNCED
        return message

    async def close(self) -> None:
        """End the reading."""
        if self._step is not None:
            self._step.cancel()
            await asyncio.wait({self._step})
        await self._messages.aclose()


async def _next_of(logs: dict[int, _Log], *, synced: bool) -> int | None:
    """Return a replica whose next message has come, until all are synced that with the oldest lines; or None.

    Waits a while at most, so that replicas that are new are looked for.
    """
    reading = {replica: log for replica, log in logs.items() if not log.ended and (synced or not log.synced)}
    steps = {replica: log.step() for replica, log in reading.items()}
    if not steps:
        return None
    when = asyncio.FIRST_COMPLETED if synced else asyncio.ALL_COMPLETED
    await asyncio.wait(steps.values(), timeout=LOOK_SECONDS, return_when=when)
    come = [replica for replica, step in steps.items() if step.done()]
    return min(come, key=lambda it: (_time_of(steps[it]), it), default=None)


def _time_of(step: asyncio.Task[TailLogsResponse | None]) -> int:
    message = step.result() if not step.cancelled() and step.exception() is None else None
    # What is no line waits for none.
    return message.entries[0].log_time.ToNanoseconds() if message is not None and message.entries else 0


def _for_node(request: TailAppLogsRequest, record: AppRecord, token: str) -> TailLogsRequest:
    wanted = TailLogsRequest(
        name=record.name,
        app_uid=record.uid,
        instance=request.instance,
        follow=request.follow,
        min_level=request.min_level,
        resume_token=token,
    )
    if request.HasField("start_time"):
        wanted.start_time.CopyFrom(request.start_time)
    if request.HasField("tail_line_count"):
        wanted.tail_line_count = request.tail_line_count
    return wanted


def _public(message: TailLogsResponse, token: str) -> TailAppLogsResponse:
    return TailAppLogsResponse(
        # The values of both enums are the same.
        type=message.type,  # type: ignore[arg-type]
        entries=message.entries,
        dropped_count=message.dropped_count,
        resume_token=token,
    )

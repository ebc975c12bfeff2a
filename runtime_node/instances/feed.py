"""What watchers of this node see: each instance's newest state, and heartbeats with changed figures.

The feed holds the living records, not copies: a reader that comes late describes them as they are then.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator

from google.protobuf.duration_pb2 import Duration

from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance as InstanceMessage
from appsupervisor.runtime.v1.runtime_environment_pb2 import (
    InstanceError,
    InstanceFigures,
    WatchInstancesResponse,
)
from appsupervisor.runtime.v1.runtime_environment_pb2 import Lease as LeaseMessage
from runtime_node.instances.record import Instance
from runtime_node.lease import Lease
from services.rpc.errors import Code, SupervisorError
from services.rpc.feed import ChangeFeed, Entry

MAX_OBITUARIES = 20_000
MAX_FIGURES = 5_000
"""Instances in one heartbeat, which must stay below the 4 MiB that a client takes."""

MAX_BATCH = 100
"""Instances in one message to a reader that takes several."""
MAX_BATCH_BYTES = 1024 * 1024
"""Their size, about: one with a traceback has 20 KB."""


def duration(span: float) -> Duration:
    """Return seconds as a Duration."""
    whole, rest = divmod(span, 1)
    return Duration(seconds=int(whole), nanos=int(rest * 1e9))


def lease_message(lease: Lease) -> LeaseMessage:
    """Return the node's lease as the API tells it."""
    message = LeaseMessage(term=lease.term, held=lease.held, alone=lease.alone)
    if message.held and not math.isinf(lease.remaining):
        message.remaining_duration.CopyFrom(duration(lease.remaining))
    return message


class InstanceFeed:
    """The log of changes of one incarnation. Written and read on the control loop alone."""

    def __init__(
        self,
        node: str,
        incarnation: str,
        clock: Callable[[], float] = time.monotonic,
        tombstones: int = 20_000,
    ) -> None:
        self.node = node
        self.incarnation = incarnation
        self.clock = clock
        self._feed: ChangeFeed[Instance] = ChangeFeed(tombstones=tombstones)
        self._obituaries: OrderedDict[str, InstanceError] = OrderedDict()
        self._figures: OrderedDict[str, tuple[int, InstanceFigures]] = OrderedDict()
        self._tick = 0
        self._memory_bytes = 0
        self._closed = False
        self.streams = 0
        """Streams open now."""
        self.last_stream_end = clock()
        """Monotonic time at which the last stream ended, or the feed began."""

    def changed(self, instance: Instance) -> None:
        """Tell watchers that an instance is new or changed."""
        self._obituaries.pop(instance.name, None)
        self._feed.publish(self._feed.revision + 1, [(instance.name, instance)])

    def gone(self, instance: Instance, why: InstanceError | None = None) -> None:
        """Tell watchers that an instance is gone; `why` unless it ended by command."""
        self._figures.pop(instance.name, None)
        if why is not None:
            self._obituaries[instance.name] = why
            while len(self._obituaries) > MAX_OBITUARIES:
                self._obituaries.popitem(last=False)
        self._feed.publish(self._feed.revision + 1, [(instance.name, None)])

    def used(self, memory_bytes: int) -> None:
        """Let each heartbeat tell the memory that the node uses, from now on."""
        self._memory_bytes = memory_bytes

    def measured(self, name: str, figures: InstanceFigures) -> None:
        """Let the next heartbeat of each watcher carry an instance's new figures."""
        self._tick += 1
        self._figures[name] = (self._tick, figures)
        self._figures.move_to_end(name)

    def unmeasured(self, name: str) -> None:
        """Drop an instance's figures: it does not run any more."""
        self._figures.pop(name, None)

    def close(self) -> None:
        """End every stream with NODE_DRAINING once it has told all that happened, and refuse new ones."""
        self._closed = True
        self._feed.publish(self._feed.revision + 1, [])

    async def watch(
        self, resume_token: str, heartbeat: float, *, batched: bool = False
    ) -> AsyncIterator[WatchInstancesResponse]:
        """Yield a snapshot (or what changed after a token), SYNCED, then changes and heartbeats.

        `batched`: one message may tell of many instances. Raises SupervisorError RESUME_TOKEN_EXPIRED,
        INVALID_RESUME_TOKEN, and NODE_DRAINING (UNAVAILABLE).
        """
        position = self._position(resume_token)
        self._refuse_if_closed()
        self.streams += 1
        try:
            async for message in self._stream(position, heartbeat, MAX_BATCH if batched else 1):
                yield message
        finally:
            self.streams -= 1
            self.last_stream_end = self.clock()

    async def _stream(
        self, resume: int | None, heartbeat: float, most: int
    ) -> AsyncIterator[WatchInstancesResponse]:
        told_figures = 0
        if resume is None:
            position, key = self._feed.revision, ""
            while page := self._feed.page(key):
                for message in self._entries(page, most):
                    message.sequence = position
                    message.resume_token = ""  # half a snapshot is nothing to resume after
                    yield message
                key = page[-1].key
        else:
            position = resume
            async for message in self._changes(position, most):
                position = message.sequence
                yield message
        yield self._message(WatchInstancesResponse.SYNCED, position)
        next_beat = self.clock() + heartbeat
        while True:
            await self._feed.wait(position, max(0.0, next_beat - self.clock()))
            target = self._feed.revision
            async for message in self._changes(position, most):
                position = message.sequence
                yield message
            position = max(position, target)
            if self.clock() >= next_beat:
                beat = self._message(WatchInstancesResponse.HEARTBEAT, position)
                beat.monotonic_time.CopyFrom(duration(self.clock()))
                beat.memory_bytes = self._memory_bytes
                told_figures = self._add_figures(beat, told_figures)
                yield beat
                next_beat = self.clock() + heartbeat
            if self._feed.revision == position:
                self._refuse_if_closed()

    async def _changes(self, position: int, most: int) -> AsyncIterator[WatchInstancesResponse]:
        while True:
            if position < self._feed.oldest_revision:
                raise self._expired()
            page = self._feed.since(position)
            if not page:
                return
            for message in self._entries(page, most):
                yield message
            position = page[-1].revision

    def _entries(self, page: Iterable[Entry[Instance]], most: int) -> Iterator[WatchInstancesResponse]:
        """Yield what a page tells, at most so many instances in one message."""
        group: list[InstanceMessage] = []
        size = position = 0
        for entry in page:
            living = entry.value
            if group and (living is None or len(group) == most or size > MAX_BATCH_BYTES):
                yield self._upsert(group, position)
                group, size = [], 0
            if living is None:
                yield self._removal(entry)
                continue
            group.append(living.describe(self.node, self.incarnation, figures=False))
            size += group[-1].ByteSize()
            position = entry.revision
        if group:
            yield self._upsert(group, position)

    def _upsert(self, group: list[InstanceMessage], position: int) -> WatchInstancesResponse:
        message = self._message(WatchInstancesResponse.UPSERT, position)
        if len(group) == 1:
            message.instance.CopyFrom(group[0])
        else:
            message.instances.extend(group)
        return message

    def _removal(self, entry: Entry[Instance]) -> WatchInstancesResponse:
        message = self._message(WatchInstancesResponse.REMOVE, entry.revision)
        message.instance.CopyFrom(
            InstanceMessage(name=entry.key, node=self.node, incarnation=self.incarnation)
        )
        why = self._obituaries.get(entry.key)
        if why is not None:
            message.instance.last_error.CopyFrom(why)
        return message

    def _message(self, kind: WatchInstancesResponse.Type.ValueType, sequence: int) -> WatchInstancesResponse:
        return WatchInstancesResponse(
            type=kind,
            sequence=sequence,
            incarnation=self.incarnation,
            resume_token=f"{self.incarnation}.{sequence}",
        )

    def _add_figures(self, beat: WatchInstancesResponse, told: int) -> int:
        changed: list[str] = []
        for name in reversed(self._figures):
            if self._figures[name][0] <= told:
                break
            changed.append(name)
        # The longest untold first: what does not fit comes with the next heartbeats.
        for name in reversed(changed[-MAX_FIGURES:]):
            told, figures = self._figures[name]
            beat.figures[name].CopyFrom(figures)
        return told

    def _position(self, token: str) -> int | None:
        if not token:
            return None
        incarnation, dot, number = token.rpartition(".")
        if not dot or not number.isascii() or not number.isdigit() or len(number) > 18:
            raise SupervisorError("INVALID_RESUME_TOKEN", "The resume token is not one of this node's.")
        if incarnation != self.incarnation or not (
            self._feed.oldest_revision <= int(number) <= self._feed.revision
        ):
            raise self._expired()
        return int(number)

    def _expired(self) -> SupervisorError:
        return SupervisorError(
            "RESUME_TOKEN_EXPIRED",
            "The token is of another life of this node or too old; start again without one.",
            metadata={
                "incarnation": self.incarnation,
                "oldest_sequence": str(self._feed.oldest_revision),
            },
        )

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise SupervisorError(
                "NODE_DRAINING", "The node is shutting down.", code=Code.UNAVAILABLE, resource=self.node
            )

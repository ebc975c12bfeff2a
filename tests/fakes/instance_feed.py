"""WatchInstances of a fake node: what it says of its instances, and from where a watcher goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from runtime_node import rules
from runtime_node.instances.feed import duration
from services.rpc.errors import Code, SupervisorError
from services.rpc.feed import ChangeFeed
from services.spec.scalars import seconds
from tests.fakes.instances import copy_of

if TYPE_CHECKING:
    from tests.fakes.runtime_node import FakeNode


class InstanceFeed:
    """Of one life of a node."""

    def __init__(self, node: FakeNode) -> None:
        self.node = node
        self.obituaries: dict[str, pb.InstanceError] = {}
        """By name of an instance that is gone: what ended it."""
        self._changes: ChangeFeed[pb.Instance] = ChangeFeed()

    def publish(self, instance: pb.Instance) -> None:
        """Tell how an instance is."""
        self._changes.publish(self._changes.revision + 1, [(instance.name, copy_of(instance))])

    def remove(self, name: str) -> None:
        """Tell that an instance is gone."""
        self._changes.publish(self._changes.revision + 1, [(name, None)])

    def look(self) -> None:
        """Have watchers look whether there is something to be said."""
        self._changes.publish(self._changes.revision + 1, [])

    async def watch(self, request: pb.WatchInstancesRequest) -> AsyncIterator[pb.WatchInstancesResponse]:
        """WatchInstances."""
        self.node.lease.heed(request.term)
        heartbeat = 1.0
        if request.HasField("heartbeat_interval"):
            rules.check_heartbeat(request.heartbeat_interval)
            heartbeat = seconds(request.heartbeat_interval)
        position = self._position(request.resume_token)
        if self.node.draining and not self.node.hosted:
            raise self._shut_down()
        kind = pb.WatchInstancesResponse
        if position is None:
            position = self._changes.revision
            entries = [entry.value for entry in self._changes.page("", 1_000_000) if entry.value is not None]
            most = 100 if request.batched else 1
            for first in range(0, len(entries), most):
                yield self._snapshot(entries[first : first + most], position)
            yield self._message(kind.SYNCED, position)
        else:
            for message in self._since(position):
                yield message
            position = self._changes.revision
            yield self._message(kind.SYNCED, position)
        next_beat = self.node.time() + heartbeat
        while True:
            await self._changes.wait(position, max(0.0, next_beat - self.node.time()))
            await self.node.voice.wait()
            target = self._changes.revision
            for message in self._since(position):
                yield message
            position = target
            if self.node.time() >= next_beat:
                beat = self._message(kind.HEARTBEAT, position)
                beat.monotonic_time.CopyFrom(duration(self.node.time()))
                beat.memory_bytes = self.node.used_memory_bytes
                for name, hosted in self.node.hosted.items():
                    if hosted.status.HasField("figures"):
                        beat.figures[name].CopyFrom(hosted.status.figures)
                yield beat
                next_beat = self.node.time() + heartbeat
            if self.node.draining and not self.node.hosted and position == self._changes.revision:
                raise self._shut_down()

    def _since(self, position: int) -> list[pb.WatchInstancesResponse]:
        kind = pb.WatchInstancesResponse
        messages = []
        for entry in self._changes.since(position, 1_000_000):
            if entry.value is not None:
                messages.append(self._message(kind.UPSERT, entry.revision, entry.value))
                continue
            gone = pb.Instance(name=entry.key, node=self.node.node, incarnation=self.node.incarnation)
            if entry.key in self.obituaries:
                gone.last_error.CopyFrom(self.obituaries[entry.key])
            messages.append(self._message(kind.REMOVE, entry.revision, gone))
        return messages

    def _message(
        self,
        kind: pb.WatchInstancesResponse.Type.ValueType,
        sequence: int,
        instance: pb.Instance | None = None,
        *,
        resumable: bool = True,
    ) -> pb.WatchInstancesResponse:
        message = pb.WatchInstancesResponse(
            type=kind,
            sequence=sequence,
            incarnation=self.node.incarnation,
            resume_token=f"{self.node.incarnation}.{sequence}" if resumable else "",
        )
        if instance is not None:
            message.instance.CopyFrom(instance)
            message.instance.ClearField("figures")
        return message

    def _snapshot(self, instances: list[pb.Instance], position: int) -> pb.WatchInstancesResponse:
        alone = instances[0] if len(instances) == 1 else None
        message = self._message(pb.WatchInstancesResponse.UPSERT, position, alone, resumable=False)
        if alone is None:
            message.instances.extend(instances)
            for instance in message.instances:
                instance.ClearField("figures")
        return message

    def _position(self, token: str) -> int | None:
        if not token:
            return None
        incarnation, _, number = token.rpartition(".")
        if not incarnation or not number.isdecimal():
            raise SupervisorError("INVALID_RESUME_TOKEN", "It is none of this node's.")
        if incarnation != self.node.incarnation or int(number) > self._changes.revision:
            raise SupervisorError("RESUME_TOKEN_EXPIRED", "It is of another life of this node.")
        return int(number)

    def _shut_down(self) -> SupervisorError:
        return SupervisorError("NODE_DRAINING", "The node is shutting down.", code=Code.UNAVAILABLE)

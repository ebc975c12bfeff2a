"""What a fake node keeps: what its apps do, what is on its disk, what is hosted."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass, field

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from runtime_node.instances.record import timestamp


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What an app does when it is started and stopped. Times in seconds."""

    ready_after: float | None = 0.0
    """None: never ready; it fails with APP_START_TIMEOUT once its start_timeout is over."""
    fails: tuple[str, str] | None = None
    """Reason and message of a start that fails instead, after `ready_after`."""
    stop_after: float = 0.0
    held: asyncio.Event | None = None
    """While it is not set, no start comes to its end, and a stop not before its limit."""


@dataclass
class Disk:
    """A node's data directory, which outlives the node's lives."""

    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    """The node's identity."""
    data: set[str] = field(default_factory=set)
    """Uids of the apps that have data here."""
    apps: dict[str, str] = field(default_factory=dict)
    """The id of the app that each of them is, or was."""
    left: set[str] = field(default_factory=set)
    """Uids of the apps that have gone to another node, and whose copies are here still."""
    ran: dict[str, list[str]] = field(default_factory=dict)
    """What is in the data of each app: the starts that have used it, as node and epoch."""
    stuck: dict[str, str] = field(default_factory=dict)
    """Uids of the apps whose data cannot be removed, each with the reason."""


@dataclass(slots=True)
class Hosted:
    """An instance that is here."""

    spec: pb.InstanceSpec
    status: pb.Instance
    task: asyncio.Task[None] | None = None
    last_request_id: str = ""
    tried: bool = False
    """It was started only to see that it can."""


def set_ready(status: pb.Instance, reason: str, message: str = "") -> None:
    """Set the condition that tells whether an instance is ready."""
    holds = pb.Condition.MET if status.state == pb.Instance.RUNNING else pb.Condition.UNMET
    old = status.conditions[0] if status.conditions else None
    since = old.last_transition_time if old is not None and old.status == holds else timestamp(time.time())
    condition = pb.Condition(
        type="Ready", status=holds, reason=reason, message=message, last_transition_time=since
    )
    del status.conditions[:]
    status.conditions.append(condition)


def copy_of(instance: pb.Instance) -> pb.Instance:
    """Return a copy."""
    copy = pb.Instance()
    copy.CopyFrom(instance)
    return copy


def copy_of_spec(spec: pb.InstanceSpec) -> pb.InstanceSpec:
    """Return a copy."""
    copy = pb.InstanceSpec()
    copy.CopyFrom(spec)
    return copy


def without_claim(spec: pb.InstanceSpec) -> pb.InstanceSpec:
    """Return a spec as it is compared: what a repeat may say otherwise is left out."""
    copy = copy_of_spec(spec)
    copy.ClearField("requires_existing_data")
    return copy

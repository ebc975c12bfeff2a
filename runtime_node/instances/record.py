"""What the node keeps of one instance. A dormant one is a handful of slots, and its spec as bytes that those
share which differ in name and version alone.

Everything that only a woken instance needs is in `Run`; what a past life left behind is in `History`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from google.protobuf.timestamp_pb2 import Timestamp

from appsupervisor.runtime.v1.runtime_environment_pb2 import (
    Condition,
    InstanceCode,
    InstanceError,
    InstanceFigures,
    InstanceSpec,
)
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance as InstanceMessage
from runtime_node.http.figures import GateFigures
from runtime_node.instances.block_history import BlockHistory
from runtime_node.instances.states import StateValue
from runtime_node.instances.supervision import RestartHistory
from runtime_node.rules import app_id
from services.rpc.errors import SupervisorError

if TYPE_CHECKING:
    from runtime_node.http.gate import Gate
    from runtime_node.instances.probe import Probe
    from runtime_node.instances.start_limiter import Slot
    from runtime_node.loader.code_files import CodeState
    from runtime_node.tiers.runner import RunningApp, Usage
    from runtime_node.watchdog import BlockPolicy

NO_FIGURES = GateFigures()
MAX_DETAIL_BYTES = 16 * 1024

READY = "Ready"
CRASH_LOOP = "CrashLoop"
BACKING_OFF = "BackingOff"
LEAKED = "Leaked"
SHARED_STATE_RESTORED = "SharedStateRestored"
BLOCKED_LOOP = "BlockedLoop"
DEMOTED = "Demoted"
CODE_CHANGED = "CodeChanged"
PROBE_FAILING = "ProbeFailing"

_STATE_REASONS: dict[StateValue, tuple[str, str]] = {
    InstanceMessage.PENDING: ("Pending", "It waits for its turn to start."),
    InstanceMessage.STARTING: ("Starting", "Its code is being loaded or its startup runs."),
    InstanceMessage.RUNNING: ("Started", "It serves requests."),
    InstanceMessage.IDLE: ("Idle", "It is dormant; the next request starts it."),
    InstanceMessage.STOPPING: ("Stopping", "It takes no new requests and ends."),
    InstanceMessage.STOPPED: ("Finished", "It ended by itself without an error."),
}


def timestamp(unix_seconds: float) -> Timestamp:
    """Return a Unix time as a Timestamp."""
    whole, rest = divmod(unix_seconds, 1)
    return Timestamp(seconds=int(whole), nanos=int(rest * 1e9))


def trim_detail(detail: str) -> str:
    """Return a traceback cut to 16 KiB from its middle: where it began and what it ended in matter most."""
    raw = detail.encode(errors="replace")
    if len(raw) <= MAX_DETAIL_BYTES:
        return raw.decode()
    mark = b"\n  ...\n"
    half = (MAX_DETAIL_BYTES - len(mark)) // 2
    return raw[:half].decode(errors="ignore") + mark.decode() + raw[-half:].decode(errors="ignore")


TOLD_METADATA = ("node", "app_dirs")


def error_message(error: SupervisorError, unix_seconds: float) -> InstanceError:
    """Return an error of an app as its instance reports it."""
    return InstanceError(
        reason=error.reason,
        message=error.message,
        detail=trim_detail(error.metadata.get("detail", "")),
        occur_time=timestamp(unix_seconds),
        metadata={key: error.metadata[key] for key in TOLD_METADATA if key in error.metadata},
    )


def code_message(code: CodeState) -> InstanceCode:
    """Return code as the API tells it."""
    return InstanceCode(
        digest=code.digest,
        modify_time=timestamp(code.modified / 1e9),
        distribution=code.distribution,
        partial=code.partial,
    )


@dataclass(slots=True)
class Run:
    """One awake stretch of an instance, from its start to its end."""

    spec: InstanceSpec
    number: int
    """Tells callbacks of an earlier start from those of this one."""
    tried: bool = False
    """It is started to see that it can, not for a request."""
    slot: Slot | None = None
    """Its turn among the starts of the node, while it has it."""
    work: asyncio.Task[RunningApp] | None = None
    """Brings it up; may be cancelled."""
    aborted: bool = False
    """The start is not wanted any more."""
    running: RunningApp | None = None
    exited: tuple[SupervisorError | None] | None = None
    """An end by itself that came before the start was complete."""
    tier: InstanceSpec.IsolationTier.ValueType = InstanceSpec.ISOLATION_TIER_UNSPECIFIED
    started: float = 0.0
    """Monotonic time at which its turn came."""
    code: CodeState | None = None
    """What was on disk for its entrypoint just before it was loaded; once it is ready, what it has loaded."""
    ready: float = 0.0
    """Monotonic time at which it became ready."""
    probe: Probe | None = None
    base: GateFigures = NO_FIGURES
    """What its gate had counted before this life."""
    blocking: BlockPolicy | None = None
    """How much it may block, in the tiers that the watchdog watches."""
    told: tuple[GateFigures, Usage] | None = None
    """What its figures were last made of."""
    wanted: bool = False
    """A request came while it was going dormant."""
    down: asyncio.Task[None] | None = None
    """Takes the running app down; whoever needs it down waits for this."""


@dataclass(slots=True)
class History:
    """What the lives of an instance left behind; absent until there is something to tell."""

    conditions: dict[str, Condition] = field(default_factory=dict)
    restored: set[str] = field(default_factory=set)
    """Names of the values of the process that this run had changed."""
    last_error: InstanceError | None = None
    restarts: RestartHistory = field(default_factory=RestartHistory)
    restart_count: int = 0
    rescue_count: int = 0
    ready_time: float = 0.0
    last_request_id: str = ""
    tier_floor: InstanceSpec.IsolationTier.ValueType = InstanceSpec.ISOLATION_TIER_UNSPECIFIED
    """The loosest tier still allowed, after a demotion."""
    block_history: BlockHistory = field(default_factory=BlockHistory)
    quiet: asyncio.TimerHandle | None = None
    """Looks whether it has blocked again."""
    figures: InstanceFigures | None = None
    retry: asyncio.TimerHandle | None = None


class SharedBytes:
    """Returns one object for all that is equal, of what was seen lately."""

    def __init__(self, limit: int = 1024) -> None:
        self._limit = limit
        self._known: dict[bytes, bytes] = {}

    def __call__(self, value: bytes) -> bytes:
        """Return bytes that are equal to these."""
        known = self._known.get(value)
        if known is None:
            if len(self._known) >= self._limit:
                self._known.clear()
            known = self._known[value] = value
        return known


OWN: tuple[Literal["name", "app_uid", "generation", "epoch"], ...] = (
    "name",
    "app_uid",
    "generation",
    "epoch",
)
"""Fields of a spec that tell its instance from others of the same code and settings."""


class Instance:
    """One instance: its identity, where it is in its life, and its door."""

    __slots__ = (
        "app",
        "coming",
        "create_time",
        "epoch",
        "gate",
        "generation",
        "health",
        "history",
        "name",
        "on_request",
        "ready_changed",
        "rest",
        "run",
        "state",
        "task",
        "uid",
    )

    def __init__(
        self,
        name: str,
        spec: InstanceSpec,
        gate: Gate,
        now: float,
        state: StateValue,
        shared: Callable[[bytes], bytes] = bytes,
    ) -> None:
        """`shared` returns bytes that are equal to what it is given, and may be another instance's too."""
        self.name = name
        self.app = app_id(name)
        """The app's id."""
        self.uid = spec.app_uid
        self.epoch = spec.epoch
        self.generation = spec.generation
        self.on_request = spec.activation == InstanceSpec.ON_REQUEST
        rest = InstanceSpec()
        rest.CopyFrom(spec)
        for own in OWN:
            rest.ClearField(own)
        self.rest = shared(rest.SerializeToString(deterministic=True))
        """Its spec without what is its own, serialized."""
        self.gate = gate
        self.create_time = now
        self.ready_changed = now
        self.state = state
        self.health: InstanceMessage.Health.ValueType = InstanceMessage.Health.UNKNOWN
        self.run: Run | None = None
        self.coming: Run | None = None
        """The life that is being started."""
        self.history: History | None = None
        self.task: asyncio.Task[None] | None = None
        """What is being done to it now: a start, a restart, going dormant, a stop."""

    @property
    def version(self) -> tuple[int, int]:
        """`(epoch, generation)`, which orders the instances of one app."""
        return (self.epoch, self.generation)

    def spec(self) -> InstanceSpec:
        """Return its spec, parsed."""
        return self.run.spec if self.run is not None else self.accepted_spec()

    def accepted_spec(self) -> InstanceSpec:
        """Return its spec as it came, in a message that is the caller's."""
        spec = InstanceSpec.FromString(self.rest)
        spec.name, spec.app_uid = self.name, self.uid
        spec.generation, spec.epoch = self.generation, self.epoch
        return spec

    def past(self) -> History:
        """Return its history, which exists from now on."""
        if self.history is None:
            self.history = History()
        return self.history

    def set_condition(self, kind: str, holds: bool, reason: str, message: str, now: float) -> None:
        """Set a condition; its transition time changes with its status alone."""
        status = Condition.MET if holds else Condition.UNMET
        conditions = self.past().conditions
        old = conditions.get(kind)
        since = old.last_transition_time if old is not None and old.status == status else timestamp(now)
        conditions[kind] = Condition(
            type=kind, status=status, reason=reason, message=message, last_transition_time=since
        )

    def clear_condition(self, kind: str, reason: str, message: str, now: float) -> None:
        """Set a condition to UNMET if it was ever MET."""
        if self.history is not None and kind in self.history.conditions:
            self.set_condition(kind, False, reason, message, now)

    def has_condition(self, kind: str) -> bool:
        """Return whether a condition is MET."""
        condition = self.history.conditions.get(kind) if self.history is not None else None
        return condition is not None and condition.status == Condition.MET

    def describe(self, node: str, incarnation: str, *, figures: bool) -> InstanceMessage:
        """Return the instance as the API tells it, with or without its figures."""
        message = InstanceMessage(
            name=self.name,
            app_uid=self.uid,
            node=node,
            incarnation=incarnation,
            generation=self.generation,
            epoch=self.epoch,
            state=self.state,
            health=self.health,
            create_time=timestamp(self.create_time),
            conditions=[self._ready()],
        )
        if self.run is not None:
            message.isolation = self.run.tier
            if self.run.code is not None:
                message.code.CopyFrom(code_message(self.run.code))
        past = self.history
        if past is not None:
            message.conditions.extend(past.conditions.values())
            message.restart_count = past.restart_count
            if past.last_error is not None:
                message.last_error.CopyFrom(past.last_error)
            if past.ready_time:
                message.ready_time.CopyFrom(timestamp(past.ready_time))
            if figures and past.figures is not None:
                message.figures.CopyFrom(past.figures)
        return message

    def _ready(self) -> Condition:
        error = self.history.last_error if self.history is not None else None
        if self.state == InstanceMessage.FAILED and self.has_condition(CRASH_LOOP):
            loop = self.past().conditions[CRASH_LOOP]
            reason, text = loop.reason, loop.message
        elif self.state == InstanceMessage.FAILED and error is not None:
            reason, text = error.reason, error.message
        else:
            reason, text = _STATE_REASONS.get(self.state, ("Unknown", ""))
        return Condition(
            type=READY,
            status=Condition.MET if self.state == InstanceMessage.RUNNING else Condition.UNMET,
            reason=reason,
            message=text,
            last_transition_time=timestamp(self.ready_changed),
        )

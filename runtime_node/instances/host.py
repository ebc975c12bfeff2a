"""The instances of this node: which are here, which commands are fresh, which of an app's instances serves.

Transport-free; every method belongs to the control loop. How an instance lives is the lifecycle's.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

from sortedcontainers import SortedDict

from appsupervisor.runtime.v1.runtime_environment_pb2 import (
    Instance as InstanceMessage,
)
from appsupervisor.runtime.v1.runtime_environment_pb2 import (
    InstanceSpec,
    StopInstanceRequest,
)
from runtime_node.http.gate import Gate
from runtime_node.http.limits import GateLimits
from runtime_node.instances import rules
from runtime_node.instances.databases import Databases
from runtime_node.instances.effective import effective_limits
from runtime_node.instances.feed import InstanceFeed
from runtime_node.instances.lifecycle import Lifecycle
from runtime_node.instances.record import LEAKED, Instance, error_message
from runtime_node.instances.routes import Routes, serving
from runtime_node.instances.states import initial
from services.rpc.errors import SupervisorError

log = logging.getLogger("runtime_node.instances")

DEFAULT_PAGE, MAX_PAGE = 50, 1000
MAX_PAGE_BYTES = 2 * 1024 * 1024
"""A page ends early beyond this: a client takes messages of 4 MiB, and tracebacks are large."""
_VERSIONS = {(e, g): (e, g) for e in range(1, 17) for g in range(1, 17)}
MAX_FENCES = 100_000
"""Apps without an instance here whose highest epoch is still known."""


@dataclass(frozen=True, slots=True)
class Observer:
    """What those have to know that watch apps for others: logs, health, metrics."""

    fault: Callable[[str, str], None]
    """An exception left an instance's app: its name and the traceback. Any thread; must not block."""
    changed: Callable[[Instance], None]
    """An instance is new, or its state, health or conditions have changed."""
    gone: Callable[[Instance], None]
    """An instance has ended and is not here any more."""
    purge: Callable[[str, str], Awaitable[None]]
    """The data of an app, by id and uid, is being removed. May raise OSError."""


class InstanceHost:
    """Registry of the node's instances and the rules of the commands on them."""

    def __init__(
        self,
        *,
        feed: InstanceFeed,
        routes: Routes,
        databases: Databases,
        max_instances: int,
        observer: Observer,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._feed = feed
        self._routes = routes
        self._databases = databases
        self._observer = observer
        self._wall = wall
        self.max_instances = max_instances
        self.lifecycle: Lifecycle
        self.draining = False
        self._instances: SortedDict[str, Instance] = SortedDict()
        self._apps: dict[str, tuple[Instance, ...]] = {}
        self._fences: dict[str, tuple[int, int]] = {}
        """By uid, the least recently raised first."""
        self._purges: set[tuple[str, str]] = set()
        self._limits: dict[tuple[object, ...], GateLimits] = {}
        self.running: dict[str, Instance] = {}
        """Instances that are RUNNING, by name: what housekeeping looks at."""

    def __len__(self) -> int:
        return len(self._instances)

    # --- commands ---

    def start(self, spec: InstanceSpec, *, start_now: bool = False) -> InstanceMessage:
        """Accept an instance and begin its life; see StartInstance for the rules and errors."""
        rules.check_spec(spec)
        known = self._instances.get(spec.name)
        if known is not None and known.spec_bytes == spec.SerializeToString(deterministic=True):
            return self._describe(known)
        version = (spec.epoch, spec.generation)
        fence = self._fences.get(spec.app_uid, (0, 0))
        if version < fence:
            raise rules.stale(spec.name, version, fence)
        if known is not None:
            raise SupervisorError(
                "INSTANCE_EXISTS", f"{spec.name} is here with another spec.", resource=spec.name
            )
        if self.draining:
            raise SupervisorError("NODE_DRAINING", "The node is shutting down.", resource=self._feed.node)
        if len(self._instances) >= self.max_instances:
            raise SupervisorError(
                "NODE_FULL", f"The node has its {self.max_instances} instances.", resource=self._feed.node
            )
        tried = start_now and spec.activation == InstanceSpec.ON_REQUEST
        instance = self._register(spec, version, dormant=not tried)
        self.lifecycle.accept(instance, tried=tried)
        return self._describe(instance)

    async def stop(self, request: StopInstanceRequest) -> InstanceMessage | None:
        """Begin to end an instance; None when it is not here. See StopInstance for the rules and errors."""
        rules.check_stop(request)
        instance = self._instances.get(request.name)
        if instance is not None and request.app_uid not in {"", instance.uid}:
            instance = None  # another app's, of the same name
        if instance is not None and request.epoch < instance.epoch:
            raise rules.stale(request.name, (request.epoch, 0), instance.version)
        uid = instance.uid if instance is not None else request.app_uid
        if uid:
            self._raise_fence(uid, (request.epoch, 0))
        app = rules.app_id(request.name)
        if request.purge_data:
            self._purges.add((app, uid))
        if instance is None:
            await self._purge_if_last(app, uid)
            return None
        self.lifecycle.stop(instance)
        return self._describe(instance)

    def restart(self, name: str, epoch: int, request_id: str) -> InstanceMessage:
        """Stop and start an instance in place; see RestartInstance for the rules and errors."""
        rules.check_restart(name, epoch, request_id)
        instance = self._get(name)
        if epoch < instance.epoch:
            raise rules.stale(name, (epoch, 0), instance.version)
        if instance.state == InstanceMessage.STOPPING:
            raise SupervisorError("INSTANCE_STOPPING", f"{name} is being stopped.", resource=name)
        if request_id and instance.history is not None and instance.history.last_request_id == request_id:
            return self._describe(instance)
        instance.past().last_request_id = request_id
        self.lifecycle.restart(instance)
        return self._describe(instance)

    def get(self, name: str) -> InstanceMessage:
        """Return one instance. Raises INSTANCE_NOT_FOUND, INVALID_FIELD."""
        rules.check_name(name)
        return self._describe(self._get(name))

    def list(self, parent: str, page_size: int, page_token: str) -> tuple[list[InstanceMessage], str]:
        """Return a page of instances by name, and the token of the next. Raises INVALID_PAGE_TOKEN."""
        app = rules.check_parent(parent)
        rules.check_page_size(page_size)
        size = min(page_size or DEFAULT_PAGE, MAX_PAGE)
        prefix = "apps/" if app is None else f"apps/{app}/instances/"
        after = _read_token(page_token, parent) if page_token else prefix
        page: list[InstanceMessage] = []
        last = ""
        room = MAX_PAGE_BYTES
        for name in self._instances.irange(minimum=after, inclusive=(False, True)):
            if not name.startswith(prefix):
                break
            if len(page) == size or room < 0:
                return page, _write_token(parent, last)
            page.append(self._describe(self._instances[name]))
            room -= page[-1].ByteSize()
            last = name
        return page, ""

    def find(self, name: str) -> Instance | None:
        """Return an instance, None if it is not here. Any thread."""
        found: Instance | None = self._instances.get(name)
        return found

    def of_app(self, app: str) -> tuple[Instance, ...]:
        """Return the instances of an app by its id, in the order they were accepted. Any thread."""
        return self._apps.get(app, ())

    def all(self) -> Sequence[Instance]:
        """Return every instance, in no order. Any thread."""
        # One call into C over the dict itself: nothing can change it meanwhile.
        return tuple(dict.values(self._instances))

    async def shutdown(self, deadline: float) -> int:
        """Refuse new instances, stop all, wait at most `deadline` seconds; return how many are left."""
        self.draining = True
        for instance in list(self._instances.values()):
            self.lifecycle.stop(instance)
        tasks = {i.task for i in self._instances.values() if i.task is not None}
        if tasks:
            await asyncio.wait(tasks, timeout=deadline)
        left = len(self._instances)
        for task in tasks:
            task.cancel()
        return left

    # --- what the lifecycle tells ---

    def changed(self, instance: Instance) -> None:
        """An instance changed: its route and its watchers have to know."""
        if instance.state == InstanceMessage.RUNNING:
            self.running[instance.name] = instance
        elif self.running.pop(instance.name, None) is not None:
            self._feed.unmeasured(instance.name)
        app = instance.app
        self._routes.update(app, self._apps.get(app, ()))
        self._feed.changed(instance)
        self._observer.changed(instance)

    def serving(self, instance: Instance) -> Instance | None:
        """Return which instance of the same app its requests go to now."""
        return serving(self._apps.get(instance.app, ()))

    def reassess(self, instance: Instance) -> None:
        """A probe of an instance came out otherwise than before."""
        self.lifecycle.reassess(instance)

    def leaked(self, name: str, holders: Sequence[str]) -> None:
        """Something of a former life of an instance is in memory still, held by what is named."""
        instance = self._instances.get(name)
        if instance is not None:
            self.lifecycle.leaked(instance, holders)
            return
        log.warning(
            "Left behind: %s", "; ".join(holders), extra={"action": "instance.leaked", "instance": name}
        )

    def restored(self, name: str, values: Sequence[str]) -> None:
        """What an instance had changed for all apps of the process is as before again."""
        instance = self._instances.get(name)
        if instance is not None:
            self.lifecycle.restored(instance, values)
            return
        facts = {"action": "instance.restored", "instance": name}
        log.warning("Put back what it had changed for all: %s", ", ".join(values), extra=facts)

    def at_work(
        self, tiers: Collection[InstanceSpec.IsolationTier.ValueType], seconds: float
    ) -> tuple[str, ...]:
        """Return the instances in these tiers that start or end, or have served within so many seconds."""
        since = time.monotonic() - seconds
        names = []
        for name, instance in self.running.items():
            if instance.run is not None and instance.run.tier in tiers:
                figures = instance.gate.figures()
                served = figures.in_flight or (figures.last_request_time or 0.0) > since
                if instance.task is not None or served:
                    names.append(name)
        return tuple(names)

    async def gone(self, instance: Instance) -> None:
        """An instance has ended: forget it, carry out a purge that waited for it, tell the watchers."""
        name, app, uid = instance.name, instance.app, instance.uid
        await self._purge_if_last(app, uid, but=instance)
        del self._instances[name]
        rest = tuple(other for other in self._apps[app] if other is not instance)
        if rest:
            self._apps[app] = rest
        else:
            del self._apps[app]
        self._routes.update(app, rest)
        self._observer.gone(instance)
        why = None
        if self.draining:
            shutdown = SupervisorError("NODE_DRAINING", "It ended because its node shut down.")
            why = error_message(shutdown, self._wall())
        elif instance.history is not None and instance.has_condition(LEAKED):
            text = instance.history.conditions[LEAKED].message
            why = error_message(SupervisorError("APP_LEAKED", text), self._wall())
        self._feed.gone(instance, why)

    # --- inside ---

    def _register(self, spec: InstanceSpec, version: tuple[int, int], *, dormant: bool) -> Instance:
        name = spec.name  # read once: each reading makes another string
        gate = Gate(name, self._gate_limits(spec), self._observer.fault)
        state = initial(dormant and spec.activation == InstanceSpec.ON_REQUEST)
        instance = Instance(name, spec, gate, self._wall(), state, self.lifecycle)
        self._instances[name] = instance
        app = instance.app
        self._apps[app] = (*self._apps.get(app, ()), instance)
        self._purges.discard((app, spec.app_uid))
        self._raise_fence(instance.uid, version)
        return instance

    def _gate_limits(self, spec: InstanceSpec) -> GateLimits:
        effective = effective_limits(spec)
        key = (
            effective.max_concurrent_requests,
            effective.max_queued_requests,
            effective.request_timeout,
            effective.max_request_body_bytes,
            effective.max_websocket_message_bytes,
            effective.websocket_compression,
        )
        limits = self._limits.get(key)
        if limits is None:
            if len(self._limits) >= 1024:
                self._limits.clear()
            limits = self._limits[key] = GateLimits(
                max_concurrent_requests=key[0],
                max_queued_requests=key[1],
                request_timeout=key[2],
                max_request_body_bytes=key[3],
                max_websocket_message_bytes=key[4],
                websocket_compression=key[5],
            )
        return limits

    def _raise_fence(self, uid: str, version: tuple[int, int]) -> None:
        version = max(version, self._fences.pop(uid, (0, 0)))
        # Most apps stand at the same few versions: one tuple serves them all.
        self._fences[uid] = _VERSIONS.get(version, version)
        if len(self._fences) > 2 * MAX_FENCES + len(self._instances):
            here = {instance.uid for instance in self._instances.values()}
            old = [known for known in self._fences if known not in here]
            for known in old[:-MAX_FENCES]:
                del self._fences[known]

    async def _purge_if_last(self, app: str, uid: str, but: Instance | None = None) -> None:
        """Carry out a purge that was asked for, unless an instance other than `but` has the data."""
        others = (other for other in self._apps.get(app, ()) if other is not but)
        if (app, uid) not in self._purges or any(other.uid == uid for other in others):
            return
        try:
            await self._observer.purge(app, uid)
            await asyncio.to_thread(self._databases.purge, app, uid)
        except OSError as fault:
            log.error(
                "data could not be removed", exc_info=fault,
                extra={"action": "instance.purge_failed", "app": app, "uid": uid},
            )  # fmt: skip
            return
        self._purges.discard((app, uid))
        log.info("purged", extra={"action": "app.purged", "app": app, "uid": uid})

    def _get(self, name: str) -> Instance:
        instance: Instance | None = self._instances.get(name)
        if instance is None:
            raise SupervisorError("INSTANCE_NOT_FOUND", f"{name} is not on this node.", resource=name)
        return instance

    def _describe(self, instance: Instance) -> InstanceMessage:
        return instance.describe(self._feed.node, self._feed.incarnation, figures=True)


def _write_token(parent: str, last: str) -> str:
    return base64.urlsafe_b64encode(f"{parent}\n{last}".encode()).decode().rstrip("=")


def _read_token(token: str, parent: str) -> str:
    try:
        raw = base64.urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4)).decode()
    except ValueError:
        raw = ""
    of, _, last = raw.partition("\n")
    if of != parent or not last:
        raise SupervisorError(
            "INVALID_PAGE_TOKEN",
            "The page token is none of this node's, or the parent changed between pages.",
        )
    return last

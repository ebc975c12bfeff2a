"""The commands on the instances of this node: which are fresh, what they answer.

Transport-free; every method belongs to the control loop. How an instance lives is the lifecycle's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import TypeAlias

from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance as InstanceMessage
from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec, StopInstanceRequest
from runtime_node import rules
from runtime_node.forwarding import Target, parse_target
from runtime_node.http.gate import MADE_CLOSED, Gate
from runtime_node.http.limits import GateLimits
from runtime_node.instances.code_on_disk import CodeOnDisk
from runtime_node.instances.feed import InstanceFeed
from runtime_node.instances.fences import Fences
from runtime_node.instances.forwards import Move
from runtime_node.instances.lifecycle import Lifecycle
from runtime_node.instances.page_tokens import DEFAULT_PAGE, MAX_PAGE, read_token, write_token
from runtime_node.instances.purges import Purges
from runtime_node.instances.record import Instance, SharedBytes
from runtime_node.instances.registry import InstanceRegistry
from runtime_node.instances.spec_check import SpecCheck
from runtime_node.instances.states import initial
from runtime_node.instances.table import InstanceTable
from runtime_node.lease import Lease, LeaseUnlessAlone, ServingRight
from services.rpc.errors import SupervisorError, invalid_field, invalid_fields
from services.spec.availability import effective_availability
from services.spec.effective import effective_limits
from services.spec.scalars import domain_violations

MAX_PAGE_BYTES = 2 * 1024 * 1024
"""A page ends early beyond this: a client takes messages of 4 MiB, and tracebacks are large."""
Page: TypeAlias = list[InstanceMessage]


class InstanceHost:
    """The rules of the commands on the node's instances."""

    def __init__(
        self,
        *,
        table: InstanceTable,
        registry: InstanceRegistry,
        lifecycle: Lifecycle,
        purges: Purges,
        feed: InstanceFeed,
        code: CodeOnDisk,
        on_fault: Callable[[str, str], None],
        lease: Lease,
        on_accepted: Callable[[Instance], None] = lambda _: None,
        came_under: Callable[[str], int] = lambda _: 0,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`on_fault` hears of an exception that left an instance's app: its name and the traceback. Called
        on any thread; must not block. `on_accepted` hears of each new instance; `came_under` tells by
        its uid the epoch under which an app's data has come from another node, 0 for none."""
        self._table = table
        self._registry = registry
        self._lifecycle = lifecycle
        self._purges = purges
        self._feed = feed
        self._code = code
        self._on_fault = on_fault
        self._lease = lease
        self._unless_alone = LeaseUnlessAlone(lease)
        self._on_accepted = on_accepted
        self._came_under = came_under
        self._wall = wall
        self._refusal: SupervisorError | None = None
        self._fences = Fences(lambda: {instance.uid for instance in table.all()})
        self._limits: dict[tuple[object, ...], GateLimits] = {}
        self._spec_check = SpecCheck()
        self._shared = SharedBytes()

    # --- commands ---

    def start(self, spec: InstanceSpec, *, start_now: bool = False) -> InstanceMessage:
        """Accept an instance and begin its life; see StartInstance for the rules and errors."""
        self._spec_check.check(spec)
        known = self._table.find(spec.name)
        if known is not None and _same(known, spec):
            return self._describe(known)
        version = (spec.epoch, spec.generation)
        self._fences.check(spec.name, spec.app_uid, version)
        if known is not None:
            raise SupervisorError(
                "INSTANCE_EXISTS", f"{spec.name} is here with another spec.", resource=spec.name
            )
        if self._refusal is not None:
            raise self._refusal
        if len(self._table) >= self._table.max_instances:
            raise SupervisorError(
                "NODE_FULL",
                f"The node has its {self._table.max_instances} instances.",
                resource=self._feed.node,
            )
        tried = start_now and spec.activation == InstanceSpec.ON_REQUEST
        instance = self._register(spec, version, dormant=not tried)
        self._lifecycle.accept(instance, tried=tried)
        self._on_accepted(instance)
        return self._describe(instance)

    async def stop(self, request: StopInstanceRequest) -> InstanceMessage | None:
        """Begin to end an instance; None when it is not here. See StopInstance for the rules and errors."""
        rules.check_stop(request)
        home = _new_home(request)
        instance = self._table.find(request.name)
        if instance is not None and request.app_uid not in {"", instance.uid}:
            instance = None  # another app's, of the same name
        if instance is not None and request.epoch < instance.epoch:
            raise rules.stale(request.name, (request.epoch, 0), instance.version)
        uid = instance.uid if instance is not None else request.app_uid
        if request.purge_data and request.epoch < self._came_under(uid):
            raise rules.stale(request.name, (request.epoch, 0), (self._came_under(uid), 0))
        if uid:
            self._fences.raise_to(uid, (request.epoch, 0))
        app = rules.app_id(request.name)
        successor = None
        if home is not None:
            move = Move(app, uid, request.epoch, home, tuple(request.new_home.domains))
            successor = self._registry.moved(move, instance.gate.limits if instance is not None else None)
        if request.purge_data:
            self._purges.ask(app, uid)
        if instance is None:
            fault = await self._registry.purge(app, uid)
            if fault is not None:
                raise fault
            return None
        if self._registry.has_ended(instance):
            await self._registry.gone(instance)
            return self._describe(instance) if self._registry.has_ended(instance) else None
        self._lifecycle.stop(instance, successor)
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
        self._lifecycle.restart(instance)
        return self._describe(instance)

    async def get(self, name: str) -> InstanceMessage:
        """Return one instance. Raises INSTANCE_NOT_FOUND, INVALID_FIELD."""
        rules.check_name(name)
        found = self._describe(self._get(name))
        await self._code.tell([found])
        return found

    async def list(self, parent: str, page_size: int, page_token: str) -> tuple[list[InstanceMessage], str]:
        """Return a page of instances by name, and the token of the next. Raises INVALID_PAGE_TOKEN."""
        page, token = self._page(parent, page_size, page_token)
        await self._code.tell(page)
        return page, token

    def _page(self, parent: str, page_size: int, page_token: str) -> tuple[Page, str]:
        app = rules.check_parent(parent)
        rules.check_page_size(page_size)
        size = min(page_size or DEFAULT_PAGE, MAX_PAGE)
        prefix = "apps/" if app is None else f"apps/{app}/instances/"
        after = read_token(page_token, parent) if page_token else prefix
        page: list[InstanceMessage] = []
        last = ""
        room = MAX_PAGE_BYTES
        for instance in self._table.after(after, prefix):
            if len(page) == size or room < 0:
                return page, write_token(parent, last)
            page.append(self._describe(instance))
            room -= page[-1].ByteSize()
            last = instance.name
        return page, ""

    def give_up(self, fences: Mapping[str, int]) -> None:
        """Accept no older epochs, and let those that are here answer nobody: by app uid, the least epoch."""
        if not fences:
            return
        for uid, epoch in fences.items():
            self._fences.raise_to(uid, (epoch, 0))
        for instance in self._table.all():
            if instance.epoch < fences.get(instance.uid, 0):
                instance.gate.revoke()

    def lapse(self) -> None:
        """End what is under way for apps that need the lease: it has run out."""
        for instance in self._table.all():
            instance.gate.lapse()

    def refuse_starts(self, why: SupervisorError | None) -> None:
        """Answer every new instance with an error from now on; None accepts them again."""
        self._refusal = why

    async def stop_all(self, deadline: float) -> int:
        """Stop every instance, wait at most `deadline` seconds; return how many are left."""
        for instance in self._table.all():
            self._lifecycle.stop(instance)
        tasks = {i.task for i in self._table.all() if i.task is not None}
        if tasks:
            await asyncio.wait(tasks, timeout=deadline)
        return sum(not self._registry.has_ended(instance) for instance in self._table.all())

    async def shutdown(self, deadline: float) -> int:
        """Refuse new instances, stop all, wait at most `deadline` seconds; return how many are left."""
        self._table.draining = True
        self.refuse_starts(
            SupervisorError("NODE_DRAINING", "The node is shutting down.", resource=self._feed.node)
        )
        left = await self.stop_all(deadline)
        self._registry.forget_all_unpurged()
        for instance in self._table.all():
            if instance.task is not None:
                instance.task.cancel()
        return left

    # --- inside ---

    def _register(self, spec: InstanceSpec, version: tuple[int, int], *, dormant: bool) -> Instance:
        name = spec.name  # read once: each reading makes another string
        state = initial(dormant and spec.activation == InstanceSpec.ON_REQUEST)
        door = self._lifecycle.dormant if state == InstanceMessage.IDLE else MADE_CLOSED
        gate = Gate(name, self._gate_limits(spec), self._on_fault, self._right_to_serve(spec), door)
        instance = Instance(name, spec, gate, self._wall(), state, self._shared)
        self._registry.add(instance)
        self._fences.raise_to(instance.uid, version)
        return instance

    def _right_to_serve(self, spec: InstanceSpec) -> ServingRight | None:
        """Return what an instance needs to answer; None if it always may."""
        if effective_availability(spec) != InstanceSpec.CONSISTENT:
            return None
        return self._lease if spec.availability else self._unless_alone

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

    def _get(self, name: str) -> Instance:
        instance = self._table.find(name)
        if instance is None:
            raise SupervisorError("INSTANCE_NOT_FOUND", f"{name} is not on this node.", resource=name)
        return instance

    def _describe(self, instance: Instance) -> InstanceMessage:
        return instance.describe(self._feed.node, self._feed.incarnation, figures=True)


def _new_home(request: StopInstanceRequest) -> Target | None:
    """Return where the app has moved to, if it has. Raises INVALID_FIELD."""
    if not request.HasField("new_home"):
        return None
    new_home = request.new_home
    try:
        home = parse_target(new_home.http_address, new_home.node, serves_http2=new_home.serves_http2)
    except ValueError as error:
        raise invalid_field("new_home.http_address", str(error)) from None
    broken = [
        violation
        for index, domain in enumerate(new_home.domains)
        for violation in domain_violations(f"new_home.domains[{index}]", domain, wildcard=True)
    ]
    if broken:
        raise invalid_fields(broken)
    return home


def _same(known: Instance, spec: InstanceSpec) -> bool:
    accepted = known.accepted_spec()
    if accepted == spec:
        return True
    # Whether its data has to be here already is no part of what it is.
    accepted.requires_existing_data = spec.requires_existing_data
    return accepted == spec

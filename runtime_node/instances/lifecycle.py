"""Leads each instance through its life: starts with a time limit, restarts by policy, dormancy, stops.

Runs on the control loop. Per instance at most one task is under way, and none while it runs or is dormant.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance as InstanceMessage
from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec
from runtime_node.http.gate import Gate, first_hold
from runtime_node.instances.blocks import Blocks
from runtime_node.instances.code_on_disk import CodeOnDisk
from runtime_node.instances.code_place import CodePlace
from runtime_node.instances.contexts import app_context
from runtime_node.instances.databases import Databases
from runtime_node.instances.failures import Failures, wait
from runtime_node.instances.leak_reports import LeakReports
from runtime_node.instances.probes import Probes
from runtime_node.instances.record import (
    BACKING_OFF,
    BLOCKED_LOOP,
    CRASH_LOOP,
    SHARED_STATE_RESTORED,
    Instance,
    Run,
    error_message,
)
from runtime_node.instances.registry import InstanceRegistry
from runtime_node.instances.start_limiter import StartLimiter
from runtime_node.instances.states import Event
from runtime_node.instances.transitions import Transitions
from runtime_node.tiers.choice import Runners
from runtime_node.tiers.runner import AppRunner, Launch, RunningApp, StopReport
from runtime_node.watchdog import Block, Stage, Watchdog
from services.rpc.errors import SupervisorError
from services.spec.effective import effective_health_check, effective_limits

log = logging.getLogger("runtime_node.instances")

_LAST_WORDS = 1.0
"""Seconds for the requests of an app that ended by itself."""
_CLOSE_SECONDS = 1.0
"""What a WebSocket's client gets to answer the close."""

_CUT_GRACE = 15.0
"""Seconds beyond its own limit that a tier gets to report a stop; then the rest is left behind.

More than a tier itself waits for a blocked loop, for its thread and for the app's other threads: one that is
broken off in the middle never ends its thread.
"""


class Lifecycle:
    """Carries out what is to happen to instances. Every method belongs to the control loop but `want`."""

    def __init__(
        self,
        *,
        runners: Runners,
        databases: Databases,
        start_limiter: StartLimiter,
        probes: Probes,
        registry: InstanceRegistry,
        transitions: Transitions,
        leaks: LeakReports,
        watchdog: Watchdog,
        find: Callable[[str], Instance | None],
        running: Mapping[str, Instance],
        place: CodePlace,
        code: CodeOnDisk,
        on_ready: Callable[[Instance], None],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`find` returns an instance by its name; `running` holds those that are RUNNING.

        `on_ready` hears that an app was started.
        """
        self._runners = runners
        self._databases = databases
        self._start_limiter = start_limiter
        self._probes = probes
        self._registry = registry
        self._leaks = leaks
        self._place = place
        self._code = code
        self._on_ready = on_ready
        self._clock = clock
        self._wall = wall
        self._transitions = transitions
        self._failures = Failures(
            self._transitions, retry=self._retry, clock=clock, wall=wall, uniform=uniform
        )
        self._blocks = Blocks(
            self._transitions, watchdog, running, has_tier=runners.has, fail=self._stopped_for_blocking,
            start_over=partial(self._start_over, event=Event.RESTART), clock=clock, wall=wall,
        )  # fmt: skip
        self._loop = asyncio.get_running_loop()
        self._find = find
        self.dormant = first_hold(self._want_by_name)
        """What the gate of an instance does that begins dormant: its first request wakes it."""
        self._numbers = 0

    # --- commands ---

    def accept(self, instance: Instance, *, tried: bool = False) -> None:
        """Begin the life of an instance that was just registered.

        One that is `tried` goes dormant as soon as it was ready, unless somebody needs it.
        """
        dormant = instance.state == InstanceMessage.IDLE
        # Ten thousand dormant ones come at once, and nothing happens to them yet.
        self._transitions.log(instance, "accepted", logging.DEBUG if dormant else logging.INFO)
        if dormant:  # its gate was made for that
            self._registry.changed(instance)
        else:
            instance.gate.hold(wait)
            self._begin(instance, tried=tried)

    def restart(self, instance: Instance) -> None:
        """Stop what runs of it and start it at once, whatever its policy says."""
        past = instance.past()
        past.restarts.forget()
        past.restart_count += 1
        now = self._wall()
        instance.clear_condition(CRASH_LOOP, "Restarted", "It was restarted by command.", now)
        self._start_over(instance, Event.RESTART)

    def stop(self, instance: Instance, successor: Gate | None = None) -> None:
        """Take it off its route, drain it, end it. Repeats do nothing.

        What waits at its gate goes to the `successor`, if its app has moved: to where requests are forwarded.
        """
        if instance.state == InstanceMessage.STOPPING:
            return
        self._failures.forget_retry(instance)
        self._abort(instance)
        previous = instance.task
        serving = instance.state == InstanceMessage.RUNNING and instance.task is None
        self._transitions.move(instance, Event.STOP)
        if successor is not None:
            instance.gate.forward(successor)
        elif not serving:
            # Nothing will open it again; an open gate still serves what it has let in or queued.
            self._transitions.shut(instance, partial(instance.gate.close, "INSTANCE_STOPPING", 1.0))
        self._do(instance, self._stop(instance, previous, moved=successor is not None))

    def sleep(self, instance: Instance) -> None:
        """Let a running ON_REQUEST instance go dormant; a request that comes meanwhile wakes it again."""
        if instance.state == InstanceMessage.RUNNING and instance.task is None and instance.run is not None:
            self._do(instance, self._sleep(instance, instance.run))

    def want(self, instance: Instance) -> None:
        """A request waits for a dormant instance. May be called from any thread."""
        self._loop.call_soon_threadsafe(self._wake, instance)

    def _want_by_name(self, name: str) -> None:
        instance = self._find(name)
        if instance is not None:
            self.want(instance)

    # --- starting ---

    def _begin(
        self,
        instance: Instance,
        before: Coroutine[Any, Any, None] | None = None,
        *,
        tried: bool = False,
    ) -> None:
        """Start a PENDING instance, after `before` is done."""
        self._failures.forget_retry(instance)
        self._numbers += 1
        run = Run(spec=instance.spec(), number=self._numbers, tried=tried)
        instance.coming = run
        if before is None:
            instance.run = run
            run.slot = self._start_limiter.try_take()
        if run.slot is not None:
            self._transitions.move(instance, Event.BEGIN)
        else:
            self._registry.changed(instance)
        self._do(instance, self._start(instance, run, before))

    async def _start(self, instance: Instance, run: Run, before: Coroutine[Any, Any, None] | None) -> None:
        """Start a life. Never cancelled, so that what waits for it knows that nothing goes on behind it:
        `_abort` cancels the work inside."""
        try:
            if before is not None:
                await before
            if run.aborted:
                return
            instance.run = run
            run.work = asyncio.create_task(self._work(instance, run))
            await asyncio.wait({run.work})
        finally:
            if run.slot is not None:
                run.slot.release()
        fault = None if run.work.cancelled() else run.work.exception()
        if fault is None and not run.work.cancelled():
            run.running = run.work.result()
        else:
            self._blocks.leave(instance, run)
        if run.aborted:
            return
        instance.task = instance.coming = None
        if run.running is not None:
            served = self._registry.serving(instance)
            self._ready(instance, run, run.running)
            if run.tried:
                self._tried(instance, served)
        elif isinstance(fault, SupervisorError):
            self._failed(instance, fault)
        else:
            self._failed(instance, _start_fault(fault, instance.name))
            log.error(
                "start failed", exc_info=fault,
                extra={"action": "instance.start_fault", "instance": instance.name},
            )  # fmt: skip

    def _abort(self, instance: Instance) -> None:
        """Let a start that is under way come to nothing; its task ends after it has cleared away."""
        coming, instance.coming = instance.coming, None
        if coming is not None:
            coming.aborted = True
            if coming.work is not None:
                coming.work.cancel()

    async def _work(self, instance: Instance, run: Run) -> RunningApp:
        if run.slot is None:
            run.slot = await self._start_limiter.take()
            self._transitions.move(instance, Event.BEGIN)
        run.started = self._clock()
        return await self._bring_up(instance, run)

    async def _bring_up(self, instance: Instance, run: Run) -> RunningApp:
        spec = run.spec
        limit = effective_limits(spec).start_timeout
        floor = instance.history.tier_floor if instance.history is not None else spec.isolation
        timer: asyncio.Timeout | None = None
        try:
            async with asyncio.timeout(limit) as timer:
                (directory, url), run.code = await asyncio.gather(
                    asyncio.to_thread(self._databases.provide, spec), self._code.now(spec.entrypoint)
                )
                runner = await self._runners.choose(spec, floor, run.code)
                launch = Launch(
                    spec=spec,
                    context=app_context(spec, directory, url),
                    on_exit=partial(self._from_any_thread, self._exited, instance, run.number),
                    on_blocked=partial(self._from_any_thread, self._blocked, instance, run.number),
                )
                return await self._start_in(runner, launch, instance, run)
        except TimeoutError:
            if timer is None or not timer.expired():
                raise
            message = (
                f"It was not ready within {limit:g} s, its limits.start_timeout; its log has what it said"
                " until then."
            )
            raise SupervisorError("APP_START_TIMEOUT", message, resource=instance.name) from None

    async def _start_in(self, runner: AppRunner, launch: Launch, instance: Instance, run: Run) -> RunningApp:
        """Start it in a tier, or, where it turns out that its code cannot run there and none is asked for, in
        the one that fits."""
        run.tier = runner.tier
        self._blocks.enter(instance, run)
        try:
            return await runner.start(launch)
        except SupervisorError as refused:
            stricter = self._runners.stricter(run.spec, run.tier, refused)
            if stricter is None:
                raise
            was, tier = map(InstanceSpec.IsolationTier.Name, (runner.tier, stricter.tier))
            self._transitions.log(instance, "tier_chosen", was=was, tier=tier, message=refused.message)
        self._blocks.leave(instance, run)
        run.blocking = None
        return await self._start_in(stricter, launch, instance, run)

    def _ready(self, instance: Instance, run: Run, running: RunningApp) -> None:
        now = self._wall()
        run.ready = self._clock()
        self._blocks.ready(run)
        run.code = self._code.loaded(run)
        instance.past().ready_time = now
        instance.clear_condition(BACKING_OFF, "Started", "It has started.", now)
        instance.clear_condition(BLOCKED_LOOP, "Started", "It has started afresh.", now)
        instance.clear_condition(SHARED_STATE_RESTORED, "Started", "It has started afresh.", now)
        instance.past().restored.clear()
        run.base = instance.gate.figures()
        instance.gate.open(running.asgi)
        check = effective_health_check(run.spec.health_check)
        if check.path:
            self._probes.add(instance, run, check)
        took = f"{(run.ready - run.started) * 1000:.1f}"
        self._transitions.move(
            instance, Event.READY, tier=InstanceSpec.IsolationTier.Name(run.tier), took_ms=took
        )
        self._on_ready(instance)
        if run.exited is not None:
            self._exited(instance, run.number, run.exited[0])

    def _tried(self, instance: Instance, before: Instance | None) -> None:
        """Let what has shown that it starts sleep, unless requests came or it replaces one that is awake."""
        awake = before is not None and before is not instance and before.state == InstanceMessage.RUNNING
        figures = instance.gate.figures()
        if not awake and not figures.in_flight and not figures.queued:
            self.sleep(instance)

    # --- ends that nobody asked for ---

    def _failed(self, instance: Instance, error: SupervisorError) -> None:
        """Take note that a start failed."""
        spec = instance.spec()
        instance.run = None
        self._failures.ended(instance, self._place.located(error), Event.FAIL, spec)

    def _exited(self, instance: Instance, number: int, error: SupervisorError | None) -> None:
        run = instance.run
        if run is None or run.number != number or run.down is not None:
            return
        if run.running is None:
            run.exited = (error,)
        elif instance.state == InstanceMessage.RUNNING and instance.task is None:
            if error is not None and self._blocks.ends_for_good(run, error):
                instance.past().last_error = error_message(error, self._wall())
                self._stopped_for_blocking(instance, run, error)
                return
            self._release(instance, run)
            self._failures.ended(instance, error, Event.CRASH, run.spec)

    def _release(self, instance: Instance, run: Run) -> None:
        """Clear away what is left of an app that ended by itself."""
        # Requests under way end by themselves, each with how the app ended: cut off they would be told less.
        down = self._take_down(instance, run, _LAST_WORDS)
        instance.run = None
        instance.task = down  # whatever comes next waits for it
        down.add_done_callback(partial(self._done, instance))

    def _retry(self, instance: Instance) -> None:
        instance.past().restart_count += 1
        instance.gate.hold(wait)
        self._transitions.move(instance, Event.RETRY)
        self._begin(instance, _ended(instance.task))

    def _blocked(self, instance: Instance, number: int, stack: str, blocked: float) -> None:
        run = instance.run
        if run is not None and run.number == number:
            self._blocks.told(instance, run, Block(Stage.BEGUN, blocked, stack))

    def _stopped_for_blocking(self, instance: Instance, run: Run, error: SupervisorError) -> None:
        self._release(instance, run)
        self._transitions.move(instance, Event.CRASH, reason=error.reason, message=error.message)
        self._transitions.shut(instance, partial(instance.gate.close, error.reason))

    # --- starting over, dormancy, stopping ---

    def _start_over(self, instance: Instance, event: Event) -> None:
        self._failures.forget_retry(instance)
        self._abort(instance)
        instance.gate.hold(wait)
        self._transitions.move(instance, event)
        self._begin(instance, self._cleared(instance, instance.task))

    async def _cleared(self, instance: Instance, previous: asyncio.Task[None] | None) -> None:
        """Wait until nothing of the instance's present life is left."""
        await _ended(previous)
        if instance.run is not None:
            await _ended(self._take_down(instance, instance.run))
            instance.run = None

    def _wake(self, instance: Instance) -> None:
        if instance.state == InstanceMessage.IDLE and instance.task is None:
            self._transitions.move(instance, Event.WAKE)
            self._begin(instance)
        elif instance.run is not None:
            instance.run.wanted = True

    async def _sleep(self, instance: Instance, run: Run) -> None:
        instance.gate.hold(partial(self.want, instance))
        await _ended(self._take_down(instance, run))
        if instance.state != InstanceMessage.RUNNING:
            return
        instance.run = instance.task = None
        self._transitions.move(instance, Event.SLEEP)
        if run.wanted:
            self._wake(instance)

    async def _stop(self, instance: Instance, previous: asyncio.Task[None] | None, *, moved: bool) -> None:
        await self._cleared(instance, previous)
        if not moved:
            instance.gate.close("INSTANCE_STOPPING", 1.0)
        self._transitions.log(instance, "gone")
        await self._registry.gone(instance)

    def _take_down(self, instance: Instance, run: Run, drain: float | None = None) -> asyncio.Task[None]:
        if run.down is None:
            run.down = asyncio.create_task(self._down(instance, run, drain))
        return run.down

    async def _down(self, instance: Instance, run: Run, drain: float | None) -> None:
        self._probes.remove(run)
        limit = effective_limits(run.spec).stop_timeout
        drain = limit if drain is None else drain
        successor = self._registry.serving(instance)
        replaced = successor is not None and successor is not instance
        # Behind a swap a WebSocket may stay as long as anything may, less the time its close takes.
        grace = max(0.0, drain - _CLOSE_SECONDS) if replaced else 0.0
        cut = await instance.gate.drain(drain, websocket_grace=grace)
        running, run.running = run.running, None
        if running is None:
            return
        try:
            # A tier keeps the limit itself; this one is for a tier that a stuck loop keeps from answering.
            report = await asyncio.wait_for(running.stop(limit), 2 * limit + _CUT_GRACE)
        except TimeoutError:
            report = StopReport(leaks=("what its tier could not take down in time",))
        except Exception as fault:
            log.exception("stop failed", extra={"action": "instance.stop_fault", "instance": instance.name})
            report = StopReport(
                error=SupervisorError("INTERNAL", f"The node failed at it: {type(fault).__name__}.")
            )
        self._blocks.leave(instance, run)
        self._record_stop(instance, report, cut)

    def _record_stop(self, instance: Instance, report: StopReport, cut: int) -> None:
        now = self._wall()
        if cut or report.cancelled_tasks:
            self._transitions.log(instance, "cut_off", requests=cut, tasks=report.cancelled_tasks)
        if report.error is not None:
            instance.past().last_error = error_message(report.error, now)
            self._transitions.log(
                instance, "stop_failed", level=logging.WARNING, reason=report.error.reason,
                message=report.error.message,
            )  # fmt: skip
        if report.leaks:
            self._leaks.record(instance, report.leaks)

    # --- what all of them need ---

    def _do(self, instance: Instance, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        instance.task = task
        task.add_done_callback(partial(self._done, instance))

    def _done(self, instance: Instance, task: asyncio.Task[None]) -> None:
        if instance.task is task:
            instance.task = None
        if not task.cancelled() and (fault := task.exception()) is not None:
            log.error(
                "an instance's task failed", exc_info=fault,
                extra={"action": "instance.fault", "instance": instance.name},
            )  # fmt: skip

    def _from_any_thread(
        self, call: Callable[..., None], instance: Instance, number: int, *args: Any
    ) -> None:
        try:
            self._loop.call_soon_threadsafe(call, instance, number, *args)
        except RuntimeError:
            return  # the node has ended meanwhile


def _start_fault(fault: BaseException | None, resource: str) -> SupervisorError:
    if isinstance(fault, OSError) and fault.errno in (errno.EMFILE, errno.ENFILE):
        text = "The node has no file descriptors left; raise its limit (ulimit -n) or run fewer apps on it."
        return SupervisorError("NODE_FULL", text, resource=resource)
    text = "The node failed at starting it; its log tells more."
    return SupervisorError("INTERNAL", text, resource=resource)


async def _ended(task: asyncio.Task[None] | None) -> None:
    """Wait for the end of a task, whatever that is. Every task here has a time limit of its own."""
    if task is not None and not task.done():
        await asyncio.wait({task})

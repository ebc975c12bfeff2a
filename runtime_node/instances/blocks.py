"""What becomes of an instance that blocks its event loop or the interpreter: told, demoted, stopped.

The watchdog and the PROCESS tier find blocks out; who demotes or stops an instance is the lifecycle.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from functools import partial

from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance as InstanceMessage
from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec, Limits
from runtime_node.instances.block_history import PERIOD, Tier, Verdict
from runtime_node.instances.record import BLOCKED_LOOP, DEMOTED, Instance, Run, error_message
from runtime_node.instances.transitions import Transitions
from runtime_node.watchdog import Block, BlockPolicy, Stage, Watchdog
from services.rpc.errors import SupervisorError
from services.spec.effective import effective_limits

REASON = "APP_BLOCKED_LOOP"
log = logging.getLogger("runtime_node.instances")

_BLAME_SECONDS, _BLAME_SLACK = 0.25, 0.1
_LAST_PART = 0.1
"""Part of its budget that an instance has left in the tier it is about to leave."""

_SENTENCES = {
    Stage.BEGUN: "It blocked its event loop for {:.2f} s and was interrupted.",
    Stage.STUCK: (
        "It has blocked its event loop for {:.2f} s and cannot be interrupted: it waits in a call outside of "
        "Python, or swallows the interruption."
    ),
    Stage.HELD: "It held the interpreter's lock for {:.2f} s; nothing else in its process ran meanwhile.",
}


class Blocks:
    """Holds instances to their block budget. Belongs to the control loop."""

    def __init__(
        self,
        transitions: Transitions,
        watchdog: Watchdog,
        running: Mapping[str, Instance],
        *,
        has_tier: Callable[[Tier], bool],
        start_over: Callable[[Instance], None],
        fail: Callable[[Instance, Run, SupervisorError], None],
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        """`start_over` starts an instance again in the tier its history demands; `fail` ends it for good."""
        self._transitions = transitions
        self._watchdog = watchdog
        self._running = running
        self._has_tier = has_tier
        self._start_over = start_over
        self._fail = fail
        self._clock = clock
        self._wall = wall
        self._loop = asyncio.get_running_loop()
        watchdog.subscribe(self._from_any_thread)

    def enter(self, instance: Instance, run: Run) -> None:
        """Hold a life to its budget from its start on; a guest in a process has its own watch."""
        if run.tier == InstanceSpec.PROCESS:
            return
        limits = effective_limits(run.spec)
        budget = limits.block_budget
        if run.tier == InstanceSpec.THREAD:
            # A startup that computes on a loop of its own delays nobody; the start's time limit bounds it.
            budget = max(budget, limits.start_timeout)
        run.blocking = BlockPolicy(budget, partial(self._from_watchdog, instance, run))
        self._watchdog.enter(instance.name, run.blocking)

    def ready(self, run: Run) -> None:
        """Take note that a life serves."""
        if run.blocking is not None:
            run.blocking.budget = effective_limits(run.spec).block_budget
            self._watchdog.retune()

    def leave(self, instance: Instance, run: Run) -> None:
        """Forget a life that is over."""
        if run.blocking is not None:
            self._watchdog.leave(instance.name, run.blocking)

    def told(self, instance: Instance, run: Run, block: Block) -> None:
        """Record a block and do what the app's policy says."""
        if instance.run is not run or run.down is not None:
            return
        if block.stage is Stage.OVER:
            instance.gate.reconcile()
            return
        past = instance.past()
        if block.stage is Stage.BEGUN:
            past.rescue_count += 1
        sentence = _SENTENCES[block.stage].format(block.seconds)
        error = SupervisorError(REASON, sentence, metadata={"detail": block.stack})
        past.last_error = error_message(error, self._wall())
        instance.set_condition(BLOCKED_LOOP, True, REASON, sentence, self._wall())
        self._transitions.log(
            instance, "blocked", logging.WARNING, stage=block.stage.name, seconds=f"{block.seconds:.2f}",
            stack=block.stack,
        )  # fmt: skip
        limits = effective_limits(run.spec)
        verdict = past.block_history.judge(
            block, self._clock(), tier=run.tier, budget=limits.block_budget, action=limits.block_action,
            starting=run.running is None,
        )  # fmt: skip
        if past.quiet is None:
            past.quiet = self._loop.call_later(PERIOD, self._grown_quiet, instance)
        if verdict is None or not self._carry_out(instance, run, verdict, error):
            self._transitions.reassess(instance, tell=True)

    def _from_any_thread(self, block: Block) -> None:
        with contextlib.suppress(RuntimeError):  # the node has ended meanwhile
            self._loop.call_soon_threadsafe(self._blame, block)

    def _blame(self, block: Block) -> None:
        """Find out who held the interpreter's lock on the shared loop, if its thread could not tell.

        The request that did was answered right after the hold and had taken at least as long, which no other
        had unless it was under way since before.
        """
        now = self._clock()
        suspects = []
        for instance in self._running.values():
            answered, took = instance.gate.last_slow
            run = instance.run
            if (
                run is not None
                and run.tier == InstanceSpec.SHARED
                and now - answered < _BLAME_SECONDS
                and took >= block.seconds - _BLAME_SLACK
            ):
                suspects.append((instance, run))
        if len(suspects) == 1:
            self.told(*suspects[0], block)
            return
        names = [instance.name for instance, _ in suspects]
        log.warning(
            "nobody can be blamed for a hold of the interpreter's lock",
            extra={"action": "node.held", "suspects": names, "stack": block.stack},
        )

    def ends_for_good(self, run: Run, error: SupervisorError) -> bool:
        """Tell whether an app was ended by its tier for a block, and its policy is to leave it so."""
        return error.reason == REASON and effective_limits(run.spec).block_action == Limits.STOP

    def _carry_out(self, instance: Instance, run: Run, verdict: Verdict, error: SupervisorError) -> bool:
        """Demote or stop an instance; return whether that was told already."""
        serving = instance.state == InstanceMessage.RUNNING and instance.task is None
        past = instance.past()
        if verdict.tier is None:
            if not serving:
                return False
            past.block_history.forget()
            stopped = SupervisorError(REASON, verdict.sentence, metadata=error.metadata)
            past.last_error = error_message(stopped, self._wall())
            self._fail(instance, run, stopped)
            return True
        if not self._has_tier(verdict.tier) or past.tier_floor >= verdict.tier:
            return False
        past.block_history.forget()
        past.tier_floor = verdict.tier
        instance.set_condition(DEMOTED, True, REASON, verdict.sentence, self._wall())
        tiers = {
            "was": InstanceSpec.IsolationTier.Name(run.tier),
            "tier": InstanceSpec.IsolationTier.Name(verdict.tier),
        }
        self._transitions.log(instance, "demoted", logging.WARNING, message=verdict.sentence, **tiers)
        if run.blocking is not None:
            # What it has begun already ends where it is, but no more at its neighbours' expense.
            run.blocking.budget *= _LAST_PART
            self._watchdog.retune()
        if not serving:
            # Its start fails by the interruption, and the next one is in the other tier.
            return False
        past.restart_count += 1
        self._start_over(instance)
        return True

    def _grown_quiet(self, instance: Instance) -> None:
        past = instance.past()
        left = past.block_history.last + PERIOD - self._clock()
        past.quiet = None
        if instance.state != InstanceMessage.RUNNING:
            return
        if left > 0:
            past.quiet = self._loop.call_later(left, self._grown_quiet, instance)
            return
        instance.clear_condition(BLOCKED_LOOP, "Quiet", f"It has not blocked for {PERIOD:g} s.", self._wall())
        self._transitions.reassess(instance, tell=True)

    def _from_watchdog(self, instance: Instance, run: Run, block: Block) -> None:
        try:
            self._loop.call_soon_threadsafe(self.told, instance, run, block)
        except RuntimeError:
            return  # the node has ended meanwhile

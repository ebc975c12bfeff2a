"""What becomes of an instance whose start failed or that ended by itself: another start, later, or none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance as InstanceMessage
from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec
from runtime_node.instances.record import BACKING_OFF, CRASH_LOOP, Instance, error_message
from runtime_node.instances.states import Event
from runtime_node.instances.supervision import Again
from runtime_node.instances.transitions import Transitions
from services.rpc.errors import SupervisorError
from services.spec.effective import effective_restart_policy

HOLD_SECONDS = 5.0
"""After a crash requests wait for a restart that is at most this far away.

Else, and after a start that failed, which is likely to fail again, they are told why and when to come again.
"""


class Failures:
    """Applies restart policies. `retry` is called, on the control loop, when a restart is due."""

    def __init__(
        self,
        transitions: Transitions,
        *,
        retry: Callable[[Instance], None],
        clock: Callable[[], float],
        wall: Callable[[], float],
        uniform: Callable[[float, float], float],
    ) -> None:
        self._transitions = transitions
        self._retry = retry
        self._clock = clock
        self._wall = wall
        self._uniform = uniform
        self._loop = asyncio.get_running_loop()

    def ended(
        self, instance: Instance, error: SupervisorError | None, event: Event, spec: InstanceSpec
    ) -> None:
        """Move an instance that ended by `event`, with or without an error, and plan what comes next."""
        past = instance.past()
        if error is not None:
            past.last_error = error_message(error, self._wall())
        policy = effective_restart_policy(spec.restart_policy)
        reason = None if error is None else error.reason
        decision = past.restarts.decide(policy, self._clock(), reason, self._uniform)
        told = error or SupervisorError("APP_EXITED", "It ended by itself, without an error.")
        if isinstance(decision, Again):
            self._again(instance, decision, event, told)
        elif decision.crash_loop:
            times = f"more than {policy.max_restarts} times within {policy.period:g} s"
            text = f"It ended {times} and is left so until it is started or restarted by hand."
            instance.set_condition(CRASH_LOOP, True, "APP_CRASH_LOOP", text, self._wall())
            self._for_good(instance, event, SupervisorError("APP_CRASH_LOOP", text))
        elif error is None:
            self._transitions.move(instance, Event.FINISH)
            close = partial(instance.gate.close, "APP_STOPPED")
            self._transitions.shut(instance, close)
        else:
            self._for_good(instance, event, error)

    def _again(self, instance: Instance, again: Again, event: Event, error: SupervisorError) -> None:
        now = self._wall()
        at = datetime.fromtimestamp(now + again.delay, UTC).isoformat(timespec="milliseconds")
        text = f"Restart {again.number} in this period comes in {again.delay:.1f} s, at {at}."
        instance.set_condition(BACKING_OFF, True, error.reason, text, now)
        facts = {"reason": error.reason, "message": error.message, "retry_in_s": f"{again.delay:.2f}"}
        self._transitions.move(instance, event, **facts)
        if event is Event.CRASH and again.delay <= HOLD_SECONDS:
            self._transitions.shut(instance, partial(instance.gate.hold, wait))
        else:
            close = partial(instance.gate.close, error.reason, again.delay)
            self._transitions.shut(instance, close)
        instance.past().retry = self._loop.call_later(again.delay, self._due, instance)

    def _for_good(self, instance: Instance, event: Event, error: SupervisorError) -> None:
        instance.clear_condition(BACKING_OFF, error.reason, "It is not started again.", self._wall())
        self._transitions.move(instance, event, reason=error.reason, message=error.message)
        self._transitions.shut(instance, partial(instance.gate.close, error.reason))

    def _due(self, instance: Instance) -> None:
        instance.past().retry = None
        if instance.state == InstanceMessage.FAILED:
            self._retry(instance)

    def forget_retry(self, instance: Instance) -> None:
        """Plan no restart any more."""
        if instance.history is not None and instance.history.retry is not None:
            instance.history.retry.cancel()
            instance.history.retry = None


def wait() -> None:
    """A held request wants the instance: it just waits, for a start is under way or planned already."""

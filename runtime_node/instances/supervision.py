"""Decides whether and when an instance that ended is started again, in the policy of Erlang/OTP. Pure.

Restart intensity and period are those of an OTP supervisor; the jittered exponential delay is ours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from appsupervisor.runtime.v1.runtime_environment_pb2 import RestartPolicy
from services.spec.effective import EffectiveRestartPolicy

FINAL_REASONS = frozenset(
    {
        "ENTRYPOINT_MALFORMED",
        "ENTRYPOINT_MODULE_NOT_FOUND",
        "ENTRYPOINT_ATTRIBUTE_NOT_FOUND",
        "ENTRYPOINT_NOT_AN_APP",
        "ISOLATION_UNSUPPORTED",
        "DATA_MISSING",
    }
)
"""Failures that a repeat cannot cure: only another spec or other code on the node can."""


@dataclass(frozen=True, slots=True)
class Again:
    """Start again after `delay` seconds; it is restart `number` of the current period."""

    delay: float
    number: int


@dataclass(frozen=True, slots=True)
class Leave:
    """Leave it ended; `crash_loop` when it is left because it was restarted too often."""

    crash_loop: bool = False


class RestartHistory:
    """The restarts of one instance within the period of its policy."""

    __slots__ = ("_restarts",)

    def __init__(self) -> None:
        self._restarts: deque[float] = deque()

    def decide(
        self,
        policy: EffectiveRestartPolicy,
        now: float,
        reason: str | None,
        uniform: Callable[[float, float], float],
    ) -> Again | Leave:
        """Decide about an end at monotonic time `now`; `reason` is None for an end without an error.

        A decision to start again is remembered as a restart. `uniform(low, high)` draws the jitter.
        """
        if reason in FINAL_REASONS or not _wanted(policy, reason):
            return Leave()
        while self._restarts and self._restarts[0] <= now - policy.period:
            self._restarts.popleft()
        if len(self._restarts) >= policy.max_restarts:
            return Leave(crash_loop=True)
        self._restarts.append(now)
        number = len(self._restarts)
        return Again(delay=uniform(*backoff_range(policy, number)), number=number)

    def forget(self) -> None:
        """Begin afresh, as a restart by hand does."""
        self._restarts.clear()


def _wanted(policy: EffectiveRestartPolicy, reason: str | None) -> bool:
    if policy.mode == RestartPolicy.PERMANENT:
        return True
    return policy.mode == RestartPolicy.TRANSIENT and reason is not None


def backoff_range(policy: EffectiveRestartPolicy, number: int) -> tuple[float, float]:
    """Return the range of seconds from which the delay of restart `number` (from 1) is drawn.

    A quarter to either side of the doubled delay, never outside the policy's bounds.
    """
    # 2**32 first delays exceed any allowed ceiling; the bound keeps the power finite.
    delay = min(policy.max_backoff, policy.min_backoff * 2.0 ** min(number - 1, 32))
    return max(policy.min_backoff, 0.75 * delay), max(
        policy.min_backoff, min(policy.max_backoff, 1.25 * delay)
    )

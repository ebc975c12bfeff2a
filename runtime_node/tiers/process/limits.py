"""The limits of one instance as this tier applies them, from its spec, with the documented defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec, Limits
from runtime_node.tiers.process.rlimits import Rlimits
from services.spec.effective import effective_limits

_UNSET: Final = effective_limits(InstanceSpec())
MAX_PROCESSES: Final = 64
TASKS_PER_PROCESS: Final = 16
"""The kernel counts threads too: room for as many as a process of a web app has, none for a fork bomb."""
UNRESPONSIVE_SECONDS: Final = 30.0
"""A loop that cannot be interrupted is given up after this time: as long as a request may take at most."""
STUCK_SECONDS: Final = 1.0
"""Where the policy is to stop it, after this time beyond the budget; as in the other tiers."""


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """What one guest is bound by: seconds, bytes and counts; 0 bytes and 0 millis mean no bound."""

    block_budget: float = _UNSET.block_budget
    block_action: int = _UNSET.block_action
    unresponsive_seconds: float = UNRESPONSIVE_SECONDS
    stop_timeout: float = _UNSET.stop_timeout
    memory_bytes: int = 0
    cpu_millis: int = 0
    max_threads: int = _UNSET.max_threads
    max_processes: int = MAX_PROCESSES
    max_tasks: int = TASKS_PER_PROCESS * MAX_PROCESSES
    max_files: int = 1024

    @classmethod
    def of(cls, spec: InstanceSpec) -> ProcessLimits:
        """Return the limits of a spec. No tier is stricter than this one: `DEMOTE` here interrupts only."""
        limits = effective_limits(spec)
        budget = limits.block_budget
        stops = limits.block_action == Limits.STOP
        patience = budget + STUCK_SECONDS if stops else max(UNRESPONSIVE_SECONDS, 2 * budget)
        return cls(
            block_budget=budget,
            block_action=limits.block_action,
            unresponsive_seconds=patience,
            stop_timeout=limits.stop_timeout,
            memory_bytes=limits.memory_bytes or 0,
            cpu_millis=limits.cpu_millis or 0,
            max_threads=limits.max_threads,
            # A connection per request, a WebSocket each, and as many for the app's own.
            max_files=max(1024, 4 * limits.max_concurrent_requests),
        )

    def of_guest(self) -> Rlimits:
        """Return what the guest puts on itself."""
        return Rlimits(
            memory_bytes=self.memory_bytes,
            cpu_millis=self.cpu_millis,
            max_threads=self.max_threads,
            max_files=self.max_files,
        )

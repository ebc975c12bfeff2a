"""Counts the outcomes of one run's probes and says how healthy it is by them. Pure."""

from __future__ import annotations

from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance
from services.spec.effective import EffectiveHealthCheck


class Probe:
    """What the probes of one run of an instance have shown."""

    __slots__ = ("_failures", "_successes", "check", "health", "last_failure")

    def __init__(self, check: EffectiveHealthCheck) -> None:
        self.check = check
        self.health: Instance.Health.ValueType = Instance.Health.UNKNOWN
        self.last_failure = ""
        self._successes = 0
        self._failures = 0

    @property
    def fails(self) -> bool:
        """Whether the newest probe failed, or too few have succeeded since one did."""
        return self.health in (Instance.Health.DEGRADED, Instance.Health.UNHEALTHY)

    def record(self, failure: str | None) -> None:
        """Take note of one probe's outcome: None for a success, else what was wrong."""
        if failure is None:
            self._successes += 1
            self._failures = 0
            if self.health != Instance.Health.UNHEALTHY or self._successes >= self.check.success_threshold:
                self.health = Instance.Health.HEALTHY
        else:
            self._failures += 1
            self._successes = 0
            self.last_failure = failure
            if self._failures >= self.check.failure_threshold:
                self.health = Instance.Health.UNHEALTHY
            elif self.health != Instance.Health.UNHEALTHY:
                self.health = Instance.Health.DEGRADED

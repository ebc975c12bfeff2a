"""The values that what runs of an app is bound by: everything that is not set has its default. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from appsupervisor.runtime.v1.runtime_environment_pb2 import HealthCheck, InstanceSpec, Limits, RestartPolicy
from services.spec.defaults import DEFAULT_IDLE_TIMEOUT, fill_health_check, fill_limits, fill_restart_policy
from services.spec.scalars import SECOND, seconds


@dataclass(frozen=True, slots=True)
class EffectiveLimits:
    """Resolved `Limits`; times in seconds, sizes in bytes, None for no bound."""

    max_concurrent_requests: int
    max_queued_requests: int
    request_timeout: float
    start_timeout: float
    stop_timeout: float
    max_request_body_bytes: int
    max_websocket_message_bytes: int
    websocket_compression: bool
    max_threads: int
    memory_bytes: int | None
    cpu_millis: int | None
    block_budget: float
    block_action: Limits.BlockAction.ValueType


@dataclass(frozen=True, slots=True)
class EffectiveHealthCheck:
    """Resolved `HealthCheck`; times in seconds. An empty path asks for no probe."""

    path: str
    interval: float
    timeout: float
    success_threshold: int
    failure_threshold: int


@dataclass(frozen=True, slots=True)
class EffectiveRestartPolicy:
    """Resolved `RestartPolicy`; times in seconds."""

    mode: RestartPolicy.Mode.ValueType
    max_restarts: int
    period: float
    min_backoff: float
    max_backoff: float


# Thousands of apps share a few sets of limits; equal bytes share one object.
@lru_cache(maxsize=1024)
def _effective_limits(raw: bytes) -> EffectiveLimits:
    limits = Limits.FromString(raw)
    fill_limits(limits)
    return EffectiveLimits(
        max_concurrent_requests=limits.max_concurrent_requests,
        max_queued_requests=limits.max_queued_requests,
        request_timeout=seconds(limits.request_timeout),
        start_timeout=seconds(limits.start_timeout),
        stop_timeout=seconds(limits.stop_timeout),
        max_request_body_bytes=limits.max_request_body_bytes,
        max_websocket_message_bytes=limits.max_websocket_message_bytes,
        websocket_compression=limits.websocket_compression,
        max_threads=limits.max_threads,
        memory_bytes=limits.memory_bytes or None,
        cpu_millis=limits.cpu_millis or None,
        block_budget=seconds(limits.block_budget),
        block_action=limits.block_action,
    )


def effective_limits(spec: InstanceSpec) -> EffectiveLimits:
    """Return the spec's limits with defaults."""
    return _effective_limits(spec.limits.SerializeToString(deterministic=True))


def effective_health_check(check: HealthCheck) -> EffectiveHealthCheck:
    """Return the probe's settings with defaults; the default timeout never exceeds the interval."""
    full = HealthCheck()
    full.CopyFrom(check)
    fill_health_check(full)
    return EffectiveHealthCheck(
        path=full.path,
        interval=seconds(full.interval),
        timeout=seconds(full.timeout),
        success_threshold=full.success_threshold,
        failure_threshold=full.failure_threshold,
    )


def effective_restart_policy(policy: RestartPolicy) -> EffectiveRestartPolicy:
    """Return the restart policy with defaults; the default ceiling is never below the first delay."""
    full = RestartPolicy()
    full.CopyFrom(policy)
    fill_restart_policy(full)
    return EffectiveRestartPolicy(
        mode=full.mode,
        max_restarts=full.max_restarts,
        period=seconds(full.period),
        min_backoff=seconds(full.min_backoff),
        max_backoff=seconds(full.max_backoff),
    )


def idle_timeout(spec: InstanceSpec) -> float:
    """Return the seconds without a request after which an ON_REQUEST instance goes dormant."""
    return seconds(spec.idle_timeout) if spec.HasField("idle_timeout") else DEFAULT_IDLE_TIMEOUT / SECOND

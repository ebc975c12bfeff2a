"""What an instance runs under: limits, health check and restart policy with every default filled in. Pure.

The defaults are those that runtime_environment.proto documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from appsupervisor.runtime.v1.runtime_environment_pb2 import HealthCheck, InstanceSpec, Limits, RestartPolicy

MIB = 1024 * 1024


def seconds(duration: Duration) -> float:
    """Return a duration in seconds."""
    return duration.seconds + duration.nanos / 1e9


def _span(message: Message, field: str, default: float) -> float:
    return seconds(getattr(message, field)) if message.HasField(field) else default


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
def _limit_terms(raw: bytes) -> EffectiveLimits:
    limits = Limits.FromString(raw)
    return EffectiveLimits(
        max_concurrent_requests=limits.max_concurrent_requests or 64,
        max_queued_requests=(limits.max_queued_requests if limits.HasField("max_queued_requests") else 128),
        request_timeout=_span(limits, "request_timeout", 30.0),
        start_timeout=_span(limits, "start_timeout", 30.0),
        stop_timeout=_span(limits, "stop_timeout", 10.0),
        max_request_body_bytes=(
            limits.max_request_body_bytes if limits.HasField("max_request_body_bytes") else 32 * MIB
        ),
        max_websocket_message_bytes=limits.max_websocket_message_bytes or MIB,
        websocket_compression=limits.websocket_compression,
        max_threads=limits.max_threads or 8,
        memory_bytes=limits.memory_bytes or None,
        block_budget=_span(limits, "block_budget", 1.0),
        block_action=limits.block_action or Limits.DEMOTE,
    )


def effective_limits(spec: InstanceSpec) -> EffectiveLimits:
    """Return the spec's limits with defaults."""
    return _limit_terms(spec.limits.SerializeToString(deterministic=True))


def effective_health_check(check: HealthCheck) -> EffectiveHealthCheck:
    """Return the probe's settings with defaults; the default timeout never exceeds the interval."""
    interval = _span(check, "interval", 10.0)
    return EffectiveHealthCheck(
        path=check.path,
        interval=interval,
        timeout=_span(check, "timeout", min(2.0, interval)),
        success_threshold=check.success_threshold or 1,
        failure_threshold=check.failure_threshold or 3,
    )


def effective_restart_policy(policy: RestartPolicy) -> EffectiveRestartPolicy:
    """Return the restart policy with defaults; the default ceiling is never below the first delay."""
    min_backoff = _span(policy, "min_backoff", 1.0)
    return EffectiveRestartPolicy(
        mode=policy.mode or RestartPolicy.PERMANENT,
        max_restarts=policy.max_restarts if policy.HasField("max_restarts") else 5,
        period=_span(policy, "period", 300.0),
        min_backoff=min_backoff,
        max_backoff=max(min_backoff, _span(policy, "max_backoff", 60.0)),
    )


def idle_timeout(spec: InstanceSpec) -> float:
    """Return the seconds without a request after which an ON_REQUEST instance goes dormant."""
    return _span(spec, "idle_timeout", 300.0)

"""The defaults of what runs of an app, as the protos' comments state them. Pure, total.

Takes an `App` and an `InstanceSpec` alike, valid or not, so that checking comes after it.
"""

from __future__ import annotations

from google.protobuf.message import Message

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.runtime.v1.runtime_environment_pb2 import (
    Database,
    HealthCheck,
    InstanceSpec,
    Limits,
    RestartPolicy,
)
from services.spec.availability import effective_availability, serves_alone
from services.spec.scalars import SECOND, nanoseconds, normalize_domain, set_nanoseconds

DEFAULT_IDLE_TIMEOUT = 300 * SECOND
DEFAULT_PROBE_TIMEOUT = 2 * SECOND
DEFAULT_MAX_BACKOFF = 60 * SECOND
# A default stays within its own range even where the value it follows does not.
_LONGEST_PROBE_TIMEOUT = 60 * SECOND
_MIN_PROBE_TIMEOUT = SECOND // 100
_LONGEST_MAX_BACKOFF = 3600 * SECOND


def fill_runtime(spec: App | InstanceSpec) -> None:
    """Bring what runs of an app into full form, in place; domains into the form they are compared in.

    A default never breaks a rule together with a value that was set: an unset probe timeout is at most the
    interval, an unset longest backoff at least the first one.
    """
    spec.activation = spec.activation or InstanceSpec.EAGER
    if spec.database.WhichOneof("kind") is None:
        spec.database.sqlite.SetInParent()
    if spec.database.WhichOneof("kind") == "postgres":
        spec.database.postgres.mode = spec.database.postgres.mode or Database.Postgres.SCHEMA
    if not serves_alone(spec):  # else what holds is told by its node, and may change
        spec.availability = effective_availability(spec)
    if spec.activation == InstanceSpec.ON_REQUEST:
        default_duration(spec, "idle_timeout", DEFAULT_IDLE_TIMEOUT)
    if spec.domains:
        domains = [normalize_domain(domain) for domain in spec.domains]
        del spec.domains[:]
        spec.domains.extend(domains)
    # Most apps set none of these: they get what was filled in once.
    if spec.limits.ByteSize():
        fill_limits(spec.limits)
    else:
        spec.limits.CopyFrom(DEFAULT_LIMITS)
    if spec.health_check.ByteSize():
        fill_health_check(spec.health_check)
    else:
        spec.health_check.CopyFrom(DEFAULT_HEALTH_CHECK)
    if spec.restart_policy.ByteSize():
        fill_restart_policy(spec.restart_policy)
    else:
        spec.restart_policy.CopyFrom(DEFAULT_RESTART_POLICY)


def fill_limits(limits: Limits) -> None:
    """Fill in the defaults of limits, in place."""
    limits.max_concurrent_requests = limits.max_concurrent_requests or 64
    if not limits.HasField("max_queued_requests"):
        limits.max_queued_requests = 128
    default_duration(limits, "request_timeout", 30 * SECOND)
    default_duration(limits, "start_timeout", 30 * SECOND)
    default_duration(limits, "stop_timeout", 10 * SECOND)
    if not limits.HasField("max_request_body_bytes"):
        limits.max_request_body_bytes = 32 * 1024 * 1024
    limits.max_websocket_message_bytes = limits.max_websocket_message_bytes or 1024 * 1024
    limits.max_threads = limits.max_threads or 8
    default_duration(limits, "block_budget", SECOND)
    limits.block_action = limits.block_action or Limits.DEMOTE


def fill_health_check(check: HealthCheck) -> None:
    """Fill in the defaults of a health check, in place."""
    set_timeout = min(nanoseconds(check.timeout), _LONGEST_PROBE_TIMEOUT)
    default_duration(check, "interval", max(10 * SECOND, set_timeout))
    default_duration(
        check, "timeout", min(DEFAULT_PROBE_TIMEOUT, max(nanoseconds(check.interval), _MIN_PROBE_TIMEOUT))
    )
    check.success_threshold = check.success_threshold or 1
    check.failure_threshold = check.failure_threshold or 3


def fill_restart_policy(policy: RestartPolicy) -> None:
    """Fill in the defaults of a restart policy, in place."""
    policy.mode = policy.mode or RestartPolicy.PERMANENT
    if not policy.HasField("max_restarts"):
        policy.max_restarts = 5
    default_duration(policy, "period", 300 * SECOND)
    default_duration(policy, "min_backoff", SECOND)
    default_duration(
        policy,
        "max_backoff",
        min(max(DEFAULT_MAX_BACKOFF, nanoseconds(policy.min_backoff)), _LONGEST_MAX_BACKOFF),
    )


def default_duration(message: Message, field: str, nanos: int) -> None:
    """Set a span that is not set."""
    if not message.HasField(field):
        duration = getattr(message, field)
        # Zero leaves both parts at their default; presence must be told apart.
        duration.SetInParent()
        set_nanoseconds(duration, nanos)


DEFAULT_LIMITS, DEFAULT_HEALTH_CHECK, DEFAULT_RESTART_POLICY = Limits(), HealthCheck(), RestartPolicy()
"""What is not set, in full form."""
fill_limits(DEFAULT_LIMITS)
fill_health_check(DEFAULT_HEALTH_CHECK)
fill_restart_policy(DEFAULT_RESTART_POLICY)

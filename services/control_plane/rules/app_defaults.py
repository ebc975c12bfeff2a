"""The spec of an app in its full form: what is not set takes its default, domains their compared form.

Total: takes any App, valid or not, so that checking comes after it.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.api import field_behavior_pb2
from google.protobuf.message import Message

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.runtime.v1.runtime_environment_pb2 import HealthCheck, InstanceSpec, Limits, RestartPolicy
from services.control_plane.rules.names import DEFAULT_ENVIRONMENT
from services.control_plane.rules.scalars import SECOND, nanoseconds, normalize_domain, set_nanoseconds

DEFAULT_IDLE_TIMEOUT = 300 * SECOND
DEFAULT_PROBE_TIMEOUT = 2 * SECOND
DEFAULT_MAX_BACKOFF = 60 * SECOND
# A default stays within its own range even where the value it follows does not.
_LONGEST_PROBE_TIMEOUT = 60 * SECOND
_MIN_PROBE_TIMEOUT = SECOND // 100
_LONGEST_MAX_BACKOFF = 3600 * SECOND


def _fields_with(behavior: int) -> frozenset[str]:
    extension = field_behavior_pb2.field_behavior
    return frozenset(
        field.name for field in App.DESCRIPTOR.fields if behavior in field.GetOptions().Extensions[extension]
    )


OUTPUT_ONLY_FIELDS = _fields_with(field_behavior_pb2.OUTPUT_ONLY)
IDENTITY_FIELDS = frozenset({"name", "etag"})
"""Fields that say which app, and which version of it, is meant; no update sets them."""
SPEC_FIELDS = tuple(
    field.name
    for field in App.DESCRIPTOR.fields
    if field.name not in OUTPUT_ONLY_FIELDS and field.name not in IDENTITY_FIELDS
)
"""Fields that make up the spec: a change of one of them is a new generation."""
RUNTIME_FIELDS = (
    "entrypoint",
    "config",
    "env",
    "secret_env",
    "database",
    "domains",
    "activation",
    "idle_timeout",
    "isolation",
    "event_loop",
    "limits",
    "health_check",
    "restart_policy",
)
"""Spec fields that a node is told of: a change of one of them is carried out as a swap."""


def normalize_app(app: App) -> App:
    """Return a copy in full form, without what is output-only; `name` stays, `etag` is cleared."""
    full = App()
    full.CopyFrom(app)
    # No rule bounds fields that this version doesn't know: kept, they could be of any size.
    full.DiscardUnknownFields()
    clear_fields(full, (*OUTPUT_ONLY_FIELDS, "etag"))
    fill_defaults(full)
    return full


def clear_fields(message: Message, fields: Iterable[str]) -> None:
    """Clear fields of a message by name."""
    for field in fields:
        message.ClearField(field)


def fill_defaults(app: App) -> None:
    """Bring the spec of `app` into full form, in place.

    A default never breaks a rule together with a value that was set: an unset probe timeout is at most the
    interval, an unset longest backoff at least the first one.
    """
    app.environment = app.environment or DEFAULT_ENVIRONMENT
    app.replicas = app.replicas or 1
    app.activation = app.activation or InstanceSpec.EAGER
    app.desired_state = app.desired_state or App.RUNNING
    if app.database.WhichOneof("kind") is None:
        app.database.sqlite.SetInParent()
    if app.activation == InstanceSpec.ON_REQUEST:
        _default_duration(app, "idle_timeout", DEFAULT_IDLE_TIMEOUT)
    if app.domains:
        domains = [normalize_domain(domain) for domain in app.domains]
        del app.domains[:]
        app.domains.extend(domains)
    _fill_limits(app.limits)
    _fill_health_check(app.health_check)
    _fill_restart_policy(app.restart_policy)


def runtime_fields_changed(old: App, new: App) -> bool:
    """Tell whether what runs differs, which asks for a swap of the instance; takes full forms."""
    return any(getattr(old, field) != getattr(new, field) for field in RUNTIME_FIELDS)


def _fill_limits(limits: Limits) -> None:
    limits.max_concurrent_requests = limits.max_concurrent_requests or 64
    if not limits.HasField("max_queued_requests"):
        limits.max_queued_requests = 128
    _default_duration(limits, "request_timeout", 30 * SECOND)
    _default_duration(limits, "start_timeout", 30 * SECOND)
    _default_duration(limits, "stop_timeout", 10 * SECOND)
    if not limits.HasField("max_request_body_bytes"):
        limits.max_request_body_bytes = 32 * 1024 * 1024
    limits.max_websocket_message_bytes = limits.max_websocket_message_bytes or 1024 * 1024
    limits.max_threads = limits.max_threads or 8
    _default_duration(limits, "block_budget", SECOND)
    limits.block_action = limits.block_action or Limits.DEMOTE


def _fill_health_check(check: HealthCheck) -> None:
    set_timeout = min(nanoseconds(check.timeout), _LONGEST_PROBE_TIMEOUT)
    _default_duration(check, "interval", max(10 * SECOND, set_timeout))
    _default_duration(
        check, "timeout", min(DEFAULT_PROBE_TIMEOUT, max(nanoseconds(check.interval), _MIN_PROBE_TIMEOUT))
    )
    check.success_threshold = check.success_threshold or 1
    check.failure_threshold = check.failure_threshold or 3


def _fill_restart_policy(policy: RestartPolicy) -> None:
    policy.mode = policy.mode or RestartPolicy.PERMANENT
    if not policy.HasField("max_restarts"):
        policy.max_restarts = 5
    _default_duration(policy, "period", 300 * SECOND)
    _default_duration(policy, "min_backoff", SECOND)
    _default_duration(
        policy,
        "max_backoff",
        min(max(DEFAULT_MAX_BACKOFF, nanoseconds(policy.min_backoff)), _LONGEST_MAX_BACKOFF),
    )


def _default_duration(message: Message, field: str, nanos: int) -> None:
    if not message.HasField(field):
        duration = getattr(message, field)
        # Zero leaves both parts at their default; presence must be told apart.
        duration.SetInParent()
        set_nanoseconds(duration, nanos)

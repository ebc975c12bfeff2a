"""The spec of an app in its full form: what is not set takes its default, domains their compared form.

Total: takes any App, valid or not, so that checking comes after it.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.api import field_behavior_pb2
from google.protobuf.message import Message

from appsupervisor.catalog.v1.app_catalog_pb2 import App, CanaryPolicy
from services.control_plane.rules.names import DEFAULT_ENVIRONMENT
from services.spec.availability import effective_failover
from services.spec.defaults import fill_runtime
from services.spec.scalars import nanoseconds


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
    "availability",
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
    """Bring the spec of `app` into full form, in place."""
    app.environment = app.environment or DEFAULT_ENVIRONMENT
    app.replicas = app.replicas or 1
    app.desired_state = app.desired_state or App.RUNNING
    fill_runtime(app)
    app.failover = effective_failover(app)
    if app.HasField("rollout") and not app.rollout.ListFields():
        app.ClearField("rollout")  # all of it is as it is when unset
    if app.rollout.HasField("canary"):
        _fill_canary(app.rollout.canary)


def _fill_canary(canary: CanaryPolicy) -> None:
    if canary.HasField("header"):
        canary.header.name = canary.header.name.lower()
    else:
        canary.weight_percent = canary.weight_percent or 10
    if not canary.HasField("duration"):
        canary.duration.FromSeconds(60)
    if not canary.HasField("timeout"):
        canary.timeout.FromSeconds(3600)
        if nanoseconds(canary.duration) > nanoseconds(canary.timeout):
            canary.timeout.CopyFrom(canary.duration)
    canary.min_request_count = canary.min_request_count or 50
    if not canary.HasField("max_error_ratio"):
        canary.max_error_ratio = 0.05


def runtime_fields_changed(old: App, new: App) -> bool:
    """Tell whether what runs differs, which asks for a swap of the instance; takes full forms."""
    before = App()
    before.CopyFrom(old)
    fill_runtime(before)  # it may be of a version that knew fewer fields: their defaults are no change
    return any(getattr(before, field) != getattr(new, field) for field in RUNTIME_FIELDS)

"""Rules of an app as the catalog keeps it, as the protos' comments state them; all violations at once.

Checks the full form that `app_defaults` makes. The id and `name` are checked by `names`; what runs of it
by `services.spec`; whether an environment or a domain exists is the catalog's to know.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from appsupervisor.catalog.v1.app_catalog_pb2 import App, CanaryPolicy
from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec
from services.control_plane.rules.names import is_environment_name
from services.rpc.errors import Violation
from services.spec.availability import keeps_data_on_node
from services.spec.rules import runtime_violations
from services.spec.scalars import (
    KIB,
    MAX_DISPLAY_NAME,
    SECOND,
    duration_violations,
    enum_violations,
    has_controls,
    integer_violations,
    label_violations,
    nanoseconds,
    quoted_key,
    text_bytes,
    text_violations,
)

_ORDER = {field.name: index for index, field in enumerate(App.DESCRIPTOR.fields)}
_NAME = re.compile("[a-z_]+")
_MAX_ANNOTATIONS = 64 * KIB
_DAY = 24 * 3600 * SECOND
_HEADER = re.compile("[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")
_HEADER_VALUE = re.compile("[ -~]{1,256}")
_TAKEN_HEADERS = frozenset(
    ("host", "connection", "content-length", "transfer-encoding", "upgrade", "te", "x-request-id")
)
_TAKEN_PREFIXES = ("x-appsupervisor-", "x-envoy-", "x-forwarded-")

MAX_REPLICAS = 100


def app_violations(app: App, prefix: str = "app") -> list[Violation]:
    """Return everything that is wrong with the spec of `app`, in the order of its fields."""
    found = [
        *text_violations(f"{prefix}.display_name", app.display_name, MAX_DISPLAY_NAME),
        *label_violations(f"{prefix}.labels", app.labels),
        *_annotation_violations(f"{prefix}.annotations", app.annotations),
        *runtime_violations(prefix, app),
        *label_violations(f"{prefix}.node_selector", app.node_selector),
        *label_violations(f"{prefix}.anti_affinity", app.anti_affinity),
    ]
    if app.environment and not is_environment_name(app.environment):
        found.append(Violation(f"{prefix}.environment", "must have the form environments/{environment}"))
    found += _replica_violations(prefix, app)
    found += enum_violations(f"{prefix}.desired_state", app.desired_state, App.DesiredState.DESCRIPTOR)
    found += enum_violations(f"{prefix}.failover", app.failover, App.Failover.DESCRIPTOR)
    if app.failover == App.AUTOMATIC and keeps_data_on_node(app):
        found.append(Violation(f"{prefix}.failover", "must not be AUTOMATIC where the data is on the node"))
    return sorted(found, key=lambda one: _ORDER[_NAME.match(one.field, len(prefix) + 1)[0]])  # type: ignore[index]


def _replica_violations(prefix: str, app: App) -> list[Violation]:
    found = integer_violations(f"{prefix}.replicas", app.replicas or 1, 1, MAX_REPLICAS)
    share, span = app.rollout.batch_percent, app.rollout.min_ready_duration
    found += integer_violations(f"{prefix}.rollout.batch_percent", share, 0, 100)
    if app.rollout.HasField("min_ready_duration"):
        found += duration_violations(f"{prefix}.rollout.min_ready_duration", span, 0, 3600 * SECOND)
    if app.rollout.HasField("canary"):
        found += _canary_violations(f"{prefix}.rollout.canary", app)
    if keeps_data_on_node(app):
        why = "where the data is on the node (database.sqlite): replicas would not share it"
        if 1 < app.replicas <= MAX_REPLICAS:
            found.append(Violation(f"{prefix}.replicas", f"must be 1 {why}"))
        if app.HasField("autoscale"):
            found.append(Violation(f"{prefix}.autoscale", f"must not be set {why}"))
    return found + (_autoscale_violations(f"{prefix}.autoscale", app) if app.HasField("autoscale") else [])


def _canary_violations(field: str, app: App) -> list[Violation]:
    policy = app.rollout.canary
    found = []
    if keeps_data_on_node(app):
        why = (
            "must not be set where the data is on the node (database.sqlite): "
            "the version that is tried runs on another node, which does not have it"
        )
        found.append(Violation(field, why))
    found += integer_violations(f"{field}.weight_percent", policy.weight_percent, 0, 50)
    if policy.HasField("header"):
        found += _header_violations(f"{field}.header", policy.header)
    found += duration_violations(f"{field}.duration", policy.duration, SECOND, _DAY)
    lowest = max(SECOND, min(nanoseconds(policy.duration), _DAY))
    found += duration_violations(f"{field}.timeout", policy.timeout, lowest, _DAY)
    found += integer_violations(f"{field}.min_request_count", policy.min_request_count, 1, 1_000_000)
    if not 0 <= policy.max_error_ratio <= 1:
        found.append(Violation(f"{field}.max_error_ratio", "must be from 0 to 1"))
    if policy.HasField("max_latency_p99"):
        latency = policy.max_latency_p99
        found += duration_violations(f"{field}.max_latency_p99", latency, SECOND // 1000, 3600 * SECOND)
    return found


def _header_violations(field: str, header: CanaryPolicy.Header) -> list[Violation]:
    found = []
    if not _HEADER.fullmatch(header.name):
        text = "must have 1 to 64 letters, digits and hyphens, with a letter or digit at both ends"
        found.append(Violation(f"{field}.name", text))
    elif header.name in _TAKEN_HEADERS or header.name.startswith(_TAKEN_PREFIXES):
        found.append(Violation(f"{field}.name", "must not be a header that a proxy reads or writes"))
    if not _HEADER_VALUE.fullmatch(header.value) or header.value != header.value.strip():
        text = "must have 1 to 256 printable ASCII characters, without a space at its ends"
        found.append(Violation(f"{field}.value", text))
    return found


def _autoscale_violations(field: str, app: App) -> list[Violation]:
    bounds = app.autoscale
    lowest = 0 if app.activation == InstanceSpec.ON_REQUEST else 1
    found = []
    if bounds.min_replicas < lowest:
        text = "must not be negative" if lowest == 0 else "must be at least 1 where activation is EAGER"
        found.append(Violation(f"{field}.min_replicas", text))
    least = max(1, bounds.min_replicas)
    if not least <= bounds.max_replicas <= MAX_REPLICAS:
        text = f"must be at least 1 and min_replicas, and at most {MAX_REPLICAS}"
        found.append(Violation(f"{field}.max_replicas", text))
    found += integer_violations(f"{field}.target_concurrency", bounds.target_concurrency, 1, 10_000)
    return found


def _annotation_violations(field: str, annotations: Mapping[str, str]) -> list[Violation]:
    found = [
        Violation(quoted_key(field, key), "key must not be empty or have control characters")
        for key in sorted(annotations)
        if not key or has_controls(key)
    ]
    if text_bytes(annotations) > _MAX_ANNOTATIONS:
        found.append(Violation(field, "must be at most 64 KiB in all, keys and values together"))
    return found

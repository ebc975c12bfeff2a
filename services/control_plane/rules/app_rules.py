"""Rules of an app as the catalog keeps it, as the protos' comments state them; all violations at once.

Checks the full form that `app_defaults` makes. The id and `name` are checked by `names`; what runs of it
by `services.spec`; whether an environment or a domain exists is the catalog's to know.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from appsupervisor.catalog.v1.app_catalog_pb2 import App
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
    quoted_key,
    text_bytes,
    text_violations,
)

_ORDER = {field.name: index for index, field in enumerate(App.DESCRIPTOR.fields)}
_NAME = re.compile("[a-z_]+")
_MAX_ANNOTATIONS = 64 * KIB

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
    if keeps_data_on_node(app):
        why = "where the data is on the node (database.sqlite): replicas would not share it"
        if 1 < app.replicas <= MAX_REPLICAS:
            found.append(Violation(f"{prefix}.replicas", f"must be 1 {why}"))
        if app.HasField("autoscale"):
            found.append(Violation(f"{prefix}.autoscale", f"must not be set {why}"))
    return found + (_autoscale_violations(f"{prefix}.autoscale", app) if app.HasField("autoscale") else [])


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

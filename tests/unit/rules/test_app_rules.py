"""Rules and defaults of an app's spec."""

from __future__ import annotations

import math
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Value

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.runtime.v1.runtime_environment_pb2 import (
    Instance,
    InstanceSpec,
    Limits,
    RestartPolicy,
)
from services.control_plane.rules import app_defaults
from services.control_plane.rules.app_defaults import normalize_app, runtime_fields_changed
from services.control_plane.rules.app_rules import app_violations
from services.spec.rules import MAX_CONFIG_DEPTH
from tests.unit.rules.specs import broken, valid

MS = 1_000_000
SECOND = 1000 * MS
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
MIB = 1024**2
GIB = 1024**3


def test_the_least_app_is_valid_and_so_is_its_full_form() -> None:
    assert app_violations(valid()) == []
    assert app_violations(normalize_app(valid())) == []


def test_the_loop_of_asyncio_goes_with_a_process_of_its_own() -> None:
    asyncio_loop, process = InstanceSpec.ASYNCIO, InstanceSpec.PROCESS
    assert broken(event_loop=asyncio_loop, isolation=process) == []
    assert broken(event_loop=InstanceSpec.UVLOOP) == broken() == []
    for isolation in (InstanceSpec.ISOLATION_TIER_UNSPECIFIED, InstanceSpec.SHARED, InstanceSpec.THREAD):
        assert broken(event_loop=asyncio_loop, isolation=isolation) == ["event_loop"]
    assert runtime_fields_changed(valid(), valid(event_loop=asyncio_loop))


def test_every_default_of_the_contract_is_filled_in() -> None:
    app = normalize_app(valid())
    assert (app.replicas, app.activation, app.desired_state) == (1, InstanceSpec.EAGER, App.RUNNING)
    assert app.environment == "environments/default"
    assert app.isolation == InstanceSpec.ISOLATION_TIER_UNSPECIFIED
    assert app.database.WhichOneof("kind") == "sqlite"
    assert not app.HasField("idle_timeout")
    limits = app.limits
    assert (limits.max_concurrent_requests, limits.max_queued_requests, limits.max_threads) == (64, 128, 8)
    assert limits.request_timeout.ToNanoseconds() == 30 * SECOND
    assert limits.start_timeout.ToNanoseconds() == 30 * SECOND
    assert limits.stop_timeout.ToNanoseconds() == 10 * SECOND
    assert limits.max_request_body_bytes == 32 * MIB
    assert (limits.max_websocket_message_bytes, limits.websocket_compression) == (MIB, False)
    assert (limits.memory_bytes, limits.cpu_millis) == (0, 0)
    assert limits.block_budget.ToNanoseconds() == SECOND
    assert limits.block_action == Limits.DEMOTE
    check = app.health_check
    assert (check.path, check.success_threshold, check.failure_threshold) == ("", 1, 3)
    assert check.interval.ToNanoseconds() == 10 * SECOND
    assert check.timeout.ToNanoseconds() == 2 * SECOND
    policy = app.restart_policy
    assert (policy.mode, policy.max_restarts) == (RestartPolicy.PERMANENT, 5)
    assert policy.period.ToNanoseconds() == 5 * MINUTE
    assert policy.min_backoff.ToNanoseconds() == SECOND
    assert policy.max_backoff.ToNanoseconds() == MINUTE


def test_what_is_set_stays_and_an_explicit_zero_is_set() -> None:
    given_ = valid(
        activation=InstanceSpec.ON_REQUEST,
        desired_state=App.STOPPED,
        environment="environments/blue",
        idle_timeout={"seconds": 7},
        database={"no_database": {}},
        limits={"max_queued_requests": 0, "max_request_body_bytes": 0, "stop_timeout": {}},
        restart_policy={"max_restarts": 0},
    )
    app = normalize_app(given_)
    assert (app.activation, app.desired_state, app.environment) == (
        InstanceSpec.ON_REQUEST,
        App.STOPPED,
        "environments/blue",
    )
    assert app.idle_timeout.seconds == 7
    assert app.database.WhichOneof("kind") == "no_database"
    assert app.limits.max_queued_requests == app.limits.max_request_body_bytes == 0
    assert app.limits.stop_timeout.ToNanoseconds() == 0
    assert app.restart_policy.max_restarts == 0
    assert app_violations(app) == []


def test_an_app_on_request_goes_dormant_after_five_minutes() -> None:
    assert normalize_app(valid(activation=InstanceSpec.ON_REQUEST)).idle_timeout.seconds == 300


def test_output_only_fields_and_the_etag_are_cleared_in_a_copy() -> None:
    app = valid(name="apps/x", uid="u", generation=3, uri="http://x", etag='"e"', state=Instance.RUNNING)
    full = normalize_app(app)
    assert full.name == "apps/x"
    assert (full.uid, full.generation, full.uri, full.etag, full.state) == ("", 0, "", "", 0)
    assert app.uid == "u"


def test_the_fields_of_the_spec_are_those_a_caller_owns() -> None:
    assert {"state", "uid", "conditions"} <= app_defaults.OUTPUT_ONLY_FIELDS
    assert {"secret_env", "environment", "desired_state"} <= set(app_defaults.SPEC_FIELDS)
    assert {"name", "etag", "state"}.isdisjoint(app_defaults.SPEC_FIELDS)
    assert set(app_defaults.RUNTIME_FIELDS) <= set(app_defaults.SPEC_FIELDS)


def test_a_default_never_breaks_a_rule_with_what_was_set() -> None:
    app = normalize_app(
        valid(
            health_check={"interval": {"nanos": 500 * MS}}, restart_policy={"min_backoff": {"seconds": 300}}
        )
    )
    assert app.health_check.timeout.ToNanoseconds() == 500 * MS
    assert app.restart_policy.max_backoff.seconds == 300
    assert app_violations(app) == []


@pytest.mark.parametrize(
    ("field", "lowest", "highest"),
    [
        ("idle_timeout", SECOND, DAY),
        ("limits.request_timeout", 10 * MS, HOUR),
        ("limits.start_timeout", 100 * MS, 10 * MINUTE),
        ("limits.stop_timeout", 0, 10 * MINUTE),
        ("limits.block_budget", 50 * MS, MINUTE),
        ("health_check.timeout", 10 * MS, MINUTE),
        ("restart_policy.period", SECOND, DAY),
        ("restart_policy.min_backoff", 10 * MS, 10 * MINUTE),
        ("restart_policy.max_backoff", 10 * MS, HOUR),
    ],
)
def test_spans_are_taken_within_their_range(field: str, lowest: int, highest: int) -> None:
    for value, expected in ((lowest - 1, [field]), (lowest, []), (highest, []), (highest + 1, [field])):
        app = valid(health_check={"interval": {"seconds": 3600}})
        app.restart_policy.min_backoff.nanos = 10 * MS
        *parents, last = field.split(".")
        owner: Any = app
        for parent in parents:
            owner = getattr(owner, parent)
        getattr(owner, last).SetInParent()
        getattr(owner, last).FromNanoseconds(value)
        if field.endswith("min_backoff"):
            app.restart_policy.max_backoff.seconds = 3600
        assert [found.field for found in app_violations(app)] == [f"app.{name}" for name in expected], value


@pytest.mark.parametrize(("value", "is_valid"), [(100 * MS - 1, False), (100 * MS, True), (HOUR + 1, False)])
def test_the_probe_interval_is_taken_within_its_range(value: int, is_valid: bool) -> None:
    app = valid()
    app.health_check.interval.FromNanoseconds(value)
    assert (app_violations(app) == []) == is_valid


@pytest.mark.parametrize(
    ("group", "field", "lowest", "highest"),
    [
        ("limits", "max_concurrent_requests", 1, 10_000),
        ("limits", "max_queued_requests", 0, 100_000),
        ("limits", "max_request_body_bytes", 0, 10 * GIB),
        ("limits", "max_websocket_message_bytes", 1024, 16 * MIB),
        ("limits", "max_threads", 1, 256),
        ("limits", "memory_bytes", 16 * MIB, 64 * GIB),
        ("limits", "cpu_millis", 10, 64_000),
        ("health_check", "success_threshold", 1, 100),
        ("health_check", "failure_threshold", 1, 100),
        ("restart_policy", "max_restarts", 0, 1000),
    ],
)
def test_numbers_are_taken_within_their_range(group: str, field: str, lowest: int, highest: int) -> None:
    for value in (-1, highest + 1, *((lowest - 1,) if lowest > 1 else ())):
        assert broken(**{group: {field: value}}) == [f"{group}.{field}"]
    for value in (lowest, highest):
        assert broken(**{group: {field: value}}) == []


@pytest.mark.parametrize(
    ("seconds", "nanos"), [(1, -1), (-1, 1), (0, 1_000_000_000), (0, -1_000_000_000), (-5, 0), (2**62, 0)]
)
def test_a_malformed_or_negative_span_is_refused(seconds: int, nanos: int) -> None:
    assert broken(limits={"request_timeout": {"seconds": seconds, "nanos": nanos}}) == [
        "limits.request_timeout"
    ]


def test_a_probe_ends_before_the_next_one() -> None:
    check = {"interval": {"seconds": 1}, "timeout": {"seconds": 1, "nanos": 1}}
    assert broken(health_check=check) == ["health_check.timeout"]


def test_the_longest_backoff_is_not_below_the_first() -> None:
    policy = {"min_backoff": {"seconds": 2}, "max_backoff": {"seconds": 1}}
    assert broken(restart_policy=policy) == ["restart_policy.max_backoff"]


@pytest.mark.parametrize(
    "field",
    ["activation", "isolation", "event_loop", "desired_state", "limits.block_action", "restart_policy.mode"],
)
def test_an_enum_value_of_another_version_is_refused(field: str) -> None:
    group, _, name = field.rpartition(".")
    assert broken(**({group: {name: 99}} if group else {name: 99})) == [field]


@pytest.mark.parametrize("count", [-1, 2, 101, 2**31 - 1])
def test_more_than_one_replica_is_refused_where_the_data_is_on_the_node(count: int) -> None:
    assert broken(replicas=count) == ["replicas"]
    found = app_violations(valid(replicas=2))
    assert [it.rule for it in found] == [
        "must be 1 where the data is on the node (database.sqlite): replicas would not share it"
    ]


NO_DATA: dict[str, Any] = {"database": {"no_database": {}}}
BOUNDS = {"min_replicas": 1, "max_replicas": 3, "target_concurrency": 10}


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"replicas": 100}, []),
        ({"replicas": 101}, ["replicas"]),
        ({"rollout": {"batch_percent": 100, "min_ready_duration": {"seconds": 3600}, "paused": True}}, []),
        (
            {"rollout": {"batch_percent": 101, "min_ready_duration": {"seconds": 3601}}},
            ["rollout.batch_percent", "rollout.min_ready_duration"],
        ),
        ({"autoscale": BOUNDS}, []),
        (
            {"autoscale": {}},
            ["autoscale.min_replicas", "autoscale.max_replicas", "autoscale.target_concurrency"],
        ),
        ({"autoscale": {**BOUNDS, "min_replicas": 4}}, ["autoscale.max_replicas"]),
        ({"autoscale": {**BOUNDS, "max_replicas": 101}}, ["autoscale.max_replicas"]),
        ({"autoscale": {**BOUNDS, "min_replicas": 0}}, ["autoscale.min_replicas"]),
        ({"autoscale": {**BOUNDS, "min_replicas": 0}, "activation": InstanceSpec.ON_REQUEST}, []),
        (
            {"autoscale": {**BOUNDS, "min_replicas": -1}, "activation": InstanceSpec.ON_REQUEST},
            ["autoscale.min_replicas"],
        ),
    ],
    ids=str,
)
def test_replicas_have_their_bounds(fields: dict[str, Any], wrong: list[str]) -> None:
    assert broken(**NO_DATA, **fields) == wrong


CANARY = {"replicas": 2, "rollout": {"canary": {}}}


def canary(**fields: Any) -> dict[str, Any]:
    return {"replicas": 2, "rollout": {"canary": fields}}


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        (canary(), []),
        (canary(weight_percent=50, sticky=True, header={"name": "X-Try", "value": "yes"}), []),
        (canary(weight_percent=51), ["weight_percent"]),
        (canary(weight_percent=-1), ["weight_percent"]),
        (canary(header={}), ["header.name", "header.value"]),
        (canary(header={"name": "x try", "value": "a\n"}), ["header.name", "header.value"]),
        (canary(header={"name": "Host", "value": "a"}), ["header.name"]),
        (canary(header={"name": "X-Envoy-Retry-On", "value": "a"}), ["header.name"]),
        (canary(duration={"seconds": 0}), ["duration"]),
        (canary(duration={"seconds": 86_400}), []),
        (canary(duration={"seconds": 86_401}), ["duration", "timeout"]),
        (canary(duration={"seconds": 10}, timeout={"seconds": 9}), ["timeout"]),
        (canary(min_request_count=-1), ["min_request_count"]),
        (canary(max_error_ratio=0.0), []),
        (canary(max_error_ratio=1.5), ["max_error_ratio"]),
        (canary(max_error_ratio=float("nan")), ["max_error_ratio"]),
        (canary(max_latency_p99={"nanos": 1}), ["max_latency_p99"]),
        ({**CANARY, "replicas": 1}, []),
        ({**CANARY, "autoscale": BOUNDS}, []),
    ],
    ids=str,
)
def test_a_version_is_tried_within_bounds(fields: dict[str, Any], wrong: list[str]) -> None:
    assert broken(**NO_DATA, **fields) == [f"rollout.canary.{name}".rstrip(".") for name in wrong]


def test_a_version_is_not_tried_where_the_data_is_on_the_node() -> None:
    assert broken(rollout={"canary": {}}) == ["rollout.canary"]


def test_scaling_by_requests_is_refused_where_the_data_is_on_the_node() -> None:
    assert broken(autoscale=BOUNDS) == ["autoscale"]


def nested(levels: int) -> App:
    app = valid()
    inner: dict[str, Any] = {}
    for _ in range(levels - 1):
        inner = {"k": inner}
    app.config.update(inner)
    return app


def test_the_depth_of_a_config_is_bounded() -> None:
    assert app_violations(nested(MAX_CONFIG_DEPTH)) == []
    assert [found.field for found in app_violations(nested(MAX_CONFIG_DEPTH + 2))] == ["app.config"]
    assert App.FromString(nested(MAX_CONFIG_DEPTH).SerializeToString()) == nested(MAX_CONFIG_DEPTH)


def test_the_size_of_a_config_is_bounded() -> None:
    app = valid()
    app.config.update({"k": "x" * 65_000})
    assert app_violations(app) == []
    app.config.update({"l": "x" * 1000})
    assert [found.field for found in app_violations(app)] == ["app.config"]


def test_values_that_json_does_not_have_are_told_by_their_place() -> None:
    app = valid()
    app.config.update({"a": {"b c": [1, math.nan]}, "d": math.inf})
    app.config.fields["e"].CopyFrom(Value())
    assert sorted(found.field for found in app_violations(app)) == [
        'app.config["a"]["b c"][1]',
        'app.config["d"]',
        'app.config["e"]',
    ]


def test_all_violations_are_told_at_once_under_the_prefix_asked_for() -> None:
    app = App(display_name="\n", replicas=5, limits={"max_threads": 999}, health_check={"path": "x"})
    assert [found.field for found in app_violations(app, "spec")] == [
        "spec.display_name",
        "spec.entrypoint",
        "spec.replicas",
        "spec.limits.max_threads",
        "spec.health_check.path",
    ]


@pytest.mark.parametrize(
    ("change", "runs_anew"),
    [
        ({"display_name": "New"}, False),
        ({"labels": {"a": "b"}}, False),
        ({"annotations": {"a": "b"}}, False),
        ({"desired_state": App.STOPPED}, False),
        ({"entrypoint": "other:app"}, True),
        ({"env": {"A": "1"}}, True),
        ({"secret_env": {"A": "1"}}, True),
        ({"domains": ["x.de"]}, True),
        ({"isolation": 3}, True),
        ({"activation": InstanceSpec.ON_REQUEST}, True),
        ({"limits": {"max_threads": 9}}, True),
        ({"limits": {"max_threads": 8}}, False),
        ({"health_check": {"path": "/x"}}, True),
        ({"restart_policy": {"max_restarts": 0}}, True),
        ({"config": {"a": 1}}, True),
        ({"database": {"no_database": {}}}, True),
    ],
)
def test_only_a_change_of_what_runs_asks_for_a_swap(change: dict[str, Any], runs_anew: bool) -> None:
    new = valid(**{key: value for key, value in change.items() if key != "config"})
    if "config" in change:
        new.config.update(change["config"])
    assert runtime_fields_changed(normalize_app(valid()), normalize_app(new)) == runs_anew

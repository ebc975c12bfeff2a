"""The catalog and a node judge the same spec by the same rules, and fill in the same defaults."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct, Value

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.runtime.v1.runtime_environment_pb2 import Database, InstanceSpec, RestartPolicy
from runtime_node.rules import check_spec
from services.control_plane.rules.app_defaults import RUNTIME_FIELDS, normalize_app
from services.control_plane.rules.app_rules import app_violations
from services.rpc.errors import SupervisorError
from services.spec.defaults import fill_runtime
from services.spec.effective import effective_health_check, effective_limits, effective_restart_policy

MS = 1_000_000
SECOND = 1000 * MS
MINUTE, HOUR, DAY = 60 * SECOND, 3600 * SECOND, 86_400 * SECOND
MIB, GIB = 1024**2, 1024**3
Fields = dict[str, Any]

NUMBERS = (
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
)
SPANS = (
    ("", "idle_timeout", SECOND, DAY),
    ("limits", "request_timeout", 10 * MS, HOUR),
    ("limits", "start_timeout", 100 * MS, 10 * MINUTE),
    ("limits", "stop_timeout", 0, 10 * MINUTE),
    ("limits", "block_budget", 50 * MS, MINUTE),
    ("health_check", "interval", 100 * MS, HOUR),
    ("health_check", "timeout", 10 * MS, MINUTE),
    ("restart_policy", "period", SECOND, DAY),
    ("restart_policy", "min_backoff", 10 * MS, 10 * MINUTE),
    ("restart_policy", "max_backoff", 10 * MS, HOUR),
)


def span(nanos: int) -> Duration:
    made = Duration()
    made.FromNanoseconds(nanos)
    return made


def within(message: str, field: str, value: Any) -> Fields:
    return {message: {field: value}} if message else {field: value}


def nested(levels: int) -> Struct:
    config = Struct()
    inner: Any = "end"
    for _ in range(levels - 1):
        inner = {"deeper": inner}
    config.update({"top": inner})
    return config


def config_of(value: Value) -> Struct:
    return Struct(fields={"x": value})


def boundaries() -> Iterator[Fields]:
    for message, field, lowest, highest in NUMBERS:
        for number in (lowest - 1, lowest, highest, highest + 1, -1):
            yield within(message, field, number)
    for message, field, lowest, highest in SPANS:
        for nanos in (lowest - 1, lowest, highest, highest + 1, -SECOND):
            yield within(message, field, span(nanos))
        yield within(message, field, Duration(seconds=1, nanos=-1))
        yield within(message, field, Duration(seconds=1, nanos=SECOND))
    for entrypoint in ("", "a:b", "a.b:c.d", "a", "a:", ":b", "1a:b", "a:class", "a b:c", "x" * 254 + ":a"):
        yield {"entrypoint": entrypoint}
    yield {"entrypoint": "x" * 255 + ":a"}
    for name in ("env", "secret_env"):
        for key in ("", "A", "_", "1A", "A-B", "Ä"):
            yield {name: {key: "x"}}
        yield {name: {"A": "\0"}}
        yield {name: {"A": "x" * (64 * 1024 - 1)}}
        yield {name: {"A": "x" * (64 * 1024)}}
        yield {name: {f"K{number}": "" for number in range(256)}}
        yield {name: {f"K{number}": "" for number in range(257)}}
    yield {"env": {"A": "x"}, "secret_env": {"A": "y"}}
    external = Database(external=Database.External(secret_key="URL"))
    yield {"database": external}
    yield {"database": external, "secret_env": {"URL": "x"}}
    yield {"database": Database(external=Database.External())}
    yield {"database": Database(no_database=Database.NoDatabase())}
    yield {"database": Database(postgres=Database.Postgres())}
    yield {"database": Database(postgres=Database.Postgres(server="main"))}
    for domain in (
        *("a.example", "xn--bcher-kva.example", "intranet", "", "*.example", "a..example", "a.example:80"),
        *("http://a", "localhost", "127.0.0.1", "[::1]", "a.123", "a_b.example", "-a.example", "a" * 64),
    ):
        yield {"domains": [domain]}
    yield {"domains": ["a.example", "a.example"]}
    yield {"domains": [f"d{number}.example" for number in range(32)]}
    yield {"domains": [f"d{number}.example" for number in range(33)]}
    for path in (
        "/",
        "/health?deep=1",
        "health",
        "/a b",
        "/a\n",
        "/ä",
        "/a#b",
        "/" + "x" * 1023,
        "/" + "x" * 1024,
    ):
        yield {"health_check": {"path": path}}
    yield {"health_check": {"interval": span(SECOND), "timeout": span(SECOND + 1)}}
    yield {"health_check": {"timeout": span(11 * SECOND)}}
    yield {"health_check": {"interval": span(100 * MS)}}
    yield {"restart_policy": {"min_backoff": span(SECOND), "max_backoff": span(SECOND - 1)}}
    yield {"restart_policy": {"max_backoff": span(500 * MS)}}
    yield {"restart_policy": {"min_backoff": span(10 * MINUTE)}}
    for message, field in (
        ("limits", "block_action"),
        ("restart_policy", "mode"),
        ("", "isolation"),
        ("", "activation"),
    ):
        yield within(message, field, 99)
    yield {"event_loop": InstanceSpec.ASYNCIO}
    yield {"event_loop": InstanceSpec.ASYNCIO, "isolation": InstanceSpec.PROCESS}
    yield {"event_loop": InstanceSpec.UVLOOP}
    yield {"event_loop": 99}
    yield {"config": nested(19)}
    for levels in (20, 21, 22):
        yield {"config": nested(levels)}
    for number in (math.inf, math.nan, -math.inf, 1.5):
        yield {"config": config_of(Value(number_value=number))}
    yield {"config": config_of(Value())}
    yield {"config": config_of(Value(string_value="x" * 65_536))}


CASES = list(boundaries())


def by_catalog(fields: Fields) -> set[str]:
    app = normalize_app(App(**{"entrypoint": "pkg.mod:app", **fields}))
    return {violation.field.removeprefix("app.") for violation in app_violations(app)}


def by_node(spec: InstanceSpec) -> set[str]:
    try:
        check_spec(spec)
    except SupervisorError as error:
        return {violation.field.removeprefix("spec.") for violation in error.violations}
    return set()


def instance(fields: Fields) -> InstanceSpec:
    spec = InstanceSpec(
        **{
            "name": "apps/shop/instances/a1", "app_uid": "u", "generation": 1, "epoch": 1,
            "entrypoint": "pkg.mod:app", **fields,
        }
    )  # fmt: skip
    if spec.database.WhichOneof("kind") == "postgres":
        spec.database_url = "postgresql://it@db/its"  # the control plane gives it
    return spec


def test_the_cases_are_many_and_of_both_kinds() -> None:
    broken = sum(bool(by_catalog(case)) for case in CASES)
    assert broken > 90
    assert len(CASES) - broken > 60


@pytest.mark.parametrize("fields", CASES, ids=lambda fields: str(fields).replace("\n", " ")[:60])
def test_both_sides_find_the_same_wrong(fields: Fields) -> None:
    app = normalize_app(App(**{"entrypoint": "pkg.mod:app", **fields}))
    # As the control plane sends it, in full form, and as any other client may.
    full = instance({name: getattr(app, name) for name in RUNTIME_FIELDS if _is_set(app, name)})
    assert by_node(full) == by_catalog(fields)
    assert by_node(instance(fields)) == by_catalog(fields)


@pytest.mark.parametrize("fields", CASES, ids=lambda fields: str(fields).replace("\n", " ")[:60])
def test_a_full_form_is_bound_by_the_same_as_the_short_one(fields: Fields) -> None:
    short, full = instance(fields), instance(fields)
    fill_runtime(full)
    if by_node(short):
        return
    assert effective_limits(short) == effective_limits(full)
    assert effective_health_check(short.health_check) == effective_health_check(full.health_check)
    assert effective_restart_policy(short.restart_policy) == effective_restart_policy(full.restart_policy)
    again = InstanceSpec()
    again.CopyFrom(full)
    fill_runtime(again)
    assert again == full


def test_a_default_breaks_no_rule_together_with_what_is_set() -> None:
    for minutes in range(1, 11):
        policy = RestartPolicy(min_backoff=span(minutes * MINUTE))
        assert by_catalog({"restart_policy": policy}) == set()
        bound = effective_restart_policy(policy)
        assert bound.max_backoff >= bound.min_backoff


def _is_set(app: App, name: str) -> bool:
    return name == "entrypoint" or any(field.name == name for field, _ in app.ListFields())


@pytest.mark.parametrize(
    ("field", "set_as_by_default"),
    [("limits", "max_threads"), ("health_check", "failure_threshold"), ("restart_policy", "max_restarts")],
)
def test_defaults_that_are_filled_in_at_once_are_those_of_each_field_and_break_no_rule(
    field: str, set_as_by_default: str
) -> None:
    at_once = normalize_app(App(entrypoint="shop:app"))
    one = App(entrypoint="shop:app")
    default = getattr(getattr(at_once, field), set_as_by_default)
    setattr(getattr(one, field), set_as_by_default, default)
    assert normalize_app(one) == at_once
    setattr(getattr(at_once, field), set_as_by_default, default + 1)  # so that it is looked at
    assert app_violations(at_once) == []

"""What a spec may say."""

from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from appsupervisor.runtime.v1 import runtime_environment_pb2 as pb
from runtime_node.instances.databases import Databases
from runtime_node.rules import check_spec
from services.rpc.errors import SupervisorError
from services.spec.effective import EffectiveLimits, effective_health_check, effective_limits

POSTGRES = pb.Database(postgres=pb.Database.Postgres(server="databaseServers/d"))


def spec(**fields: Any) -> pb.InstanceSpec:
    return pb.InstanceSpec(
        **{
            "name": "apps/shop/instances/a1", "app_uid": "u-1", "generation": 1, "epoch": 1,
            "entrypoint": "shop:create_app", **fields,
        }
    )  # fmt: skip


def violated(given: pb.InstanceSpec) -> set[str]:
    try:
        check_spec(given)
    except SupervisorError as error:
        return {violation.field.removeprefix("spec.") for violation in error.violations}
    return set()


def ms(count: int) -> Duration:
    return Duration(seconds=count // 1000, nanos=count % 1000 * 1_000_000)


def test_the_least_spec_is_valid() -> None:
    assert violated(spec()) == set()


def test_the_loop_of_asyncio_goes_with_a_process_of_its_own() -> None:
    process = pb.InstanceSpec.PROCESS
    assert violated(spec(event_loop=pb.InstanceSpec.ASYNCIO, isolation=process)) == set()
    assert violated(spec(event_loop=pb.InstanceSpec.UVLOOP)) == set()


@pytest.mark.parametrize(
    ("fields", "violation"),
    [
        ({"name": "shop"}, "name"),
        ({"name": "apps/Shop/instances/a"}, "name"),
        ({"name": "apps/1shop/instances/a"}, "name"),
        ({"name": "apps/-shop/instances/a"}, "name"),
        ({"name": "apps/shop-/instances/a"}, "name"),
        ({"name": f"apps/{'s' * 64}/instances/a"}, "name"),
        ({"name": "apps/shop/instances/"}, "name"),
        ({"name": "apps/shop/instances/a\n"}, "name"),
        ({"name": "apps/../instances/a"}, "name"),
        ({"app_uid": ""}, "app_uid"),
        ({"app_uid": ".."}, "app_uid"),
        ({"app_uid": "a/b"}, "app_uid"),
        ({"app_uid": "u" * 65}, "app_uid"),
        ({"generation": 0}, "generation"),
        ({"epoch": 0}, "epoch"),
        ({"entrypoint": ""}, "entrypoint"),
        ({"entrypoint": "x" * 257}, "entrypoint"),
        ({"env": {"": "x"}}, 'env[""]'),
        ({"env": {"A-B": "x"}}, 'env["A-B"]'),
        ({"env": {"A": "\0"}}, 'env["A"]'),
        ({"env": {"A": "x" * 65536}}, "env"),
        ({"env": {f"K{i}": "" for i in range(257)}}, "env"),
        ({"secret_env": {"A": "x" * 65536}}, "secret_env"),
        ({"domains": [f"d{i}.example" for i in range(33)]}, "domains"),
        ({"domains": ["a.example", "a.example"]}, "domains[1]"),
        ({"domains": ["A.example"]}, "domains[0]"),
        ({"domains": ["a.*.example"]}, "domains[0]"),
        ({"domains": ["a..example"]}, "domains[0]"),
        ({"domains": ["a.example:80"]}, "domains[0]"),
        ({"activation": 99}, "activation"),
        ({"isolation": 99}, "isolation"),
        ({"event_loop": 99}, "event_loop"),
        ({"event_loop": pb.InstanceSpec.ASYNCIO}, "event_loop"),
        ({"event_loop": pb.InstanceSpec.ASYNCIO, "isolation": pb.InstanceSpec.THREAD}, "event_loop"),
        ({"idle_timeout": ms(999)}, "idle_timeout"),
        ({"idle_timeout": Duration(seconds=86401)}, "idle_timeout"),
        ({"idle_timeout": Duration(seconds=5, nanos=-1)}, "idle_timeout"),
        ({"idle_timeout": Duration(seconds=5, nanos=1_000_000_000)}, "idle_timeout"),
        ({"limits": pb.Limits(max_concurrent_requests=10_001)}, "limits.max_concurrent_requests"),
        ({"limits": pb.Limits(max_queued_requests=-1)}, "limits.max_queued_requests"),
        ({"limits": pb.Limits(max_queued_requests=100_001)}, "limits.max_queued_requests"),
        ({"limits": pb.Limits(request_timeout=ms(9))}, "limits.request_timeout"),
        ({"limits": pb.Limits(start_timeout=ms(99))}, "limits.start_timeout"),
        ({"limits": pb.Limits(stop_timeout=Duration(seconds=-1))}, "limits.stop_timeout"),
        ({"limits": pb.Limits(max_request_body_bytes=10 * 2**30 + 1)}, "limits.max_request_body_bytes"),
        ({"limits": pb.Limits(max_websocket_message_bytes=1023)}, "limits.max_websocket_message_bytes"),
        ({"limits": pb.Limits(max_websocket_message_bytes=2**24 + 1)}, "limits.max_websocket_message_bytes"),
        ({"limits": pb.Limits(max_threads=257)}, "limits.max_threads"),
        ({"limits": pb.Limits(memory_bytes=16 * 2**20 - 1)}, "limits.memory_bytes"),
        ({"limits": pb.Limits(cpu_millis=9)}, "limits.cpu_millis"),
        ({"limits": pb.Limits(block_budget=ms(49))}, "limits.block_budget"),
        ({"limits": pb.Limits(block_action=99)}, "limits.block_action"),
        ({"health_check": pb.HealthCheck(path="health")}, "health_check.path"),
        ({"health_check": pb.HealthCheck(path="/" + "x" * 1024)}, "health_check.path"),
        ({"health_check": pb.HealthCheck(path="/a\r\nb")}, "health_check.path"),
        ({"health_check": pb.HealthCheck(interval=ms(99))}, "health_check.interval"),
        (
            {"health_check": pb.HealthCheck(interval=Duration(seconds=10), timeout=Duration(seconds=11))},
            "health_check.timeout",
        ),
        ({"health_check": pb.HealthCheck(failure_threshold=101)}, "health_check.failure_threshold"),
        ({"health_check": pb.HealthCheck(success_threshold=-1)}, "health_check.success_threshold"),
        ({"restart_policy": pb.RestartPolicy(max_restarts=1001)}, "restart_policy.max_restarts"),
        ({"restart_policy": pb.RestartPolicy(period=ms(999))}, "restart_policy.period"),
        ({"restart_policy": pb.RestartPolicy(min_backoff=ms(9))}, "restart_policy.min_backoff"),
        (
            {"restart_policy": pb.RestartPolicy(max_backoff=Duration(seconds=3601))},
            "restart_policy.max_backoff",
        ),
        ({"restart_policy": pb.RestartPolicy(max_backoff=ms(500))}, "restart_policy.max_backoff"),
        ({"database": POSTGRES}, "database_url"),
        ({"database_url": "postgresql://a@b/c"}, "database_url"),
        ({"database_pool_size": -1}, "database_pool_size"),
        ({"database_pool_size": 1_001}, "database_pool_size"),
    ],
)
def test_a_field_that_breaks_its_rule_is_named(fields: dict[str, Any], violation: str) -> None:
    assert violated(spec(**fields)) == {violation}


@pytest.mark.parametrize(
    "fields",
    [
        {"limits": pb.Limits(stop_timeout=Duration(), max_queued_requests=0, max_request_body_bytes=0)},
        {"limits": pb.Limits(request_timeout=ms(10), start_timeout=ms(100), block_budget=ms(50))},
        {"health_check": pb.HealthCheck(path="/health?deep=1", interval=ms(100), timeout=ms(100))},
        {"restart_policy": pb.RestartPolicy(max_restarts=0, min_backoff=ms(10), max_backoff=ms(10))},
        {"domains": ["a.example", "b.a.example", "xn--bcher-kva.example", "intranet"]},
        {
            "database": pb.Database(external=pb.Database.External(secret_key="URL")),
            "secret_env": {"URL": "postgresql://"},
        },
        {"database": POSTGRES, "database_url": "postgresql://a@b/c", "database_pool_size": 1_000},
        {"name": f"apps/{'s' * 63}/instances/{'9' * 63}"},
    ],
)
def test_the_bounds_themselves_are_allowed(fields: dict[str, Any]) -> None:
    assert violated(spec(**fields)) == set()


def test_a_config_beyond_its_size_is_refused() -> None:
    large = spec()
    large.config["x"] = "x" * 65536
    assert violated(large) == {"config"}


@given(st.text(max_size=80), st.text(max_size=80))
def test_whatever_passes_the_rules_names_a_directory_inside_the_data_directory(app: str, uid: str) -> None:
    if violated(spec(name=f"apps/{app}/instances/a", app_uid=uid)):
        return
    root = Path("/data")
    directory = Databases(root).directory(app, uid)
    assert directory.parent == root / "apps"
    assert not directory.name.startswith(".")


def test_unset_limits_take_the_documented_defaults() -> None:
    assert effective_limits(spec()) == EffectiveLimits(
        max_concurrent_requests=64,
        max_queued_requests=128,
        request_timeout=30.0,
        start_timeout=30.0,
        stop_timeout=10.0,
        max_request_body_bytes=32 * 2**20,
        max_websocket_message_bytes=2**20,
        websocket_compression=False,
        max_threads=8,
        memory_bytes=None,
        cpu_millis=None,
        block_budget=1.0,
        block_action=pb.Limits.DEMOTE,
    )
    assert effective_limits(spec()) is effective_limits(spec(name="apps/other/instances/b"))


def test_the_default_probe_timeout_never_exceeds_the_interval() -> None:
    probe = effective_health_check(pb.HealthCheck(path="/", interval=ms(500)))
    assert (probe.interval, probe.timeout) == (0.5, 0.5)
    assert (probe.success_threshold, probe.failure_threshold) == (1, 3)

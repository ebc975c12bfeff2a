"""The pure rules of the tier: how an end is told, what a spec's limits become, what a guest may see."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration

from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec, Limits
from runtime_node.context import AppContext
from runtime_node.tiers.process.bounds import Bounds
from runtime_node.tiers.process.exit_reason import error_of
from runtime_node.tiers.process.limits import nice_of
from runtime_node.tiers.process.output import Tail, parse_record
from runtime_node.tiers.process.runner import environment_of
from runtime_node.tiers.process.zygote import Ended, base_environment


@pytest.mark.parametrize(
    ("ended", "tail", "reason"),
    [
        (Ended(0), "", None),
        (Ended(3 << 8), "", "APP_CRASHED"),
        (Ended(signal.SIGSEGV), "", "APP_CRASHED"),
        (Ended(signal.SIGKILL), "", "APP_CRASHED"),
        (Ended(signal.SIGKILL, oom_kills=1), "", "APP_OUT_OF_MEMORY"),
        (Ended(signal.SIGSEGV, oom_kills=1), "", "APP_CRASHED"),
        (Ended(1 << 8), "Traceback\nMemoryError", "APP_OUT_OF_MEMORY"),
        (Ended(1 << 8), "MemoryError\nValueError", "APP_CRASHED"),
        (Ended(9, zygote_lost=True), "", "APP_CRASHED"),
    ],
)
def test_an_end_is_told_by_its_reason(ended: Ended, tail: str, reason: str | None) -> None:
    error = error_of(ended, resource="apps/a/instances/b", tail=tail, memory_limit=1 << 20)
    assert (error.reason if error else None) == reason
    if error is not None and tail:
        assert error.metadata["detail"] == tail


def test_unset_limits_take_the_documented_defaults() -> None:
    bounds = Bounds.of(InstanceSpec())
    assert (bounds.block_budget, bounds.stop_timeout, bounds.max_threads) == (1.0, 10.0, 8)
    assert bounds.block_action == Limits.DEMOTE
    assert bounds.memory_bytes == bounds.cpu_millis == 0


def test_set_limits_are_taken() -> None:
    limits = Limits(
        block_budget=Duration(nanos=50_000_000), stop_timeout=Duration(), memory_bytes=1 << 25,
        cpu_millis=250, max_threads=3, max_concurrent_requests=10_000, block_action=Limits.STOP,
    )  # fmt: skip
    bounds = Bounds.of(InstanceSpec(limits=limits))
    assert (bounds.block_budget, bounds.stop_timeout) == (0.05, 0.0)
    assert bounds.max_files >= 20_000
    assert bounds.of_guest().memory_bytes == 1 << 25
    assert bounds.block_action == Limits.STOP


@pytest.mark.parametrize(("millis", "nice"), [(0, 0), (1000, 0), (4000, 0), (800, 1), (100, 10), (10, 19)])
def test_a_cpu_share_becomes_the_niceness_of_its_weight(millis: int, nice: int) -> None:
    assert nice_of(millis) == nice


def test_the_base_environment_holds_nothing_but_the_place() -> None:
    source = {"PATH": "/bin", "TZ": "UTC", "LC_ALL": "C", "AWS_SECRET": "x", "APPSUPERVISOR_X": "y"}
    assert base_environment(source) == {"PATH": "/bin", "TZ": "UTC", "LC_ALL": "C"}
    assert base_environment({})["PATH"]


def test_the_apps_own_variables_win() -> None:
    context = AppContext(
        "a", "apps/a/instances/b", 2, {"n": 1}, {"PORT": "99", "DATABASE_URL": "mine"}, {"KEY": "s"},
        "sqlite:///x", Path("/d"), logging.getLogger("x"),
    )  # fmt: skip
    environment = environment_of(context)
    assert environment["PORT"] == "99"
    assert environment["DATABASE_URL"] == "mine"
    assert environment["KEY"] == "s"
    assert environment["APP_CONFIG"] == '{"n": 1}'


def test_the_tail_keeps_the_last_lines_within_its_bound() -> None:
    tail = Tail()
    for number in range(10_000):
        tail.add(f"line {number}")
    assert tail.text.endswith("line 9999")
    assert len(tail.text) <= 4096


@pytest.mark.parametrize("line", ["", "plain text", "[1]", '["x", "n", 1, "m"]', "{}", "[1, 2"])
def test_what_is_no_log_record_is_told_apart(line: str) -> None:
    assert parse_record(line) is None
    assert parse_record('[30, "a.b", 1.5, "m"]') == (30, "a.b", 1.5, "m")

"""The pure rules of the tier: how an end is told, what a spec's limits become, what a guest may see."""

from __future__ import annotations

import logging
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration

from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec, Limits
from runtime_node.context import AppContext
from runtime_node.tiers.process import procfs
from runtime_node.tiers.process.exit_reason import error_of
from runtime_node.tiers.process.limits import ProcessLimits
from runtime_node.tiers.process.output import Tail, parse_record
from runtime_node.tiers.process.rlimits import nice_of
from runtime_node.tiers.process.runner import environment_of
from runtime_node.tiers.process.watch import count_processes
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
    limits = ProcessLimits.of(InstanceSpec())
    assert (limits.block_budget, limits.stop_timeout, limits.max_threads) == (1.0, 10.0, 8)
    assert limits.block_action == Limits.DEMOTE
    assert limits.memory_bytes == limits.cpu_millis == 0


def test_set_limits_are_taken() -> None:
    told = Limits(
        block_budget=Duration(nanos=50_000_000), stop_timeout=Duration(), memory_bytes=1 << 25,
        cpu_millis=250, max_threads=3, max_concurrent_requests=10_000, block_action=Limits.STOP,
    )  # fmt: skip
    limits = ProcessLimits.of(InstanceSpec(limits=told))
    assert (limits.block_budget, limits.stop_timeout) == (0.05, 0.0)
    assert limits.max_files >= 20_000
    assert limits.of_guest().memory_bytes == 1 << 25
    assert limits.block_action == Limits.STOP


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
    assert "DATABASE_POOL_SIZE" not in environment
    assert environment_of(replace(context, database_pool=5))["DATABASE_POOL_SIZE"] == "5"


def test_the_tail_keeps_the_last_lines_within_its_bound() -> None:
    tail = Tail()
    for number in range(10_000):
        tail.add(f"line {number}")
    assert tail.text.endswith("line 9999")
    assert len(tail.text) <= 4096


@pytest.mark.parametrize(
    "line",
    [
        "", "plain text", "[1]", '["x", "n", 1, "m"]', "{}", "[1, 2", "[" * 60_000, '[1e999, "n", 1, "m"]',
        '[20, "n", 1, ["m"]]', f'[{"9" * 5000}, "n", 1, "m"]',
    ],
)  # fmt: skip
def test_what_is_no_log_record_is_told_apart(line: str) -> None:
    assert parse_record(line) is None
    assert parse_record('[30, "a.b", 1.5, "m"]') == (30, "a.b", 1.5, "m")


def test_processes_are_counted_by_descent_and_daemons_by_their_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    # 10 is a zygote, 20 and 30 its guests; 41 and 42 descend from 30 without a mark, 50 is a daemon of 20.
    parents = {20: 10, 30: 10, 21: 20, 41: 30, 42: 41, 50: 10, 60: 1}
    marks = [(20, 7), (21, 7), (30, 9), (50, 7), (60, 8)]
    monkeypatch.setattr(procfs, "marked", lambda tags: ((pid, tag) for pid, tag in marks if tag in tags))
    assert count_processes({20: 7, 30: 9}, parents) == {20: 3, 30: 3}
    assert count_processes({}, parents) == {}


@pytest.mark.parametrize("created", ["Infinity", "-Infinity", "NaN", "1e300", "-1e300", "-1"])
def test_a_records_time_is_one_that_a_calendar_has(created: str) -> None:
    record = parse_record(f'[20, "n", {created}, "m"]')
    assert record is not None
    assert abs(record[2] - time.time()) < 3600


def test_a_record_is_fit_to_be_stored_and_sent_on() -> None:
    record = parse_record('[999999999999999999999, "\\ud800", 1, "\\udfff"]')
    assert record == (50, "?", 1.0, "?")

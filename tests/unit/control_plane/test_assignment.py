"""The table of swaps: which placements an app is to have, for each state that it can be found in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.control_plane.placement.assignment import assign, pinned, spec_of
from services.control_plane.placement.choice import Candidate
from services.control_plane.placement.snapshot import Snapshot
from services.control_plane.store.records import AppRecord, PlacementRecord, Version
from tests.unit.control_plane.looks import (
    CUR,
    FAILED,
    IDLE,
    IN,
    LOST,
    OUT,
    RUNNING,
    STARTING,
    V11,
    V12,
    V21,
    V22,
    V31,
    M,
    N,
    free,
    heard,
    instance,
    placed,
    record,
    roles,
    silent,
    told,
)

STOPPED: dict[str, Any] = {"desired": pb.App.STOPPED}
DROP: dict[str, Any] = {"deleting": pb.DeleteAppRequest.DROP}
OLD, NEW = placed(V11, CUR), placed(V21, IN)
OLD_RUNS, OLD_SLEEPS, OLD_FAILED = instance(V11, RUNNING), instance(V11, IDLE), instance(V11, FAILED)
NEW_STARTS, NEW_RUNS, NEW_SLEEPS = instance(V21, STARTING), instance(V21, RUNNING), instance(V21, IDLE)
NEW_FAILED = instance(V21, FAILED, reason="APP_FACTORY_FAILED")


def without(gone: str, free: tuple[str, ...] = ()) -> Snapshot:
    """What is seen once a node has been deleted."""
    return Snapshot({}, tuple(Candidate(name, True, 0) for name in free), frozenset({gone}))


Row = tuple[AppRecord, list[PlacementRecord], Snapshot, dict[str, str], Version | None]
"""App, placements and snapshot; the roles that follow, and the version that is given up."""

TABLE: dict[str, Row] = {
    # A first start
    "nothing there, no node": (record(), [], Snapshot(), {}, None),
    "nothing there, a node": (record(), [], free(N), {"g1-e1": "INCOMING at n"}, None),
    "two nodes: by name": (record(), [], free(N, M), {"g1-e1": "INCOMING at m"}, None),
    "starting": (
        record(), [placed(V11, IN)], heard(instance(V11, STARTING)), {"g1-e1": "INCOMING at n"}, None,
    ),
    "first start ready": (record(), [placed(V11, IN)], heard(OLD_RUNS), {"g1-e1": "CURRENT at n"}, None),
    "first start dormant": (record(), [placed(V11, IN)], heard(OLD_SLEEPS), {"g1-e1": "CURRENT at n"}, None),
    "first start failed": (record(), [placed(V11, IN)], heard(OLD_FAILED), {"g1-e1": "INCOMING at n"}, None),
    "first start, node silent": (record(), [placed(V11, IN)], silent(), {"g1-e1": "INCOMING at n"}, None),
    "first start, node unclear": (record(), [placed(V11, IN)], Snapshot(), {"g1-e1": "INCOMING at n"}, None),
    "ready, told by a silent node": (
        record(), [placed(V11, IN)], silent(OLD_RUNS), {"g1-e1": "INCOMING at n"}, None,
    ),
    "first start replaced before it was ready": (
        record(V21), [placed(V11, IN)], heard(instance(V11, STARTING)),
        {"g1-e1": "OUTGOING at n", "g2-e1": "INCOMING at n"}, None,
    ),
    "first start ready only after an update": (
        record(V21), [placed(V11, IN)], heard(OLD_RUNS),
        {"g1-e1": "CURRENT at n", "g2-e1": "INCOMING at n"}, None,
    ),
    "first start ready though it was replaced, and what replaced it is not": (
        record(V21), [placed(V11, OUT), NEW], heard(OLD_RUNS, NEW_STARTS),
        {"g1-e1": "CURRENT at n", "g2-e1": "INCOMING at n"}, None,
    ),
    "first start ready though it was replaced, and what replaced it failed": (
        record(V21), [placed(V11, OUT), NEW], heard(OLD_RUNS, NEW_FAILED),
        {"g1-e1": "CURRENT at n", "g2-e1": "OUTGOING at n"}, V21,
    ),
    "first start ready though it was replaced, and so is what replaced it": (
        record(V21), [placed(V11, OUT), NEW], heard(OLD_RUNS, NEW_RUNS),
        {"g1-e1": "OUTGOING at n", "g2-e1": "CURRENT at n"}, None,
    ),
    "two starts replaced and ready: the newest serves": (
        record(V31), [placed(V11, OUT), placed(V21, OUT), placed(V31, IN)],
        heard(OLD_RUNS, NEW_RUNS, instance(V31, STARTING)),
        {"g1-e1": "OUTGOING at n", "g2-e1": "CURRENT at n", "g3-e1": "INCOMING at n"}, None,
    ),
    "stopped as what was replaced was ready": (
        record(V21, **STOPPED), [placed(V11, OUT), NEW], heard(OLD_RUNS, NEW_STARTS),
        {"g1-e1": "OUTGOING at n", "g2-e1": "INCOMING at n"}, None,
    ),
    # At rest
    "serving": (record(), [OLD], heard(OLD_RUNS), {"g1-e1": "CURRENT at n"}, None),
    "crashed": (record(), [OLD], heard(OLD_FAILED), {"g1-e1": "CURRENT at n"}, None),
    "gone from its node": (record(), [OLD], heard(), {"g1-e1": "CURRENT at n"}, None),
    "its node silent, another free": (record(), [OLD], silent(OLD_RUNS), {"g1-e1": "CURRENT at n"}, None),
    # Update and restart: one swap
    "an update begins": (
        record(V21), [OLD], heard(OLD_RUNS), {"g1-e1": "CURRENT at n", "g2-e1": "INCOMING at n"}, None
    ),
    "a restart begins": (
        record(V12), [OLD], heard(OLD_RUNS), {"g1-e1": "CURRENT at n", "g1-e2": "INCOMING at n"}, None
    ),
    "an update begins while the node is silent": (
        record(V21), [OLD], silent(OLD_RUNS), {"g1-e1": "CURRENT at n", "g2-e1": "INCOMING at n"}, None
    ),
    "an update goes on": (
        record(V21), [OLD, NEW], heard(OLD_RUNS, NEW_STARTS),
        {"g1-e1": "CURRENT at n", "g2-e1": "INCOMING at n"}, None,
    ),
    "an update is ready": (
        record(V21), [OLD, NEW], heard(OLD_RUNS, NEW_RUNS),
        {"g1-e1": "OUTGOING at n", "g2-e1": "CURRENT at n"}, None,
    ),
    "a dormant update is ready": (
        record(V21), [OLD, NEW], heard(OLD_SLEEPS, NEW_SLEEPS),
        {"g1-e1": "OUTGOING at n", "g2-e1": "CURRENT at n"}, None,
    ),
    "an update is ready and the old one was gone": (
        record(V21), [OLD, NEW], heard(NEW_RUNS), {"g1-e1": "OUTGOING at n", "g2-e1": "CURRENT at n"}, None
    ),
    "an update is ready and the old one was told once": (
        record(V21, status=told(OLD_RUNS)), [OLD, NEW], heard(NEW_RUNS), {"g2-e1": "CURRENT at n"}, None,
    ),
    "an update is ready when the next is wanted": (
        record(V31), [OLD, NEW], heard(OLD_RUNS, NEW_RUNS),
        {"g1-e1": "OUTGOING at n", "g2-e1": "CURRENT at n", "g3-e1": "INCOMING at n"}, None,
    ),
    "an update is replaced by the next": (
        record(V31), [OLD, NEW], heard(OLD_RUNS, NEW_STARTS),
        {"g1-e1": "CURRENT at n", "g2-e1": "OUTGOING at n", "g3-e1": "INCOMING at n"}, None,
    ),
    "a restart while an update goes on": (
        record(V22), [OLD, NEW], heard(OLD_RUNS, NEW_STARTS),
        {"g1-e1": "CURRENT at n", "g2-e1": "OUTGOING at n", "g2-e2": "INCOMING at n"}, None,
    ),
    # Giving up and going back
    "an update failed": (
        record(V21), [OLD, NEW], heard(OLD_RUNS, NEW_FAILED),
        {"g1-e1": "CURRENT at n", "g2-e1": "OUTGOING at n"}, V21,
    ),
    "an update of a dormant app failed": (
        record(V21), [OLD, NEW], heard(OLD_SLEEPS, NEW_FAILED),
        {"g1-e1": "CURRENT at n", "g2-e1": "OUTGOING at n"}, V21,
    ),
    "an update failed and the old one is gone": (
        record(V21), [OLD, NEW], heard(NEW_FAILED), {"g1-e1": "CURRENT at n", "g2-e1": "OUTGOING at n"}, V21
    ),
    "an update failed and the old one crashed": (
        record(V21), [OLD, NEW], heard(OLD_FAILED, NEW_FAILED),
        {"g1-e1": "CURRENT at n", "g2-e1": "OUTGOING at n"}, V21,
    ),
    "a restart failed": (
        record(V12), [OLD, placed(V12, IN)], heard(OLD_RUNS, instance(V12, FAILED)),
        {"g1-e1": "CURRENT at n", "g1-e2": "OUTGOING at n"}, V12,
    ),
    "a restart failed and the old one is gone: it is the same code": (
        record(V12), [OLD, placed(V12, IN)], heard(instance(V12, FAILED)),
        {"g1-e1": "CURRENT at n", "g1-e2": "INCOMING at n"}, None,
    ),
    "an update ended by itself": (
        record(V21), [OLD, NEW], heard(OLD_RUNS, instance(V21, rt.Instance.STOPPED)),
        {"g1-e1": "CURRENT at n", "g2-e1": "OUTGOING at n"}, V21,
    ),
    "a failure told by a silent node": (
        record(V21), [OLD, NEW], silent(OLD_RUNS, NEW_FAILED),
        {"g1-e1": "CURRENT at n", "g2-e1": "INCOMING at n"}, None,
    ),
    "given up, and stays so": (
        record(V21, failed=V21), [OLD], heard(OLD_RUNS), {"g1-e1": "CURRENT at n"}, V21,
    ),
    "given up, the node began a new life": (
        record(V21, failed=V21), [OLD], heard(), {"g1-e1": "CURRENT at n"}, V21,
    ),
    "given up, and the next is wanted": (
        record(V31), [OLD, placed(V21, OUT)], heard(OLD_RUNS, NEW_FAILED),
        {"g1-e1": "CURRENT at n", "g2-e1": "OUTGOING at n", "g3-e1": "INCOMING at n"}, None,
    ),
    "given up, with nothing to go back to": (
        record(V21, failed=V21), [], free(N), {"g2-e1": "INCOMING at n"}, None
    ),
    # What ends
    "drained": (
        record(V21, status=told(OLD_RUNS)), [placed(V11, OUT), placed(V21, CUR)], heard(NEW_RUNS),
        {"g2-e1": "CURRENT at n"}, None,
    ),
    "never seen: its node has to say that it is gone": (
        record(V21), [placed(V11, OUT), placed(V21, CUR)], heard(NEW_RUNS),
        {"g1-e1": "OUTGOING at n", "g2-e1": "CURRENT at n"}, None,
    ),
    "told, but its node is silent": (
        record(V21, status=told(OLD_RUNS)), [placed(V11, OUT), placed(V21, CUR)], silent(NEW_RUNS),
        {"g1-e1": "OUTGOING at n", "g2-e1": "CURRENT at n"}, None,
    ),
    # Stop and start
    "stopped": (record(**STOPPED), [OLD], heard(), {"g1-e1": "CURRENT at n"}, None),
    "stopped in mid-update": (
        record(V21, **STOPPED), [OLD, NEW], heard(OLD_RUNS, NEW_STARTS),
        {"g1-e1": "CURRENT at n", "g2-e1": "OUTGOING at n"}, None,
    ),
    "stopped as the update is ready": (
        record(V21, **STOPPED), [OLD, NEW], heard(OLD_RUNS, NEW_RUNS),
        {"g1-e1": "OUTGOING at n", "g2-e1": "CURRENT at n"}, None,
    ),
    "stopped before it was ever ready: it keeps its node": (
        record(**STOPPED), [placed(V11, IN)], heard(), {"g1-e1": "INCOMING at n"}, None
    ),
    "stopped, never placed": (record(**STOPPED), [], free(N), {}, None),
    "started again": (record(V12), [OLD], heard(), {"g1-e1": "CURRENT at n", "g1-e2": "INCOMING at n"}, None),
    "started again before it was ever ready": (
        record(V12), [placed(V11, IN)], heard(), {"g1-e1": "OUTGOING at n", "g1-e2": "INCOMING at n"}, None
    ),
    # Deletion
    "deleted": (record(**DROP), [OLD], heard(OLD_RUNS), {"g1-e1": "OUTGOING at n"}, None),
    "deleted in mid-update": (
        record(V21, **DROP), [OLD, NEW], heard(OLD_RUNS, NEW_STARTS),
        {"g1-e1": "OUTGOING at n", "g2-e1": "OUTGOING at n"}, None,
    ),
    "deleted, told once and gone: its data may still be there": (
        record(status=told(OLD_RUNS), **DROP), [placed(V11, OUT)], heard(), {"g1-e1": "OUTGOING at n"}, None
    ),
    "deleted, never placed": (record(**DROP), [], free(N), {}, None),
    # Given up with its node
    "lost, no other node": (record(V12), [placed(V11, LOST)], silent(), {"g1-e1": "LOST at n"}, None),
    "lost, another node": (
        record(V12), [placed(V11, LOST)], free(M), {"g1-e1": "LOST at n", "g1-e2": "INCOMING at m"}, None
    ),
    "lost, and its node came back": (
        record(V12, status=told(instance(V12, RUNNING), at=M)), [placed(V11, LOST), placed(V12, CUR, M)],
        Snapshot({**heard(OLD_RUNS).nodes, **heard(instance(V12, RUNNING), at=M).nodes}),
        {"g1-e1": "LOST at n", "g1-e2": "CURRENT at m"}, None,
    ),
    "lost, and deleted": (record(**DROP), [placed(V11, LOST)], silent(), {}, None),
    "a swap from node to node ends as any": (
        record(V12), [OLD, placed(V12, IN, M)],
        Snapshot({**heard(OLD_RUNS).nodes, **heard(instance(V12, RUNNING), at=M).nodes}),
        {"g1-e1": "OUTGOING at n", "g1-e2": "CURRENT at m"}, None,
    ),
    "a move off a node that crashed there, and fails elsewhere too: it stays": (
        record(V12), [OLD, placed(V12, IN, M)],
        Snapshot({**heard(OLD_FAILED).nodes, **heard(instance(V12, FAILED), at=M).nodes}),
        {"g1-e1": "CURRENT at n", "g1-e2": "OUTGOING at m"}, V12,
    ),
    "what serves is moved though the newest version was given up": (
        record(V22, failed=V22), [OLD, placed(V12, IN, M)],
        Snapshot({**heard(OLD_RUNS).nodes, **heard(instance(V12, STARTING), at=M).nodes}),
        {"g1-e1": "CURRENT at n", "g1-e2": "INCOMING at m"}, V22,
    ),
    "it has arrived": (
        record(V22, failed=V22), [OLD, placed(V12, IN, M)],
        Snapshot({**heard(OLD_RUNS).nodes, **heard(instance(V12, RUNNING), at=M).nodes}),
        {"g1-e1": "OUTGOING at n", "g1-e2": "CURRENT at m"}, V22,
    ),
    "it does not start there": (
        record(V22, failed=V22), [OLD, placed(V12, IN, M)],
        Snapshot({**heard(OLD_RUNS).nodes, **heard(instance(V12, FAILED), at=M).nodes}),
        {"g1-e1": "CURRENT at n", "g1-e2": "OUTGOING at m"}, V22,
    ),
    "the next update replaces the move": (
        record(V31), [OLD, placed(V12, IN, M)],
        Snapshot({**heard(OLD_RUNS).nodes, **heard(instance(V12, STARTING), at=M).nodes}),
        {"g1-e1": "CURRENT at n", "g1-e2": "OUTGOING at m", "g3-e1": "INCOMING at n"}, None,
    ),
    # Nodes that were deleted
    "its node was deleted": (
        record(), [OLD], without(N, free=(M,)), {"g1-e2": "INCOMING at m"}, None
    ),
    "its node was deleted, and its data with it": (
        record(), [replace(OLD, has_data=True)], without(N, free=(M,)), {"g1-e1": "LOST at n"}, None
    ),
    "stopped, and its node was deleted": (record(**STOPPED), [OLD], without(N, free=(M,)), {}, None),
    "deleted, and its node too": (
        record(**DROP), [replace(OLD, has_data=True)], without(N, free=(M,)), {}, None
    ),
    "the node that it goes to was deleted": (
        record(V12), [OLD, placed(V12, IN, M)],
        Snapshot(heard(OLD_RUNS).nodes, gone=frozenset({M})), {"g1-e1": "CURRENT at n"}, V12,
    ),
    "the node that it comes from was deleted": (
        record(V12), [OLD, placed(V12, IN, M)],
        Snapshot(heard(instance(V12, STARTING), at=M).nodes, gone=frozenset({N})),
        {"g1-e2": "INCOMING at m"}, None,
    ),
    "its data was lost and its node is back": (
        record(V12), [replace(placed(V11, LOST), has_data=True)], heard(),
        {"g1-e1": "LOST at n", "g1-e2": "INCOMING at n"}, None,
    ),
    "a swap from node to node fails as any": (
        record(V12), [OLD, placed(V12, IN, M)],
        Snapshot({**heard(OLD_RUNS).nodes, **heard(instance(V12, FAILED), at=M).nodes}),
        {"g1-e1": "CURRENT at n", "g1-e2": "OUTGOING at m"}, V12,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_the_table_of_swaps(name: str) -> None:
    app, placements, seen, expected, failed = TABLE[name]
    assert roles(app, placements, seen) == expected
    assigned = assign(app, placements, seen, 5)
    assert assigned.failed == failed
    settled = replace(app, failed=failed, target=assigned.target or app.target)
    assert set(assign(settled, assigned.placements, seen, 9).placements) == set(assigned.placements)


def test_what_comes_in_runs_the_spec_of_its_time_and_knows_why_and_since_when() -> None:
    (new,) = assign(record(), [], free(N), 7).placements
    assert spec_of(new).entrypoint == "v1:app"
    assert (new.since, new.node, new.app_uid) == (7, N, "mine")
    assert "fewest apps" in new.why
    (kept,) = assign(record(), [new], heard(OLD_RUNS), 9).placements
    assert (kept.since, kept.spec) == (9, new.spec)


def test_only_what_a_node_is_told_of_is_pinned() -> None:
    spec = pb.App(name="apps/a", entrypoint="a:b", labels={"l": "1"}, desired_state=pb.App.RUNNING)
    spec.secret_env["TOKEN"] = "s"
    spec.limits.max_threads = 3
    kept = pb.App.FromString(pinned(spec))
    assert kept == pb.App(entrypoint="a:b", secret_env={"TOKEN": "s"}, limits=rt.Limits(max_threads=3))


@pytest.mark.parametrize(
    ("kind", "state", "ran_before", "has_data"),
    [
        ("sqlite", RUNNING, False, True),
        ("sqlite", STARTING, False, False),
        ("sqlite", IDLE, False, False),  # it may never have run
        ("sqlite", IDLE, True, True),
        ("no_database", RUNNING, True, False),
        ("external", RUNNING, True, False),
    ],
)
def test_an_app_has_data_on_its_node_once_it_has_run_there(
    kind: str, state: Any, ran_before: bool, has_data: bool
) -> None:
    app = record(V21)
    getattr(app.spec.database, kind).SetInParent()
    there = instance(V11, state)
    if ran_before:
        there.ready_time.GetCurrentTime()
    placements = {it.instance_id: it for it in assign(app, [OLD], heard(there), 5).placements}
    # What comes in beside it finds the same data.
    assert (placements["g1-e1"].has_data, placements["g2-e1"].has_data) == (has_data, has_data)

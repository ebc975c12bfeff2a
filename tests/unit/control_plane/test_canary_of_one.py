"""An app's only replica goes on serving while a new version is tried beside it, on a node of its own."""

from __future__ import annotations

from typing import Any

import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.control_plane.placement.assignment import assign
from services.control_plane.reconciler.observation import observe
from services.control_plane.rules.conditions import get_condition
from services.control_plane.store.records import AppRecord, Version
from tests.unit.control_plane.looks import RUNNING, V11, V21
from tests.unit.control_plane.test_canary import ANALYZING, PROMOTED, REVERTED, observed, policy, tried
from tests.unit.control_plane.test_replicas import HEALTH, app, decided, look

V25, V31 = Version(2, 5), Version(3, 1)
PAUSED = pb.Rollout(canary=policy(), paused=True)


def only(state: Any = None, target: Version = V21, **fields: Any) -> AppRecord:
    return tried(state, fields.pop("replicas", 1), target, **{"newest": 2, **fields})


Row = tuple[AppRecord, str, dict[str, str], str, Version | None]

BEGIN: dict[str, Row] = {
    # name: (app, what is, where, what is to be, what was given up)
    "it is tried beside what serves": (
        only(newest=0), "g1-e1@k CUR runs", {}, "g1-e1@k CUR; g2-e2-r1@l IN", None
    ),
    "at rest": (only(target=V11), "g1-e1@k CUR runs", {}, "g1-e1@k CUR", None),
    "no node has room": (only(), "g1-e1@k CUR runs", {"free": "k"}, "g1-e1@k CUR", None),
    "a restart is not tried": (
        only(target=Version(1, 2)), "g1-e1@k CUR runs", {}, "g1-e1@k CUR; g1-e3@k IN", None
    ),
    "where nothing serves nothing is tried": (
        only(), "g1-e1@k CUR fails", {}, "g1-e1@k CUR; g2-e3@k IN", None
    ),
    "a paused rollout begins nothing": (
        only(rollout=PAUSED), "g1-e1@k CUR runs", {}, "g1-e1@k CUR", None
    ),
    "a stopped one has none": (only(stopped=True), "g1-e1@k CUR", {}, "g1-e1@k CUR", None),
    "what came in its place is tried beside it": (
        only(), "g1-e1@k CUR runs; g2-e2@k IN starts", {}, "g1-e1@k CUR; g2-e2@k OUT; g2-e3-r1@l IN", None
    ),
    "of two that there were one goes, and none untried": (
        only(), "g1-e1@k CUR runs; g2-e2@k IN starts; g1-e3-r1@l CUR runs", {},
        "g1-e1@k CUR; g2-e2@k IN; g1-e3-r1@l CUR", None,
    ),
}  # fmt: skip

ON = "g1-e1@k CUR runs; g2-e2-r1@l CUR runs"
STAYS = "g1-e1@k CUR; g2-e2-r1@l CUR"
TRIAL: dict[str, Row] = {
    "on trial, both stay": (only(ANALYZING), ON, {}, STAYS, None),
    "paused, both stay": (only(ANALYZING, rollout=PAUSED), ON, {}, STAYS, None),
    "promoted while it is paused, both stay": (only(PROMOTED, rollout=PAUSED), ON, {}, STAYS, None),
    "what served crashes": (only(ANALYZING), ON.replace("k CUR runs", "k CUR fails"), {}, STAYS, None),
    "what served crashes before it is ready": (
        only(ANALYZING), "g1-e1@k CUR fails; g2-e2-r1@l IN starts", {}, "g1-e1@k CUR; g2-e2-r1@l IN", None
    ),
    "promoted, it is the only one": (only(PROMOTED), ON, {}, "g1-e1@k OUT; g2-e2-r1@l CUR", None),
    "promoted, and not there any more": (
        only(PROMOTED), ON, {"silent": "l"}, "g1-e1@k CUR; g2-e3@k IN; g2-e2-r1@l OUT", None
    ),
    "the policy was removed": (
        only(ANALYZING, rollout=pb.Rollout()), ON, {}, "g1-e1@k OUT; g2-e2-r1@l CUR", None
    ),
    "judged bad, it goes": (only(REVERTED), ON, {}, "g1-e1@k CUR; g2-e2-r1@l OUT", V21),
    "it does not start": (
        only(ANALYZING), ON.replace("l CUR runs", "l IN fails"), {}, "g1-e1@k CUR; g2-e2-r1@l OUT", V21
    ),
    "it is ill": (
        only(ANALYZING), ON.replace("l CUR runs", "l CUR ill"), {}, "g1-e1@k CUR; g2-e2-r1@l OUT", V21
    ),
    "judged bad while nothing else serves, it is replaced": (
        only(REVERTED), ON.replace("k CUR runs", "k CUR fails"), {},
        "g1-e1@k CUR; g2-e2-r1@l CUR; g1-e3-r1@l IN", V21,
    ),
    "once that serves it is the only one": (
        only(REVERTED, failed=V21, newest=3), "g1-e1@k CUR fails; g1-e3-r1@l CUR runs", {},
        "g1-e1@k OUT; g1-e3-r1@l CUR", V21,
    ),
    "another version takes the place of what is on trial": (
        only(ANALYZING, V31), ON, {}, "g1-e1@k CUR; g2-e2-r1@l CUR; g3-e3-r1@l IN", None
    ),
    "a restart is another try": (
        only(ANALYZING, V25, newest=4), ON, {}, "g1-e1@k CUR; g2-e2-r1@l CUR; g2-e5-r1@l IN", None
    ),
    "the version before is wanted again": (
        only(ANALYZING, Version(3, 1), rollout=pb.Rollout()), ON, {},
        "g1-e1@k CUR; g3-e3@k IN; g2-e2-r1@l OUT", None,
    ),
    "a stop ends what is on trial": (
        only(ANALYZING, stopped=True), ON, {}, "g1-e1@k CUR; g2-e2-r1@l OUT", None
    ),
    "its node is lost: both are there, elsewhere": (
        only(ANALYZING), ON, {"lost": "k"}, "g1-e1@k LOST; g1-e3@m CUR; g2-e2-r1@l CUR", None
    ),
    "its node is lost, and no other is left": (
        only(ANALYZING), ON, {"lost": "k", "free": "k l"}, STAYS, None
    ),
    "two are wanted by now": (only(ANALYZING, replicas=2), ON, {}, STAYS, None),
}  # fmt: skip


@pytest.mark.parametrize(
    ("record", "found", "where", "expected", "failed"),
    [*BEGIN.values(), *TRIAL.values()],
    ids=[*BEGIN, *TRIAL],
)
def test_what_serves_stays_until_the_other_is_judged(
    record: AppRecord, found: str, where: dict[str, Any], expected: str, failed: Version | None
) -> None:
    assert decided(record, found, **where) == (expected, failed)


DOWN: dict[str, tuple[AppRecord, str, str]] = {
    "to one: what is on trial stays, beside one": (
        only(ANALYZING, newest=4), "g1-e1@k CUR runs; g1-e3-r1@m CUR runs; g2-e2-r2@l CUR runs",
        "g1-e1@k CUR; g1-e3-r1@m OUT; g2-e2-r2@l CUR",
    ),
    "to one, stopped: what has proven itself stays": (
        only(ANALYZING, stopped=True), "g2-e2@k CUR; g1-e1-r1@l CUR", "g2-e2@k OUT; g1-e1-r1@l CUR"
    ),
    "to two: something of the version before stays": (
        only(ANALYZING, replicas=2, newest=4),
        "g2-e2@k CUR runs; g2-e3-r1@l CUR runs; g1-e1-r2@m CUR runs; g1-e4-r3@n CUR runs",
        "g2-e2@k CUR; g2-e3-r1@l OUT; g1-e1-r2@m CUR; g1-e4-r3@n OUT",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("record", "found", "expected"), DOWN.values(), ids=DOWN)
def test_fewer_replicas_end_no_trial(record: AppRecord, found: str, expected: str) -> None:
    assert decided(record, found) == (expected, None)


SIGHTS: dict[str, tuple[AppRecord, str, tuple[Any, list[str], int, str]]] = {
    "told before it is ready": (only(newest=0), "g1-e1@k CUR runs", (ANALYZING, ["l"], 1, "")),
    "where nothing serves nothing is tried": (only(), "g1-e1@k CUR fails", (0, [], 0, "")),
    "until it has ended nobody is to ask it": (only(REVERTED), ON, (REVERTED, ["l"], 1, "CANARY_FAILED")),
    "gone": (only(REVERTED, failed=V21), "g1-e1@k CUR runs", (REVERTED, [], 1, "CANARY_FAILED")),
    "promoted": (only(PROMOTED), ON, (PROMOTED, [], 1, "CANARY_FAILED")),
}  # fmt: skip


@pytest.mark.parametrize(("record", "found", "expected"), SIGHTS.values(), ids=SIGHTS)
def test_the_status_tells_how_far_the_trial_is(record: AppRecord, found: str, expected: Any) -> None:
    assert observed(record, found) == expected


def status_of(record: AppRecord, found: str, **where: str) -> pb.App:
    placements, seen = look(found, **where)
    return observe(record, assign(record, placements, seen, 5), seen, 5).status


def test_a_trial_that_finds_no_node_says_so_and_the_app_is_well() -> None:
    status = status_of(only(), "g1-e1@k CUR runs", free="k")
    assert (status.state, status.health, status.ready_replicas) == (RUNNING, HEALTH.HEALTHY, 1)
    scheduled = get_condition(status.conditions, "Scheduled")
    assert scheduled is not None
    assert (scheduled.status, scheduled.reason) == (rt.Condition.UNMET, "NO_NODE_AVAILABLE")
    assert scheduled.message == (
        "The new version is tried beside the one that serves first. "
        "The only node of environments/default cannot take it: with another replica of it."
    )


def test_an_app_is_as_well_as_before_while_the_other_is_about_to_start() -> None:
    status = status_of(only(ANALYZING), "g1-e1@k CUR runs")
    assert (status.state, status.health, status.ready_replicas) == (RUNNING, HEALTH.HEALTHY, 1)
    replicas = get_condition(status.conditions, "Replicas")
    assert replicas is not None
    assert replicas.message == (
        "1 of 2 are ready. The new version is tried beside it on a share of the requests first."
    )


def test_its_address_is_that_of_what_has_proven_itself() -> None:
    record = only(ANALYZING, told={"nodes": ["environments/default/nodes/k"]})
    found = "g2-e2@k CUR runs; g1-e1-r1@l CUR runs"
    placements, seen = look(found)
    for name, view in seen.nodes.items():
        view.node.http_address = f"h:{ord(name[-1])}"
    shown = observe(record, assign(record, placements, seen, 5), seen, 5).status
    assert shown.uri == f"http://a.localhost:{ord('l')}/"


def test_an_app_of_which_nothing_is_tried_is_decided_on_as_ever() -> None:
    assert decided(app(1, newest=0), "g1-e1@k CUR runs") == ("g1-e1@k CUR", None)

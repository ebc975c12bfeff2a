"""What is and what to do, state by state, as pure functions of an app, its placements and a snapshot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.control_plane.placement.assignment import assign, pinned
from services.control_plane.placement.snapshot import Snapshot
from services.control_plane.reconciler.plan import SWITCH_SECONDS, plan
from services.control_plane.rules.app_defaults import RUNTIME_FIELDS
from services.control_plane.rules.conditions import get_condition
from services.control_plane.rules.sentences import sentences
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
    M,
    N,
    after,
    free,
    heard,
    instance,
    placed,
    planned,
    record,
    silent,
    told,
)

PENDING, STOPPED, STOPPING = rt.Instance.PENDING, rt.Instance.STOPPED, rt.Instance.STOPPING
HEALTHY, UNHEALTHY, UNKNOWN = (
    rt.Instance.Health.HEALTHY,
    rt.Instance.Health.UNHEALTHY,
    rt.Instance.Health.UNKNOWN,
)
MET, UNMET, UNCLEAR = rt.Condition.MET, rt.Condition.UNMET, rt.Condition.UNKNOWN
STOP: dict[str, Any] = {"desired": pb.App.STOPPED}
DROP, RETAIN = pb.DeleteAppRequest.DROP, pb.DeleteAppRequest.RETAIN
OLD, NEW = instance(V11, RUNNING), instance(V21, RUNNING)
BROKEN = instance(V21, FAILED, reason="APP_FACTORY_FAILED")
RAN = {"status": pb.App(state=RUNNING)}
FIRST, ONE, BOTH = [placed(V11, IN)], [placed(V11, CUR)], [placed(V11, CUR), placed(V21, IN)]

STATES = {
    # name: (app, placements, snapshot, state, health, Ready, reason, reconciling)
    "unplaced": (record(), [], Snapshot(), PENDING, UNKNOWN, UNMET, "NO_NODE_AVAILABLE", True),
    "placed": (record(), [], free(N), PENDING, UNKNOWN, UNMET, "Starting", True),
    "put off": (
        record(), FIRST, heard(hindrance=("NODE_FULL", "Full.")), PENDING, UNKNOWN, UNMET, "NODE_FULL", True
    ),
    "queued": (record(), FIRST, heard(instance(V11, PENDING)), PENDING, UNKNOWN, UNMET, "Starting", True),
    "starting": (record(), FIRST, heard(instance(V11, STARTING)), STARTING, UNKNOWN, UNMET, "Starting", True),
    "running": (record(), FIRST, heard(OLD), RUNNING, HEALTHY, MET, "Serving", False),
    "dormant": (record(), FIRST, heard(instance(V11, IDLE)), IDLE, UNKNOWN, MET, "Dormant", False),
    "failed": (
        record(), FIRST, heard(instance(V11, FAILED, reason="APP_CRASHED")),
        FAILED, UNHEALTHY, UNMET, "APP_CRASHED", False,
    ),
    "failed without a word": (
        record(), ONE, heard(instance(V11, FAILED)), FAILED, UNHEALTHY, UNMET, "APP_STARTUP_FAILED", False
    ),
    "finished": (record(), ONE, heard(instance(V11, STOPPED)), STOPPED, UNKNOWN, UNMET, "Finished", False),
    "updating": (
        record(V21), BOTH, heard(OLD, instance(V21, STARTING)), RUNNING, HEALTHY, MET, "Serving", True
    ),
    "swapped, not drained": (record(V21), BOTH, heard(OLD, NEW), RUNNING, HEALTHY, MET, "Serving", True),
    "swapped, the end not confirmed": (
        record(V21), [placed(V11, OUT), placed(V21, CUR)], heard(NEW), RUNNING, HEALTHY, MET, "Serving", True
    ),
    "update failed": (record(V21, failed=V21), ONE, heard(OLD), RUNNING, HEALTHY, MET, "Serving", False),
    "stopping": (
        record(**STOP, **RAN), ONE, heard(instance(V11, STOPPING)), STOPPING, UNKNOWN, UNMET, "Stopping", True
    ),
    "stopped": (record(**STOP), ONE, heard(), STOPPED, UNKNOWN, UNMET, "Stopped", False),
    "stopped, never placed": (record(**STOP), [], Snapshot(), STOPPED, UNKNOWN, UNMET, "Stopped", False),
    "deleting": (record(deleting=DROP), ONE, heard(), rt.Instance.DELETING, UNKNOWN, UNMET, "Deleting", True),
    "deleting, its data can't be removed": (
        record(deleting=DROP), ONE, heard(hindrance=("DATA_NOT_REMOVED", "A link.")),
        rt.Instance.DELETING, UNKNOWN, UNMET, "DATA_NOT_REMOVED", True,
    ),
    "deleting, the data of what ended can't be removed": (
        record(deleting=DROP), ONE, heard(instance(V11, STOPPING, reason="DATA_NOT_REMOVED")),
        rt.Instance.DELETING, UNKNOWN, UNMET, "DATA_NOT_REMOVED", True,
    ),
    "unheard, running": (
        record(**RAN), ONE, silent(OLD), RUNNING, UNKNOWN, UNCLEAR, "NODE_UNREACHABLE", False,
    ),
    "unheard, stopping": (
        record(**STOP, **RAN), ONE, silent(OLD), STOPPING, UNKNOWN, UNCLEAR, "NODE_UNREACHABLE", True
    ),
    "unheard, stop while nothing was told": (
        record(**STOP, status=pb.App(state=PENDING)), FIRST, silent(),
        STOPPING, UNKNOWN, UNCLEAR, "NODE_UNREACHABLE", True,
    ),
    "unheard, stopped before": (
        record(**STOP, status=pb.App(state=STOPPED)), ONE, silent(), STOPPED, UNKNOWN, UNMET, "Stopped", False
    ),
    "unheard, deleting": (
        record(deleting=RETAIN, **RAN), ONE, silent(OLD),
        rt.Instance.DELETING, UNKNOWN, UNCLEAR, "NODE_UNREACHABLE", True,
    ),
    "started again, it failed: nothing more will be done": (
        record(V12), [placed(V11, CUR), placed(V12, IN)],
        heard(instance(V12, FAILED, reason="APP_STARTUP_FAILED")),
        FAILED, rt.Instance.Health.UNHEALTHY, UNMET, "APP_STARTUP_FAILED", False,
    ),
    "given up with its node": (
        record(V12, **RAN), [placed(V11, LOST)], silent(OLD),
        PENDING, UNKNOWN, UNMET, "NO_NODE_AVAILABLE", True
    ),
    "serving elsewhere, given up here": (
        record(V12), [placed(V11, LOST), placed(V12, CUR, M)],
        Snapshot({**silent(OLD).nodes, **heard(instance(V12, RUNNING), at=M).nodes}),
        RUNNING, HEALTHY, MET, "Serving", False,
    ),
    "another's instance alone": (
        record(), FIRST, heard(instance(V11, RUNNING, uid="other")), PENDING, UNKNOWN, UNMET, "Starting", True
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_status_tells_what_is(name: str) -> None:
    before, placements, seen, state, health, ready, reason, reconciling = STATES[name]
    then = after(before, placements, seen)
    status = then.status
    condition = get_condition(status.conditions, "Ready")
    assert condition is not None
    assert (rt.Instance.State.Name(status.state), rt.Instance.Health.Name(status.health)) == (
        rt.Instance.State.Name(state),
        rt.Instance.Health.Name(health),
    )
    assert (condition.status, condition.reason, status.reconciling) == (ready, reason, reconciling)
    assert after(then, placements, seen).status == status  # what is known is not told anew


def test_unplaced_and_placed_apps_tell_so() -> None:
    waiting = after(record(), [], Snapshot()).status
    scheduled = get_condition(waiting.conditions, "Scheduled")
    assert scheduled is not None
    assert (scheduled.status, scheduled.reason) == (UNMET, "NO_NODE_AVAILABLE")
    assert "has no node" in scheduled.message
    there = after(record(), FIRST, heard()).status
    scheduled = get_condition(there.conditions, "Scheduled")
    assert scheduled is not None
    assert scheduled.status == MET
    assert there.uri == "http://a.apps.example:8080/"


def test_what_a_node_that_is_not_clear_yet_told_stays_as_it_is() -> None:
    known = after(record(), FIRST, heard(OLD))
    assert after(known, ONE, Snapshot()).status.instances == known.status.instances


@pytest.mark.parametrize(
    ("target", "word"), [(V21, "The version before it"), (V12, "The instance before it")]
)
def test_what_was_given_up_is_told_with_its_reason_in_sentences_of_their_own(
    target: Version, word: str
) -> None:
    broken = instance(target, FAILED, reason="APP_FACTORY_FAILED")
    broken.last_error.message = "name 'FstAPI' is not defined"
    then = after(record(target), [placed(V11, CUR), placed(target, IN)], heard(OLD, broken))
    updated = get_condition(then.status.conditions, "Updated")
    assert updated is not None
    assert (updated.status, updated.reason) == (UNMET, "APP_FACTORY_FAILED")
    assert updated.message == f"name 'FstAPI' is not defined. {word} goes on serving."
    # Nor does the reason go with the instance.
    assert after(then, [placed(V11, CUR)], heard(OLD)).status.conditions == then.status.conditions


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (("One", "Two."), "One. Two."),
        (("One!", "", "Two"), "One! Two."),
        (("He said “no.”", "So"), "He said “no.” So."),
        (("", ""), ""),
    ],
)
def test_sentences_are_never_glued(parts: tuple[str, ...], text: str) -> None:
    assert sentences(*parts) == text


def stops(app: AppRecord, placements: list[PlacementRecord], seen: Snapshot) -> list[tuple[Any, ...]]:
    todo = planned(app, placements, seen)
    return [
        (it.request.name.rpartition("/")[2], it.request.epoch, it.request.app_uid, it.request.purge_data)
        for it in todo.stop
    ]


def started(app: AppRecord, placements: list[PlacementRecord], seen: Snapshot) -> rt.StartInstanceRequest:
    todo = planned(app, placements, seen)
    (start,) = todo.starts
    return start.request


def test_every_field_that_a_node_is_to_know_reaches_it() -> None:
    wanted = record()
    app = wanted.spec
    app.config["size"] = 3
    app.env["A"], app.secret_env["B"] = "a", "b"
    app.domains.append("a.example")
    app.activation, app.isolation = rt.InstanceSpec.ON_REQUEST, rt.InstanceSpec.PROCESS
    app.event_loop = rt.InstanceSpec.ASYNCIO
    app.availability = rt.InstanceSpec.CONSISTENT
    app.database.sqlite.SetInParent()
    app.idle_timeout.FromSeconds(60)
    app.limits.max_threads, app.health_check.path, app.restart_policy.max_restarts = 3, "/", 7
    (placement,) = assign(wanted, [], free(N), 5).placements
    spec = started(wanted, [placement], heard()).spec
    for field in RUNTIME_FIELDS:
        told, asked = getattr(spec, field), getattr(app, field)
        assert told == asked, field
        assert told, field


def test_the_old_version_is_stopped_only_once_the_new_one_is_ready() -> None:
    assert started(record(V21), BOTH, heard(OLD)).spec.name.endswith("g2-e1")
    assert stops(record(V21), BOTH, heard(OLD, instance(V21, STARTING))) == []
    assert stops(record(V21), BOTH, heard(OLD, NEW)) == [("g1-e1", 1, "mine", False)]
    assert stops(record(V21, status=told(OLD)), BOTH, heard(instance(V11, STOPPING), NEW)) == []


def test_a_version_that_failed_is_stopped_and_what_served_is_run_by_its_own_spec() -> None:
    assert stops(record(V21), BOTH, heard(OLD, BROKEN)) == [("g2-e1", 1, "mine", False)]
    again = started(record(V21, failed=V21), ONE, heard())  # the node has lost all
    assert (again.spec.entrypoint, again.spec.generation) == ("v1:app", 1)


MOVED = Snapshot({**heard(OLD).nodes, **heard(instance(V12, RUNNING), at=M).nodes})


FORWARDING = Snapshot({name: replace(view, forwards=True) for name, view in MOVED.nodes.items()})


def test_what_was_moved_away_ends_at_once_and_its_node_is_told_where_it_is_now() -> None:
    placements = [placed(V11, OUT, since=5), placed(V12, CUR, M)]
    app = record(V12, status=told(OLD))
    assigned = assign(app, placements, FORWARDING, 5)
    told_to = plan(app, assigned, FORWARDING, 5)
    (stop,) = told_to.stop
    assert (stop.node, stop.request.name, told_to.after) == (N, "apps/a/instances/g1-e1", 0)
    assert (stop.request.new_home.node, stop.request.new_home.http_address) == (M, "h:8080")
    # Gone, but the catalog still has it: the node, which may have begun anew, is told all the same.
    gone = replace(FORWARDING, nodes={**FORWARDING.nodes, N: replace(FORWARDING.nodes[N], instances={})})
    (stop,) = plan(app, assigned, gone, 5).stop
    assert stop.request.new_home.node == M
    stopped = record(V12, desired=pb.App.STOPPED)
    assert not any(it.request.HasField("new_home") for it in plan(stopped, assigned, FORWARDING, 5).stop)


def test_a_lost_node_that_is_back_is_told_where_its_apps_are() -> None:
    placements = [placed(V11, LOST), placed(V12, CUR, M)]
    app = record(V12, status=told(OLD))
    (stop,) = plan(app, assign(app, placements, FORWARDING, 5), FORWARDING, 5).stop
    assert (stop.node, stop.request.new_home.node) == (N, M)


def test_a_node_that_an_app_comes_back_to_is_told_where_it_is_under_an_epoch_before_that() -> None:
    # Its data has come to the node, which began anew before what was at the other one counted as replaced.
    back = Version(1, 3)
    placements = [placed(V11, CUR, M), placed(V12, OUT), placed(back, IN)]
    app = record(back, status=told(OLD))
    begun_anew = Snapshot({**heard().nodes, **heard(at=M).nodes})
    todo = plan(app, assign(app, placements, begun_anew, 5), begun_anew, 5)
    assert [it.placement.version for it in todo.starts] == [back]
    (stop,) = [it for it in todo.stop if it.node == N]
    assert (stop.request.new_home.node, stop.request.epoch) == (M, V12.epoch)


def test_a_swap_on_one_node_moves_nothing() -> None:
    (stop,) = planned(record(V21), BOTH, heard(OLD, NEW)).stop
    assert not stop.request.HasField("new_home")


def test_what_was_moved_away_serves_on_for_those_who_follow_its_address() -> None:
    placements = [placed(V11, OUT, since=5), placed(V12, CUR, M)]
    assigned = assign(record(V12, status=told(OLD)), placements, MOVED, 5)
    app = record(V12, status=told(OLD))
    begun = plan(app, assigned, MOVED, 5)
    assert (begun.stop, begun.after) == ((), SWITCH_SECONDS)
    assert plan(app, assigned, MOVED, 5 + int(SWITCH_SECONDS * 1e6) - 1000).stop == ()
    over = plan(app, assigned, MOVED, 5 + int(SWITCH_SECONDS * 1e6))
    assert ([it.request.name for it in over.stop], over.after) == (["apps/a/instances/g1-e1"], 0)
    back = plan(app, assigned, MOVED, 4)  # a clock that was set back holds up nothing
    assert len(back.stop) == 1
    stopped = record(V12, desired=pb.App.STOPPED)
    assert len(planned(stopped, placements, MOVED).stop) == 2, "a stop is a stop"


def test_what_was_to_take_over_and_was_taken_back_ends_though_it_is_ready_and_the_other_is_not() -> None:
    placements = [placed(V11, CUR), placed(V12, OUT, M)]
    app = record(V12, failed=V12)
    app.spec.database.no_database.SetInParent()  # with data of its own it would run on one node at a time
    for state in (RUNNING, FAILED):
        seen = Snapshot({**heard(instance(V11, state)).nodes, **heard(instance(V12, RUNNING), at=M).nodes})
        assert [it[0] for it in stops(app, placements, seen)] == ["g1-e2"]


def test_what_is_neither_wanted_nor_ready_is_stopped_at_once() -> None:
    assert stops(record(V21), FIRST, heard(instance(V11, STARTING))) == [("g1-e1", 1, "mine", False)]


def test_what_was_never_seen_is_asked_for_until_its_node_says_that_it_is_gone() -> None:
    replaced = [placed(V11, OUT), placed(V21, CUR)]
    assert stops(record(V21), replaced, heard(NEW)) == [("g1-e1", 1, "mine", False)]
    assert [it.ends for it in planned(record(V21), replaced, heard(NEW)).stop] == [replaced[0]]


def test_what_was_given_up_with_its_node_ends_when_that_is_back() -> None:
    placements = [placed(V11, LOST), placed(V12, CUR, M)]
    here = Snapshot({**heard(OLD).nodes, **heard(instance(V12, STARTING), at=M).nodes})
    assert stops(record(V12), placements, here) == [("g1-e1", 2, "mine", False)]


def test_nothing_is_decided_on_a_node_that_is_not_heard() -> None:
    for before in (record(), record(**STOP), record(deleting=DROP)):
        todo = planned(before, ONE, silent(OLD))
        assert (todo.starts, todo.stop, todo.remove) == ((), (), False)


def test_another_apps_instance_goes_before_its_name_is_used_and_keeps_its_data() -> None:
    theirs = instance(Version(1, 9), RUNNING, uid="other")
    same_name = instance(V11, RUNNING, uid="other")
    assert stops(record(), FIRST, heard(theirs)) == [("g1-e9", 9, "other", False)]
    assert planned(record(), FIRST, heard(theirs)).starts
    assert not planned(record(), FIRST, heard(same_name)).starts
    assert stops(record(), FIRST, heard(same_name)) == [("g1-e1", 1, "other", False)]
    assert stops(record(deleting=DROP), ONE, heard(theirs, OLD)) == [
        ("g1-e9", 9, "other", False),
        ("g1-e1", 1, "mine", True),
    ]


def test_a_deleted_app_is_removed_once_its_nodes_have_said_that_nothing_is_left() -> None:
    for policy in (DROP, RETAIN):
        deleting = record(deleting=policy)
        purges = policy == DROP
        # Not while something of it is there: its data goes with the last of it.
        assert stops(deleting, ONE, heard(instance(V11, STOPPING))) == []
        # Under an epoch above all, so that a start which is still on its way is refused.
        assert stops(deleting, ONE, heard()) == [("g1-e1", 2, "mine", purges)]
        assert not planned(deleting, ONE, heard()).remove
        assert planned(deleting, [], Snapshot()).remove
    stuck = instance(V11, STOPPING, reason="DATA_NOT_REMOVED")
    assert stops(record(deleting=DROP), ONE, heard(stuck)) == [("g1-e1", 1, "mine", True)]


def test_a_stopped_app_is_never_started() -> None:
    todo = planned(record(**STOP), ONE, heard())
    assert (todo.starts, todo.stop, todo.remove) == ((), (), False)


@pytest.mark.parametrize(
    ("target", "role", "seen", "tried"),
    [
        (V11, IN, heard(), False),  # a first start may be dormant
        (V21, CUR, heard(OLD), True),
        (V21, CUR, heard(instance(V11, IDLE)), True),
        (V21, CUR, heard(), True),  # other code than what served
        (V12, CUR, heard(instance(V11, IDLE)), True),
        (V12, CUR, heard(), False),  # started again after a stop, as it was
        (V11, CUR, heard(), False),  # started again in a new life of its node
    ],
)
def test_what_replaces_something_has_to_show_that_it_starts(
    target: Version, role: Any, seen: Snapshot, tried: bool
) -> None:
    assert started(record(target), [placed(V11, role)], seen).start_now is tried


def test_an_app_that_ran_with_data_on_its_node_starts_on_that_data_alone() -> None:
    assert not started(record(), FIRST, heard()).spec.requires_existing_data
    assert started(record(), [placed(V11, CUR, has_data=True)], heard()).spec.requires_existing_data
    assert started(record(V21), [placed(V11, CUR, has_data=True)], heard()).spec.requires_existing_data


def test_a_domain_that_the_app_has_given_up_is_not_served_by_the_version_before() -> None:
    app = record(V21, failed=V21)
    app.spec.domains.append("kept.example")
    spec = pinned(pb.App(entrypoint="v1:app", domains=["kept.example", "gone.example"]))
    current = PlacementRecord("apps/a", "mine", 0, 1, 1, N, CUR, spec)
    assert list(started(app, [current], heard()).spec.domains) == ["kept.example"]

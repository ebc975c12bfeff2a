"""What is and what to do, state by state, as pure functions of a record and a view."""

from typing import Any

import pytest
from services.control_plane.placement.placement import Candidate, choose
from services.control_plane.reconciler.turns import Turns

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.control_plane.reconciler.observation import View, observe, under_new_epoch, wanted_version
from services.control_plane.reconciler.plan import plan
from services.control_plane.rules.conditions import get_condition
from services.control_plane.store.records import AppRecord, Version

NODE = Node(name="environments/default/nodes/n", http_address="h:8080", base_domain="apps.example")
V11, V21, V12 = Version(1, 1), Version(2, 1), Version(1, 2)
State, Health = rt.Instance.State, rt.Instance.Health
MET, UNMET, UNKNOWN = rt.Condition.MET, rt.Condition.UNMET, rt.Condition.UNKNOWN


def record(target: Version = V11, *, desired: Any = pb.App.RUNNING, **fields: Any) -> AppRecord:
    spec = pb.App(name="apps/a", entrypoint=f"v{target.generation}:app", desired_state=desired)
    fields = {"status": pb.App(), "node": NODE.name, **fields}
    return AppRecord(
        "apps/a",
        "mine",
        spec,
        generation=target.generation,
        target=target,
        create_time=1,
        update_time=1,
        **fields,
    )


def instance(version: Version, state: Any, uid: str = "mine", reason: str = "") -> rt.Instance:
    made = rt.Instance(
        name=f"apps/a/instances/{version.instance_id}",
        app_uid=uid,
        generation=version.generation,
        epoch=version.epoch,
        state=state,
        health=Health.HEALTHY if state == State.RUNNING else Health.UNKNOWN,
    )
    if reason:
        made.last_error.reason, made.last_error.message = reason, "It broke."
    return made


def view(*instances: rt.Instance, reachable: bool = True, **fields: Any) -> View:
    return View(NODE, reachable, {i.name: i for i in instances}, **fields)


OLD, NEW = instance(V11, State.RUNNING), instance(V21, State.RUNNING)
BROKEN = instance(V21, State.FAILED, reason="APP_FACTORY_FAILED")
UPDATED = {"served": V11, "served_spec": pb.App(entrypoint="v1:app")}
RAN = {"served": V11, "status": pb.App(state=State.RUNNING)}

STATES = {
    # name: (record, view, state, health, Ready, reason, reconciling)
    "unplaced": (
        record(node=""), View(None, True, {}, "None."),
        State.PENDING, Health.UNKNOWN, UNMET, "NO_NODE_AVAILABLE", True,
    ),
    "placed": (record(), view(), State.PENDING, Health.UNKNOWN, UNMET, "Starting", True),
    "put off": (
        record(), view(hindrance=("NODE_FULL", "Full.")),
        State.PENDING, Health.UNKNOWN, UNMET, "NODE_FULL", True,
    ),
    "queued": (
        record(), view(instance(V11, State.PENDING)),
        State.PENDING, Health.UNKNOWN, UNMET, "Starting", True,
    ),
    "starting": (
        record(), view(instance(V11, State.STARTING)), State.STARTING, Health.UNKNOWN, UNMET, "Starting", True
    ),
    "running": (record(), view(OLD), State.RUNNING, Health.HEALTHY, MET, "Serving", False),
    "dormant": (record(), view(instance(V11, State.IDLE)), State.IDLE, Health.UNKNOWN, MET, "Dormant", False),
    "failed": (
        record(), view(instance(V11, State.FAILED, reason="APP_CRASHED")),
        State.FAILED, Health.UNHEALTHY, UNMET, "APP_CRASHED", False,
    ),
    "failed without a word": (
        record(), view(instance(V11, State.FAILED)),
        State.FAILED, Health.UNHEALTHY, UNMET, "APP_STARTUP_FAILED", False,
    ),
    "finished": (
        record(), view(instance(V11, State.STOPPED)),
        State.STOPPED, Health.UNKNOWN, UNMET, "Finished", False,
    ),
    "updating": (
        record(V21, **UPDATED), view(OLD, instance(V21, State.STARTING)),
        State.RUNNING, Health.HEALTHY, MET, "Serving", True,
    ),
    "swapped, not drained": (
        record(V21, **UPDATED), view(OLD, NEW), State.RUNNING, Health.HEALTHY, MET, "Serving", True
    ),
    "update failed": (
        record(V21, **UPDATED, failed=V21), view(OLD), State.RUNNING, Health.HEALTHY, MET, "Serving", False
    ),
    "stopping": (
        record(desired=pb.App.STOPPED, **RAN), view(instance(V11, State.STOPPING)),
        State.STOPPING, Health.UNKNOWN, UNMET, "Stopping", True,
    ),
    "stopped": (
        record(desired=pb.App.STOPPED), view(),
        State.STOPPED, Health.UNKNOWN, UNMET, "Stopped", False,
    ),
    "stopped, never placed": (
        record(desired=pb.App.STOPPED, node=""), View(None, True, {}),
        State.STOPPED, Health.UNKNOWN, UNMET, "Stopped", False,
    ),
    "deleting": (
        record(deleting=pb.DeleteAppRequest.DROP), view(),
        State.DELETING, Health.UNKNOWN, UNMET, "Deleting", True,
    ),
    "unheard, running": (
        record(**RAN), view(OLD, reachable=False),
        State.RUNNING, Health.UNKNOWN, UNKNOWN, "NODE_UNREACHABLE", False,
    ),
    "unheard, stopping": (
        record(desired=pb.App.STOPPED, **RAN), view(OLD, reachable=False),
        State.STOPPING, Health.UNKNOWN, UNKNOWN, "NODE_UNREACHABLE", True,
    ),
    "unheard, stop while nothing was told": (
        record(desired=pb.App.STOPPED, status=pb.App(state=State.PENDING)), view(reachable=False),
        State.STOPPING, Health.UNKNOWN, UNKNOWN, "NODE_UNREACHABLE", True,
    ),
    "unheard, stopped before": (
        record(desired=pb.App.STOPPED, status=pb.App(state=State.STOPPED)), view(reachable=False),
        State.STOPPED, Health.UNKNOWN, UNMET, "Stopped", False,
    ),
    "unheard, deleting": (
        record(deleting=pb.DeleteAppRequest.RETAIN, **RAN), view(OLD, reachable=False),
        State.DELETING, Health.UNKNOWN, UNKNOWN, "NODE_UNREACHABLE", True,
    ),
    "another's instance alone": (
        record(), view(instance(V11, State.RUNNING, uid="other")),
        State.PENDING, Health.UNKNOWN, UNMET, "Starting", True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_status_tells_what_is(name: str) -> None:
    before, seen, state, health, ready, reason, reconciling = STATES[name]
    after = observe(before, seen, 5)
    status = after.status
    condition = get_condition(status.conditions, "Ready")
    assert condition is not None
    assert (State.Name(status.state), Health.Name(status.health)) == (
        State.Name(state),
        Health.Name(health),
    )
    assert (condition.status, condition.reason, status.reconciling) == (ready, reason, reconciling)
    assert observe(after, seen, 9) is after  # what is known is not stored again


def test_unplaced_and_placed_apps_tell_so() -> None:
    waiting = observe(record(node=""), View(None, True, {}, "No node."), 5).status
    scheduled = get_condition(waiting.conditions, "Scheduled")
    assert scheduled is not None
    assert (scheduled.status, scheduled.reason, scheduled.message) == (UNMET, "NO_NODE_AVAILABLE", "No node.")
    placed = observe(record(), view(), 5).status
    scheduled = get_condition(placed.conditions, "Scheduled")
    assert scheduled is not None
    assert scheduled.status == MET
    assert placed.uri == "http://a.apps.example:8080/"


def test_a_failed_update_is_given_up_for_what_serves_and_told() -> None:
    after = observe(record(V21, **UPDATED), view(OLD, BROKEN), 5)
    assert (after.failed, after.served, wanted_version(after)) == (V21, V11, V11)
    updated = get_condition(after.status.conditions, "Updated")
    assert updated is not None
    assert (updated.status, updated.reason) == (UNMET, "APP_FACTORY_FAILED")
    todo = plan(after, view(OLD, BROKEN))
    assert todo.start is None
    assert [stop.name for stop in todo.stop] == [BROKEN.name]
    again = plan(after, view())  # the node has lost all: what served is started, with its own spec
    assert again.start is not None
    assert (again.start.spec.entrypoint, again.start.spec.generation) == ("v1:app", 1)


def test_a_first_start_that_fails_has_nothing_to_fall_back_to() -> None:
    after = observe(record(V21), view(BROKEN), 5)
    assert after.failed is None
    assert plan(after, view(BROKEN)).stop == ()


def test_a_new_version_that_is_ready_replaces_what_was_served() -> None:
    after = observe(record(V21, **UPDATED, failed=V21), view(OLD, NEW), 5)
    assert (after.served, after.served_spec, after.failed) == (V21, None, None)
    assert [stop.name for stop in plan(after, view(OLD, NEW)).stop] == [OLD.name]


@pytest.mark.parametrize(
    ("before", "known", "target", "served", "failed"),
    [
        (record(), 7, Version(1, 8), None, None),
        (record(V12, served=V11), 1, Version(1, 3), V11, None),
        (record(V21, **UPDATED, failed=V21), 4, Version(2, 5), Version(1, 5), Version(2, 5)),
    ],
)
def test_a_new_epoch_moves_the_wanted_version_above_what_the_node_knows(
    before: AppRecord, known: int, target: Version, served: Version | None, failed: Version | None
) -> None:
    after = under_new_epoch(before, known)
    assert (after.target, after.served, after.failed) == (target, served, failed)
    assert wanted_version(after).generation == wanted_version(before).generation
    assert wanted_version(after).epoch > known


def stops(before: AppRecord, *instances: rt.Instance) -> list[tuple[str, int, str, bool]]:
    todo = plan(before, view(*instances))
    return [(s.name.rpartition("/")[2], s.epoch, s.app_uid, s.purge_data) for s in todo.stop]


def test_the_old_version_is_stopped_only_once_the_new_one_is_ready() -> None:
    updating = record(V21, **UPDATED)
    todo = plan(updating, view(OLD))
    assert todo.start is not None
    assert todo.start.spec.name.endswith("g2-e1")
    assert stops(updating, OLD, instance(V21, State.STARTING)) == []
    assert stops(updating, OLD, NEW) == [("g1-e1", 1, "mine", False)]
    assert stops(updating, instance(V11, State.STOPPING), NEW) == []


def test_what_is_neither_wanted_nor_ready_is_stopped_at_once() -> None:
    assert stops(record(V21), instance(V11, State.STARTING)) == [("g1-e1", 1, "mine", False)]


def test_nothing_is_decided_on_a_node_that_is_not_heard() -> None:
    for before in (record(), record(desired=pb.App.STOPPED), record(deleting=pb.DeleteAppRequest.DROP)):
        todo = plan(before, view(OLD, reachable=False))
        assert (todo.start, todo.stop, todo.remove) == (None, (), False)


def test_another_apps_instance_goes_before_its_name_is_used_and_keeps_its_data() -> None:
    theirs = instance(Version(1, 9), State.RUNNING, uid="other")
    same_name = instance(V11, State.RUNNING, uid="other")
    assert stops(record(), theirs) == [("g1-e9", 9, "other", False)]
    assert plan(record(), view(theirs)).start is not None
    assert plan(record(), view(same_name)).start is None
    assert stops(record(), same_name) == [("g1-e1", 1, "other", False)]
    assert stops(record(deleting=pb.DeleteAppRequest.DROP), theirs, OLD) == [
        ("g1-e9", 9, "other", False),
        ("g1-e1", 1, "mine", True),
    ]


def test_a_deleted_app_is_removed_once_nothing_of_it_is_there() -> None:
    for policy, purges in ((pb.DeleteAppRequest.DROP, [True]), (pb.DeleteAppRequest.RETAIN, [])):
        deleting = record(deleting=policy)
        assert not plan(deleting, view(instance(V11, State.STOPPING))).remove
        todo = plan(deleting, view())
        assert todo.remove
        assert [stop.purge_data for stop in todo.stop] == purges
    assert plan(record(node="", deleting=pb.DeleteAppRequest.DROP), View(None, True, {})).remove


def test_a_stopped_app_is_never_started() -> None:
    todo = plan(record(desired=pb.App.STOPPED), view())
    assert (todo.start, todo.stop, todo.remove) == (None, (), False)


# Placement


def candidate(name: str, apps: int = 0, heard: bool = True, room: int = 0) -> Candidate:
    return Candidate(name, heard, apps, room)


@pytest.mark.parametrize(
    ("nodes", "chosen", "word"),
    [
        ([], "", "has no node"),
        ([candidate("a", heard=False)], "", "can be heard"),
        ([candidate("a", 3, room=3), candidate("b", heard=False)], "", "full"),
        ([candidate("a", 10_000)], "", "full"),
        ([candidate("b"), candidate("a")], "a", "fewest"),
        ([candidate("a", 2), candidate("b", 1)], "b", "fewest"),
        ([candidate("a", 0, heard=False), candidate("b", 5)], "b", "fewest"),
        ([candidate("a", 1, room=1), candidate("b", 5, room=6)], "b", "fewest"),
    ],
)
def test_placement_takes_the_emptiest_node_with_room_or_says_why_none(
    nodes: list[Candidate], chosen: str, word: str
) -> None:
    choice = choose("environments/x", nodes)
    assert choice.node == chosen
    assert word in choice.reason


# Turns


def test_turns_are_one_at_a_time_per_key_and_bounded_per_lane() -> None:
    begun: list[str] = []
    turns = Turns(begun.append, width=2)
    for key in ("a", "b", "c", "a", "c"):
        turns.add(key, "slow")
    turns.add("x", "other")
    assert begun == ["a", "b", "x"]
    turns.done("b")
    assert begun == ["a", "b", "x", "c"]
    turns.done("a")  # it was asked for again meanwhile
    assert begun == ["a", "b", "x", "c", "a"]
    turns.close()
    turns.add("y", "other")
    turns.done("a")
    assert begun == ["a", "b", "x", "c", "a"]

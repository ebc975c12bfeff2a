"""What is and what to do, state by state, as pure functions of a record and a view."""

from typing import Any

import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.control_plane.placement.placement import Candidate, choose
from services.control_plane.reconciler.observation import View, observe, under_new_epoch, wanted_version
from services.control_plane.reconciler.plan import plan
from services.control_plane.reconciler.turns import Turns
from services.control_plane.rules.conditions import get_condition
from services.control_plane.store.records import AppRecord, Version

NODE = Node(name="environments/default/nodes/n", http_address="h:8080", base_domain="apps.example")
V11, V21, V12 = Version(1, 1), Version(2, 1), Version(1, 2)
TRUE, FALSE, UNKNOWN = rt.Condition.TRUE, rt.Condition.FALSE, rt.Condition.UNKNOWN


def record(target: Version = V11, *, desired: Any = pb.RUNNING, **fields: Any) -> AppRecord:
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
        health=rt.HEALTHY if state == rt.RUNNING else rt.UNKNOWN,
    )
    if reason:
        made.last_error.reason, made.last_error.message = reason, "It broke."
    return made


def view(*instances: rt.Instance, reachable: bool = True, **fields: Any) -> View:
    return View(NODE, reachable, {i.name: i for i in instances}, **fields)


OLD, NEW = instance(V11, rt.RUNNING), instance(V21, rt.RUNNING)
BROKEN = instance(V21, rt.FAILED, reason="APP_FACTORY_FAILED")
UPDATED = {"served": V11, "served_spec": pb.App(entrypoint="v1:app")}
RAN = {"served": V11, "status": pb.App(state=rt.RUNNING)}

STATES = {
    # name: (record, view, state, health, Ready, reason, reconciling)
    "unplaced": (
        record(node=""), View(None, True, {}, "None."),
        rt.PENDING, rt.UNKNOWN, FALSE, "NO_NODE_AVAILABLE", True,
    ),
    "placed": (record(), view(), rt.PENDING, rt.UNKNOWN, FALSE, "Starting", True),
    "put off": (
        record(), view(hindrance=("NODE_FULL", "Full.")), rt.PENDING, rt.UNKNOWN, FALSE, "NODE_FULL", True
    ),
    "queued": (record(), view(instance(V11, rt.PENDING)), rt.PENDING, rt.UNKNOWN, FALSE, "Starting", True),
    "starting": (
        record(), view(instance(V11, rt.STARTING)), rt.STARTING, rt.UNKNOWN, FALSE, "Starting", True
    ),
    "running": (record(), view(OLD), rt.RUNNING, rt.HEALTHY, TRUE, "Serving", False),
    "dormant": (record(), view(instance(V11, rt.IDLE)), rt.IDLE, rt.UNKNOWN, TRUE, "Dormant", False),
    "failed": (
        record(), view(instance(V11, rt.FAILED, reason="APP_CRASHED")),
        rt.FAILED, rt.UNHEALTHY, FALSE, "APP_CRASHED", False,
    ),
    "failed without a word": (
        record(), view(instance(V11, rt.FAILED)), rt.FAILED, rt.UNHEALTHY, FALSE, "APP_STARTUP_FAILED", False
    ),
    "finished": (record(), view(instance(V11, rt.STOPPED)), rt.STOPPED, rt.UNKNOWN, FALSE, "Finished", False),
    "updating": (
        record(V21, **UPDATED), view(OLD, instance(V21, rt.STARTING)),
        rt.RUNNING, rt.HEALTHY, TRUE, "Serving", True,
    ),
    "swapped, not drained": (
        record(V21, **UPDATED), view(OLD, NEW), rt.RUNNING, rt.HEALTHY, TRUE, "Serving", True
    ),
    "update failed": (
        record(V21, **UPDATED, failed=V21), view(OLD), rt.RUNNING, rt.HEALTHY, TRUE, "Serving", False
    ),
    "stopping": (
        record(desired=pb.STOPPED, **RAN), view(instance(V11, rt.STOPPING)),
        rt.STOPPING, rt.UNKNOWN, FALSE, "Stopping", True,
    ),
    "stopped": (record(desired=pb.STOPPED), view(), rt.STOPPED, rt.UNKNOWN, FALSE, "Stopped", False),
    "stopped, never placed": (
        record(desired=pb.STOPPED, node=""), View(None, True, {}),
        rt.STOPPED, rt.UNKNOWN, FALSE, "Stopped", False,
    ),
    "deleting": (record(deleting=pb.DROP), view(), rt.DELETING, rt.UNKNOWN, FALSE, "Deleting", True),
    "unheard, running": (
        record(**RAN), view(OLD, reachable=False), rt.RUNNING, rt.UNKNOWN, UNKNOWN, "NODE_UNREACHABLE", False
    ),
    "unheard, stopping": (
        record(desired=pb.STOPPED, **RAN), view(OLD, reachable=False),
        rt.STOPPING, rt.UNKNOWN, UNKNOWN, "NODE_UNREACHABLE", True,
    ),
    "unheard, stop while nothing was told": (
        record(desired=pb.STOPPED, status=pb.App(state=rt.PENDING)), view(reachable=False),
        rt.STOPPING, rt.UNKNOWN, UNKNOWN, "NODE_UNREACHABLE", True,
    ),
    "unheard, stopped before": (
        record(desired=pb.STOPPED, status=pb.App(state=rt.STOPPED)), view(reachable=False),
        rt.STOPPED, rt.UNKNOWN, FALSE, "Stopped", False,
    ),
    "unheard, deleting": (
        record(deleting=pb.RETAIN, **RAN), view(OLD, reachable=False),
        rt.DELETING, rt.UNKNOWN, UNKNOWN, "NODE_UNREACHABLE", True,
    ),
    "another's instance alone": (
        record(), view(instance(V11, rt.RUNNING, uid="other")),
        rt.PENDING, rt.UNKNOWN, FALSE, "Starting", True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_status_tells_what_is(name: str) -> None:
    before, seen, state, health, ready, reason, reconciling = STATES[name]
    after = observe(before, seen, 5)
    status = after.status
    condition = get_condition(status.conditions, "Ready")
    assert condition is not None
    assert (rt.State.Name(status.state), rt.Health.Name(status.health)) == (
        rt.State.Name(state),
        rt.Health.Name(health),
    )
    assert (condition.status, condition.reason, status.reconciling) == (ready, reason, reconciling)
    assert observe(after, seen, 9) is after  # what is known is not stored again


def test_unplaced_and_placed_apps_tell_so() -> None:
    waiting = observe(record(node=""), View(None, True, {}, "No node."), 5).status
    scheduled = get_condition(waiting.conditions, "Scheduled")
    assert scheduled is not None
    assert (scheduled.status, scheduled.reason, scheduled.message) == (FALSE, "NO_NODE_AVAILABLE", "No node.")
    placed = observe(record(), view(), 5).status
    scheduled = get_condition(placed.conditions, "Scheduled")
    assert scheduled is not None
    assert scheduled.status == TRUE
    assert placed.uri == "http://a.apps.example:8080/"


def test_a_failed_update_is_given_up_for_what_serves_and_told() -> None:
    after = observe(record(V21, **UPDATED), view(OLD, BROKEN), 5)
    assert (after.failed, after.served, wanted_version(after)) == (V21, V11, V11)
    updated = get_condition(after.status.conditions, "Updated")
    assert updated is not None
    assert (updated.status, updated.reason) == (FALSE, "APP_FACTORY_FAILED")
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
    assert stops(updating, OLD, instance(V21, rt.STARTING)) == []
    assert stops(updating, OLD, NEW) == [("g1-e1", 1, "mine", False)]
    assert stops(updating, instance(V11, rt.STOPPING), NEW) == []


def test_what_is_neither_wanted_nor_ready_is_stopped_at_once() -> None:
    assert stops(record(V21), instance(V11, rt.STARTING)) == [("g1-e1", 1, "mine", False)]


def test_nothing_is_decided_on_a_node_that_is_not_heard() -> None:
    for before in (record(), record(desired=pb.STOPPED), record(deleting=pb.DROP)):
        todo = plan(before, view(OLD, reachable=False))
        assert (todo.start, todo.stop, todo.remove) == (None, (), False)


def test_another_apps_instance_goes_before_its_name_is_used_and_keeps_its_data() -> None:
    theirs = instance(Version(1, 9), rt.RUNNING, uid="other")
    same_name = instance(V11, rt.RUNNING, uid="other")
    assert stops(record(), theirs) == [("g1-e9", 9, "other", False)]
    assert plan(record(), view(theirs)).start is not None
    assert plan(record(), view(same_name)).start is None
    assert stops(record(), same_name) == [("g1-e1", 1, "other", False)]
    assert stops(record(deleting=pb.DROP), theirs, OLD) == [
        ("g1-e9", 9, "other", False),
        ("g1-e1", 1, "mine", True),
    ]


def test_a_deleted_app_is_removed_once_nothing_of_it_is_there() -> None:
    for policy, purges in ((pb.DROP, [True]), (pb.RETAIN, [])):
        deleting = record(deleting=policy)
        assert not plan(deleting, view(instance(V11, rt.STOPPING))).remove
        todo = plan(deleting, view())
        assert todo.remove
        assert [stop.purge_data for stop in todo.stop] == purges
    assert plan(record(node="", deleting=pb.DROP), View(None, True, {})).remove


def test_a_stopped_app_is_never_started() -> None:
    todo = plan(record(desired=pb.STOPPED), view())
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

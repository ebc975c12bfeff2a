"""The table of replicas: how many there are to be, which is swapped when, and when all go back."""

from __future__ import annotations

from typing import Any

import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.fleet.v1.fleet_pb2 import Node
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.control_plane.placement.assignment import assign, pinned
from services.control_plane.placement.choice import Candidate
from services.control_plane.placement.failover import fence_epoch
from services.control_plane.placement.snapshot import NodeView, Sight, Snapshot
from services.control_plane.reconciler.observation import observe
from services.control_plane.reconciler.plan import plan
from services.control_plane.rules.conditions import get_condition
from services.control_plane.store.records import AppRecord, PlacementRecord, Role, Version
from tests.unit.control_plane.looks import FAILED, IDLE, RUNNING, STARTING, V11, V21

NODES = ("k", "l", "m", "n")
SECOND = 1_000_000
HEALTH = rt.Instance.Health
ROLES = {"IN": Role.INCOMING, "CUR": Role.CURRENT, "OUT": Role.OUTGOING, "LOST": Role.LOST}
STATES: dict[str, tuple[Any, Any]] = {
    "runs": (RUNNING, HEALTH.HEALTHY),
    "sleeps": (IDLE, HEALTH.UNKNOWN),
    "ill": (RUNNING, HEALTH.UNHEALTHY),
    "unproven": (RUNNING, HEALTH.UNKNOWN),
    "starts": (STARTING, HEALTH.UNKNOWN),
    "fails": (FAILED, HEALTH.UNKNOWN),
}


def app(
    replicas: int = 3,
    target: Version = V11,
    *,
    newest: int = 3,
    stopped: bool = False,
    **fields: Any,
) -> AppRecord:
    spec = pb.App(name="apps/a", entrypoint=f"v{target.generation}:app", replicas=replicas)
    spec.environment = "environments/default"
    spec.database.no_database.SetInParent()
    spec.desired_state = pb.App.STOPPED if stopped else pb.App.RUNNING
    for name in ("rollout", "autoscale"):
        if name in fields:
            getattr(spec, name).CopyFrom(fields.pop(name))
    status = fields.pop("status", pb.App())
    status.newest_epoch = newest
    fixed: dict[str, Any] = {"generation": target.generation, "create_time": 1, "update_time": 1}
    return AppRecord("apps/a", "mine", spec, status=status, target=target, **fixed, **fields)


def node(name: str) -> str:
    return f"environments/default/nodes/{name}"


def look(text: str, *, free: str = "k l m n", silent: str = "", lost: str = "", gone: str = "") -> Any:
    """Return the placements and the snapshot of a text: what is where, and how, as `g1-e1@k CUR runs; …`."""
    placements: list[PlacementRecord] = []
    on: dict[str, dict[str, rt.Instance]] = {name: {} for name in NODES}
    for part in filter(None, text.split("; ")):
        what, role, *how = part.split()
        instance_id, _, at = what.partition("@")
        generation, epoch, *number = instance_id.split("-")
        version = Version(int(generation[1:]), int(epoch[1:]))
        placement = PlacementRecord(
            "apps/a", "mine", int(number[0][1:]) if number else 0, version.generation, version.epoch,
            node(at), ROLES[role], pinned(pb.App(entrypoint=f"v{version.generation}:app")),
        )  # fmt: skip
        placements.append(placement)
        if how:
            state, health = STATES[how[0]]
            made = rt.Instance(
                name=placement.instance, app_uid="mine", generation=version.generation, epoch=version.epoch,
                state=state, health=health,
            )  # fmt: skip
            if state == FAILED:
                made.last_error.reason, made.last_error.message = "APP_FACTORY_FAILED", "It broke."
            on[at][made.name] = made
    sights = {**dict.fromkeys(silent.split(), Sight.SILENT), **dict.fromkeys(lost.split(), Sight.LOST)}
    homes = {it.node for it in placements}
    views = {
        node(name): NodeView(
            Node(name=node(name), http_address="h:1"), sights.get(name, Sight.HEARD), instances
        )
        for name, instances in on.items()
        if node(name) in homes and name not in gone.split()
    }
    away = {*silent.split(), *lost.split(), *gone.split()}
    candidates = tuple(Candidate(node(name), name not in away, 0) for name in free.split())
    return placements, Snapshot(views, candidates, frozenset(map(node, gone.split())))


def decided(record: AppRecord, text: str, now: int = 5, **where: str) -> tuple[str, Version | None]:
    """Return what is decided, in the words of `look`, and the version that was given up."""
    placements, seen = look(text, **where)
    assigned = assign(record, placements, seen, now)
    shown = sorted(assigned.placements, key=lambda it: (it.replica, it.epoch))
    names = {role: name for name, role in ROLES.items()}
    parts = (f"{it.instance_id}@{it.node.rpartition('/')[2]} {names[it.role]}" for it in shown)
    return "; ".join(parts), assigned.failed


ALL_RUN = "g1-e1@k CUR runs; g1-e2-r1@l CUR runs; g1-e3-r2@m CUR runs"
ALL = "g1-e1@k CUR; g1-e2-r1@l CUR; g1-e3-r2@m CUR"
HALF = pb.Rollout(batch_percent=67)
PAUSED = pb.Rollout(paused=True)

TABLE: dict[str, tuple[AppRecord, str, str]] = {
    # name: (app, what is, what is to be)
    # How many
    "all come at once, on a node each": (
        app(newest=0), "", "g1-e1@k IN; g1-e2-r1@l IN; g1-e3-r2@m IN"
    ),
    "at rest": (app(), ALL_RUN, ALL),
    "dormant": (app(), ALL_RUN.replace("runs", "sleeps"), ALL),
    "one more": (app(4), ALL_RUN, f"{ALL}; g1-e4-r3@n IN"),
    "from one to three": (
        app(newest=0), "g1-e1@m CUR runs", "g1-e1@m CUR; g1-e2-r1@k IN; g1-e3-r2@l IN"
    ),
    "fewer: the highest go": (
        app(1), ALL_RUN, "g1-e1@k CUR; g1-e2-r1@l OUT; g1-e3-r2@m OUT"
    ),
    "fewer: what does not serve goes first": (
        app(2), "g1-e1@k CUR fails; g1-e2-r1@l CUR runs; g1-e3-r2@m CUR runs",
        "g1-e1@k OUT; g1-e2-r1@l CUR; g1-e3-r2@m CUR",
    ),
    "fewer and back: a number that ends is not used": (
        app(2), "g1-e1@k CUR runs; g1-e2-r1@l OUT runs", "g1-e1@k CUR; g1-e2-r1@l OUT; g1-e4-r2@m IN"
    ),
    # Update and restart: one after the other
    "an update begins with one": (
        app(target=V21), ALL_RUN, "g1-e1@k CUR; g2-e4@k IN; g1-e2-r1@l CUR; g1-e3-r2@m CUR"
    ),
    "a restart begins with one": (
        app(target=Version(1, 4)), ALL_RUN, "g1-e1@k CUR; g1-e4@k IN; g1-e2-r1@l CUR; g1-e3-r2@m CUR"
    ),
    "two of three at a time": (
        app(target=V21, rollout=HALF), ALL_RUN,
        "g1-e1@k CUR; g2-e4@k IN; g1-e2-r1@l CUR; g2-e5-r1@l IN; g1-e3-r2@m CUR",
    ),
    "what is ready but not well does not take over": (
        app(target=V21, newest=4), f"{ALL_RUN}; g2-e4@k IN unproven",
        "g1-e1@k CUR; g2-e4@k IN; g1-e2-r1@l CUR; g1-e3-r2@m CUR",
    ),
    "the next one follows": (
        app(target=V21, newest=4), f"{ALL_RUN}; g2-e4@k IN runs",
        "g1-e1@k OUT; g2-e4@k CUR; g1-e2-r1@l CUR; g2-e5-r1@l IN; g1-e3-r2@m CUR",
    ),
    "the next one waits for what has taken over": (
        app(target=V21, newest=4),
        "g2-e4@k CUR unproven; g1-e2-r1@l CUR runs; g1-e3-r2@m CUR runs",
        "g2-e4@k CUR; g1-e2-r1@l CUR; g1-e3-r2@m CUR",
    ),
    "what does not serve is replaced first": (
        app(target=V21), ALL_RUN.replace("l CUR runs", "l CUR fails"),
        "g1-e1@k CUR; g1-e2-r1@l CUR; g2-e4-r1@l IN; g1-e3-r2@m CUR",
    ),
    "what did not run is not started again as it was": (
        app(target=Version(2, 4)), "g1-e1@k CUR; g1-e2-r1@l CUR; g1-e3-r2@m CUR",
        "g1-e1@k CUR; g2-e4@k IN; g1-e2-r1@l CUR; g2-e5-r1@l IN; g1-e3-r2@m CUR; g2-e6-r2@m IN",
    ),
    "a newer update replaces what was to come": (
        app(target=Version(3, 1), newest=4), f"{ALL_RUN}; g2-e4@k IN starts",
        "g1-e1@k CUR; g2-e4@k OUT; g3-e5@k IN; g1-e2-r1@l CUR; g1-e3-r2@m CUR",
    ),
    "one that moves is left to": (
        app(newest=4), f"{ALL_RUN}; g1-e4@n IN starts",
        "g1-e1@k CUR; g1-e4@n IN; g1-e2-r1@l CUR; g1-e3-r2@m CUR",
    ),
    "one that has failed to move stays": (
        app(newest=4), f"{ALL_RUN}; g1-e4@n IN fails",
        "g1-e1@k CUR; g1-e4@n OUT; g1-e2-r1@l CUR; g1-e3-r2@m CUR",
    ),
    # Paused
    "paused: nothing begins": (app(target=V21, rollout=PAUSED), ALL_RUN, ALL),
    "paused: what comes in takes over": (
        app(target=V21, newest=4, rollout=PAUSED), f"{ALL_RUN}; g2-e4@k IN runs",
        "g1-e1@k OUT; g2-e4@k CUR; g1-e2-r1@l CUR; g1-e3-r2@m CUR",
    ),
    "paused: one more is as those that serve": (
        app(4, target=V21, rollout=PAUSED), ALL_RUN, f"{ALL}; g1-e4-r3@n IN"
    ),
    "paused: one more stays as it came": (
        app(4, target=V21, newest=4, rollout=PAUSED), f"{ALL_RUN}; g1-e4-r3@n IN starts",
        f"{ALL}; g1-e4-r3@n IN",
    ),
    # Stop and delete
    "stopped: where they were": (
        app(target=V21, newest=4, stopped=True), f"{ALL_RUN}; g2-e4@k IN starts",
        "g1-e1@k CUR; g2-e4@k OUT; g1-e2-r1@l CUR; g1-e3-r2@m CUR",
    ),
    "stopped, and fewer": (
        app(2, stopped=True), ALL, "g1-e1@k CUR; g1-e2-r1@l CUR; g1-e3-r2@m OUT"
    ),
    "deleted": (
        app(deleting=pb.DeleteAppRequest.DROP), ALL_RUN, ALL.replace("CUR", "OUT")
    ),
}  # fmt: skip


@pytest.mark.parametrize(("record", "found", "expected"), TABLE.values(), ids=TABLE)
def test_what_is_to_be_follows_from_what_is(record: AppRecord, found: str, expected: str) -> None:
    assert decided(record, found) == (expected, None)


GOING_BACK: dict[str, tuple[AppRecord, str, str]] = {
    "the first fails": (
        app(target=V21, newest=4), f"{ALL_RUN}; g2-e4@k IN fails",
        "g1-e1@k CUR; g2-e4@k OUT; g1-e2-r1@l CUR; g1-e3-r2@m CUR",
    ),
    "the first is unhealthy": (
        app(target=V21, newest=4), f"{ALL_RUN}; g2-e4@k IN ill",
        "g1-e1@k CUR; g2-e4@k OUT; g1-e2-r1@l CUR; g1-e3-r2@m CUR",
    ),
    "the third fails: the two before go back": (
        app(target=V21, newest=6),
        "g2-e4@k CUR runs; g2-e5-r1@l CUR runs; g1-e3-r2@m CUR runs; g2-e6-r2@m IN fails",
        "g2-e4@k CUR; g1-e7@k IN; g2-e5-r1@l CUR; g1-e8-r1@l IN; g1-e3-r2@m CUR; g2-e6-r2@m OUT",
    ),
    "one that has taken over crashes": (
        app(target=V21, newest=5),
        "g2-e4@k CUR fails; g1-e2-r1@l CUR runs; g2-e5-r1@l IN starts; g1-e3-r2@m CUR runs",
        "g2-e4@k CUR; g1-e6@k IN; g1-e2-r1@l CUR; g2-e5-r1@l OUT; g1-e3-r2@m CUR",
    ),
    "on the way back": (
        app(target=V21, newest=8, failed=V21),
        "g2-e4@k CUR runs; g1-e7@k IN runs; g2-e5-r1@l CUR runs; g1-e8-r1@l IN starts; g1-e3-r2@m CUR runs",
        "g2-e4@k OUT; g1-e7@k CUR; g2-e5-r1@l CUR; g1-e8-r1@l IN; g1-e3-r2@m CUR",
    ),
    "on the way back, which fails as well: what sleeps is let be": (
        app(target=V21, newest=8, failed=V21),
        "g1-e1@k CUR sleeps; g2-e4-r1@l CUR sleeps; g1-e7-r1@l IN fails; g2-e5-r2@m CUR sleeps",
        "g1-e1@k CUR; g2-e4-r1@l CUR; g1-e7-r1@l IN; g2-e5-r2@m CUR; g1-e9-r2@m IN",
    ),
    "back": (
        app(target=V21, newest=8, failed=V21),
        "g1-e7@k CUR runs; g1-e8-r1@l CUR runs; g1-e3-r2@m CUR runs",
        "g1-e7@k CUR; g1-e8-r1@l CUR; g1-e3-r2@m CUR",
    ),
    "back, and one more": (
        app(4, target=V21, newest=8, failed=V21),
        "g1-e7@k CUR runs; g1-e8-r1@l CUR runs; g1-e3-r2@m CUR runs",
        "g1-e7@k CUR; g1-e8-r1@l CUR; g1-e3-r2@m CUR; g1-e9-r3@n IN",
    ),
    "a new one of the new version fails": (
        app(4, target=V21, newest=5), f"{ALL_RUN}; g2-e4-r3@n IN fails",
        f"{ALL}; g2-e4-r3@n OUT; g1-e6-r3@n IN",
    ),
    "of two versions before, all go to the newer": (
        app(target=Version(3, 1), newest=5),
        "g2-e4@k CUR runs; g1-e2-r1@l CUR runs; g3-e5-r1@l IN fails; g1-e3-r2@m CUR runs",
        "g2-e4@k CUR; g1-e2-r1@l CUR; g3-e5-r1@l OUT; g2-e6-r1@l IN; g1-e3-r2@m CUR; g2-e7-r2@m IN",
    ),
    "one of another version moves first": (
        app(target=Version(3, 1), newest=5, failed=Version(3, 1)),
        "g2-e4@k CUR runs; g1-e2-r1@l CUR runs; g1-e5-r1@n IN starts; g2-e3-r2@m CUR runs",
        "g2-e4@k CUR; g1-e2-r1@l CUR; g1-e5-r1@n IN; g2-e3-r2@m CUR",
    ),
    "a restart fails: those before it stay": (
        app(target=Version(1, 4), newest=5),
        "g1-e4@k CUR runs; g1-e2-r1@l CUR runs; g1-e5-r1@l IN fails; g1-e3-r2@m CUR runs",
        "g1-e4@k CUR; g1-e2-r1@l CUR; g1-e5-r1@l OUT; g1-e3-r2@m CUR",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("record", "found", "expected"), GOING_BACK.values(), ids=GOING_BACK)
def test_what_fails_goes_back_to_the_version_before(record: AppRecord, found: str, expected: str) -> None:
    assert decided(record, found) == (expected, record.target)


def test_nothing_is_given_up_where_there_is_nothing_to_go_back_to() -> None:
    found = "g1-e1@k IN fails; g1-e2-r1@l IN fails; g1-e3-r2@m IN starts"
    assert decided(app(), found) == (found.replace(" fails", "").replace(" starts", ""), None)


def test_the_next_follows_only_after_the_time_that_proves_the_one_before() -> None:
    rollout = pb.Rollout()
    rollout.min_ready_duration.FromSeconds(10)
    record = app(target=V21, newest=4, rollout=rollout)
    found = "g2-e4@k CUR runs; g1-e2-r1@l CUR runs; g1-e3-r2@m CUR runs"
    placements, seen = look(found)
    early = assign(record, placements, seen, 4 * SECOND)
    assert early.after == pytest.approx(6)
    assert plan(record, early, seen, 4 * SECOND).after == pytest.approx(6)
    assert len(early.placements) == 3
    assert decided(record, found, 11 * SECOND)[0].count("IN") == 1


LOSSES: dict[str, tuple[AppRecord, str, dict[str, str], str]] = {
    "a lost one comes up elsewhere, its siblings stay": (
        app(), ALL_RUN, {"lost": "l"}, "g1-e1@k CUR; g1-e2-r1@l LOST; g1-e4-r1@n CUR; g1-e3-r2@m CUR"
    ),
    "two lost ones": (
        app(2), "g1-e1@k CUR runs; g1-e2-r1@l CUR runs", {"lost": "k l"},
        "g1-e1@k LOST; g1-e4@m CUR; g1-e2-r1@l LOST; g1-e5-r1@n CUR",
    ),
    "no node left: it waits": (app(), ALL_RUN, {"lost": "l", "free": "k l m"}, ALL),
    "as it served, also in a rollout": (
        app(target=V21, newest=4), "g2-e4@k CUR unproven; g1-e2-r1@l CUR runs; g1-e3-r2@m CUR runs",
        {"lost": "l"}, "g2-e4@k CUR; g1-e2-r1@l LOST; g1-e5-r1@n CUR; g1-e3-r2@m CUR",
    ),
    "only what came is lost": (
        app(target=V21, newest=4), f"{ALL_RUN}; g1-e4@n IN starts", {"lost": "n"},
        "g1-e1@k CUR; g1-e4@n LOST; g2-e5@k IN; g1-e2-r1@l CUR; g1-e3-r2@m CUR",
    ),
    "its node was deleted": (
        app(), ALL_RUN, {"gone": "l"}, "g1-e1@k CUR; g1-e4-r1@n IN; g1-e3-r2@m CUR"
    ),
    "a silent node holds up none but its own": (
        app(target=V21), ALL_RUN, {"silent": "k"},
        "g1-e1@k CUR; g1-e2-r1@l CUR; g2-e4-r1@l IN; g1-e3-r2@m CUR",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("record", "found", "where", "expected"), LOSSES.values(), ids=LOSSES)
def test_a_lost_node_costs_its_own_replica(
    record: AppRecord, found: str, where: dict[str, str], expected: str
) -> None:
    assert decided(record, found, **where) == (expected, None)


def status_of(record: AppRecord, found: str, **where: str) -> pb.App:
    placements, seen = look(found, **where)
    return observe(record, assign(record, placements, seen, 5), seen, 5).status


SIGHTS: dict[str, tuple[AppRecord, str, dict[str, str], tuple[Any, Any, int, str, bool]]] = {
    # name: (app, what is, where, (state, health, ready, what `Replicas` says, reconciling))
    "all": (app(), ALL_RUN, {}, (RUNNING, HEALTH.HEALTHY, 3, "3 of 3 are ready.", False)),
    "all dormant": (
        app(), ALL_RUN.replace("runs", "sleeps"), {},
        (IDLE, HEALTH.UNKNOWN, 3, "3 of 3 are ready.", False),
    ),
    "one still starts": (
        app(), ALL_RUN.replace("m CUR runs", "m IN starts"), {},
        (RUNNING, HEALTH.HEALTHY, 2, "2 of 3 are ready.", True),
    ),
    "none yet": (
        app(), ALL_RUN.replace("CUR runs", "IN starts"), {},
        (STARTING, HEALTH.UNKNOWN, 0, "0 of 3 are ready.", True),
    ),
    "one has failed": (
        app(), ALL_RUN.replace("m CUR runs", "m CUR fails"), {},
        (RUNNING, HEALTH.DEGRADED, 2, "2 of 3 are ready.", False),
    ),
    "one is ill": (
        app(), ALL_RUN.replace("m CUR runs", "m CUR ill"), {},
        (RUNNING, HEALTH.DEGRADED, 3, "3 of 3 are ready.", False),
    ),
    "all have failed": (
        app(), ALL_RUN.replace("runs", "fails"), {},
        (FAILED, HEALTH.UNHEALTHY, 0, "0 of 3 are ready.", False),
    ),
    "one cannot be heard": (
        app(), ALL_RUN, {"silent": "k"}, (RUNNING, HEALTH.DEGRADED, 2, "2 of 3 are ready.", False)
    ),
    "none can be heard": (
        app(status=pb.App(state=RUNNING)), ALL_RUN, {"silent": "k l m"},
        (RUNNING, HEALTH.UNKNOWN, 0, "0 of 3 are ready.", False),
    ),
    "no node for one": (
        app(4), ALL_RUN, {"free": "k l m"}, (RUNNING, HEALTH.DEGRADED, 3, "3 of 4 are ready.", True)
    ),
    "a rollout goes on": (
        app(target=V21, newest=4), f"{ALL_RUN}; g2-e4@k IN runs", {},
        (RUNNING, HEALTH.HEALTHY, 3, "3 of 3 are ready. 1 of 3 have been replaced.", True),
    ),
    "a rollout is paused": (
        app(target=V21, rollout=PAUSED), ALL_RUN, {},
        (
            RUNNING, HEALTH.HEALTHY, 3,
            "3 of 3 are ready. 0 of 3 have been replaced. The rollout is paused.", False,
        ),
    ),
    "back after a failure": (
        app(target=V21, newest=8, failed=V21), "g1-e7@k CUR runs; g1-e8-r1@l CUR runs; g1-e3-r2@m CUR runs",
        {}, (RUNNING, HEALTH.HEALTHY, 3, "3 of 3 are ready.", False),
    ),
    "back, but for one of which the version before fails": (
        app(target=V21, newest=8, failed=V21),
        "g2-e4@k CUR runs; g1-e7@k IN fails; g1-e8-r1@l CUR runs; g1-e3-r2@m CUR runs",
        {}, (RUNNING, HEALTH.HEALTHY, 3, "3 of 3 are ready.", False),
    ),
    "on the way back": (
        app(target=V21, newest=8, failed=V21),
        "g2-e4@k CUR runs; g1-e7@k IN starts; g1-e8-r1@l CUR runs; g1-e3-r2@m CUR runs", {},
        (RUNNING, HEALTH.HEALTHY, 3, "3 of 3 are ready.", True),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("record", "found", "where", "expected"), SIGHTS.values(), ids=SIGHTS)
def test_the_status_tells_of_all_replicas(
    record: AppRecord, found: str, where: dict[str, str], expected: Any
) -> None:
    status = status_of(record, found, **where)
    replicas = get_condition(status.conditions, "Replicas")
    assert replicas is not None
    told = (status.state, status.health, status.ready_replicas, replicas.message, status.reconciling)
    assert told == expected


def test_why_a_rollout_was_given_up_is_told() -> None:
    status = status_of(app(target=V21, newest=4), f"{ALL_RUN}; g2-e4@k IN ill")
    updated = get_condition(status.conditions, "Updated")
    assert updated is not None
    assert (updated.status, updated.reason) == (rt.Condition.UNMET, "APP_UNHEALTHY")
    assert "g2-e4 was ready and is UNHEALTHY" in updated.message


def test_each_replica_is_started_and_stopped_by_itself() -> None:
    record = app(2, newest=5)
    found = "g1-e1@k CUR; g1-e2-r1@l CUR runs; g1-e3-r2@m OUT runs; g1-e4-r1@l OUT starts"
    placements, seen = look(found)
    todo = plan(record, assign(record, placements, seen, 5), seen, 60 * SECOND)
    assert [it.placement.instance_id for it in todo.starts] == ["g1-e1"]
    assert {it.request.name.rpartition("/")[2] for it in todo.stop} == {"g1-e3-r2", "g1-e4-r1"}


def test_what_is_taken_away_serves_on_until_those_who_sent_it_requests_know() -> None:
    placements, seen = look("g1-e1@k CUR runs; g1-e2-r1@l OUT runs")
    record = app(1)
    assigned = assign(record, placements, seen, 5)
    soon = plan(record, assigned, seen, 1 * SECOND)
    assert (soon.stop, soon.after) == ((), pytest.approx(2))
    assert len(plan(record, assigned, seen, 4 * SECOND).stop) == 1


def test_what_finds_no_node_takes_no_epoch() -> None:
    placements, seen = look("", free="")
    record = observe(app(newest=0), assign(app(newest=0), placements, seen, 5), seen, 5)
    assert record.status.newest_epoch == 0
    assert observe(record, assign(record, placements, seen, 6), seen, 6) is record, "never at rest"


def test_a_lost_replica_is_shut_out_of_database_and_node_and_its_siblings_are_not() -> None:
    placements, seen = look(ALL_RUN, lost="l")
    after = assign(app(), placements, seen, 5)
    assert {it.epoch for it in after.staying} == {1, 3, 4}, "the logins that stay open"
    fences = {name: fence_epoch(app().uid, node(name), after.placements, ()) for name in NODES}
    assert fences == {"k": 0, "l": 3, "m": 0, "n": 0}

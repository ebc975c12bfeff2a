"""Whatever two replicas are found as: where nothing is left to be done, they are of one version, as is told.

As `test_rest` does for one replica: every combination is decided on, observed and planned until that changes
nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations_with_replacement, product

import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.control_plane.placement.assignment import assign, pinned
from services.control_plane.placement.canary import is_of
from services.control_plane.placement.choice import Candidate
from services.control_plane.placement.snapshot import NodeView, Sight, Snapshot
from services.control_plane.reconciler.observation import observe
from services.control_plane.reconciler.plan import plan
from services.control_plane.store.records import PlacementRecord, Version
from tests.unit.control_plane.looks import CUR, FAILED, IN, RUNNING, M, N, instance, node
from tests.unit.control_plane.test_canary import ANALYZING, PROMOTED, REVERTED, TRIED, status
from tests.unit.control_plane.test_replicas import PAUSED, app

LATER = 10**9
"""µs: what was replaced lingers no more."""
TARGET = Version(3, 5)

Found = tuple[int, bool]
"""Generation, and whether it runs: else it has failed."""
Pair = tuple[Found | None, Found | None]
"""What serves of a replica, or did last, and what comes in."""


def pairs() -> Iterator[Pair]:
    """Yield what may be found of a replica: of two versions before, or of the one that is wanted."""
    found: list[Found | None] = [None, *product((1, 2, 3), (True, False))]
    yield from (it for it in product(found, repeat=2) if it != (None, None))


def look(found: tuple[Pair, ...]) -> tuple[tuple[PlacementRecord, ...], Snapshot]:
    placements: list[PlacementRecord] = []
    there: dict[str, dict[str, rt.Instance]] = defaultdict(dict)
    for number, (at, pair) in enumerate(zip((N, M), found, strict=True)):
        for role, it in zip((CUR, IN), pair, strict=True):
            if it is None:
                continue
            # Each has an epoch of its own; those of the wanted generation are of the wanted epoch or later.
            generation, runs = it
            version = Version(generation, 1 + 2 * number + (role is IN) + 4 * (generation == 3))
            spec = pinned(pb.App(entrypoint=f"v{generation}:app"))
            made = PlacementRecord("apps/a", "mine", number, generation, version.epoch, at, role, spec)
            placements.append(made)
            here = instance(version, RUNNING if runs else FAILED, reason="" if runs else "APP_CRASHED")
            here.name = made.instance
            there[at][here.name] = here
    views = {name: NodeView(node(name), Sight.HEARD, there[name]) for name in (N, M)}
    return tuple(placements), Snapshot(views, tuple(Candidate(name, True, 0) for name in (N, M)))


def rest(
    found: tuple[Pair, ...], failed: Version | None, told: pb.App, rollout: pb.Rollout, replicas: int = 2
) -> str:
    """Return what is wrong about how an app comes to rest, empty if nothing is."""
    placements, seen = look(found)
    known = pb.App(reconciling=True)
    known.MergeFrom(told)
    record = app(replicas, TARGET, newest=8, failed=failed, status=known, rollout=rollout)
    for _ in range(8):
        assigned = assign(record, placements, seen, LATER)
        observed = observe(record, assigned, seen, LATER)
        if observed == record and set(assigned.placements) == set(placements):
            break
        record, placements = observed, assigned.placements
    else:
        return "it is decided anew each time"
    todo = plan(record, assigned, seen, LATER)
    if todo.starts or todo.stop or todo.remove or todo.after or assigned.unplaced:
        return ""  # it is not at rest
    canary = record.status.canary
    if canary.state == ANALYZING and canary.HasField("begin_time"):
        return ""  # its verdict is still to come
    roles = ", ".join(f"{it.instance_id} {it.role.name}" for it in placements)
    if record.status.reconciling:
        return f"it says reconciling: {roles}"
    wanted = {it.wanted.generation for it in assigned.by_replica().values() if it.wanted is not None}
    if len(wanted) > 1 and not (rollout.paused and record.failed is None):
        return f"of several versions: {roles}"
    gone = {it.generation for it in assigned.staying} <= wanted and is_of(canary, TARGET)
    return f"it says that one is on trial: {roles}" if gone and canary.nodes and not rollout.paused else ""


CASES: dict[str, tuple[Version | None, pb.App, pb.Rollout]] = {
    "wanted": (None, pb.App(), pb.Rollout()),
    "given up": (TARGET, pb.App(), pb.Rollout()),
    "paused": (None, pb.App(), PAUSED),
    "on trial": (None, status(ANALYZING, 3, 5, 1), TRIED),
    "on trial, and paused": (None, status(ANALYZING, 3, 5, 1), pb.Rollout(canary=TRIED.canary, paused=True)),
    "promoted, and paused": (None, status(PROMOTED, 3, 5, 1), pb.Rollout(canary=TRIED.canary, paused=True)),
    "judged bad": (None, status(REVERTED, 3, 5, 1), TRIED),
    "judged bad, and given up": (TARGET, status(REVERTED, 3, 5, 1), TRIED),
    "another was judged bad": (TARGET, status(REVERTED, 2, 3, 1), pb.Rollout()),
}


OFTEN = (("on trial", 2), ("on trial", 1))
PARTS = [(it, replicas) for it in CASES for replicas in (2, 1)]


@pytest.mark.parametrize(
    ("case", "replicas"), [pytest.param(*it, marks=() if it in OFTEN else pytest.mark.slow) for it in PARTS]
)
def test_replicas_at_rest_are_of_one_version_and_say_so(case: str, replicas: int) -> None:
    every = combinations_with_replacement(pairs(), 2)
    wrong = [(why, found) for found in every if (why := rest(found, *CASES[case], replicas))]
    assert wrong == []

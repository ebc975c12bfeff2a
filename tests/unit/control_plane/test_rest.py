"""Whatever two versions of an app are found as: where nothing is left to be done, the app says so.

Every combination of roles, states and nodes is decided on, observed and planned until that changes nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.runtime.v1 import runtime_environment_pb2 as rt
from services.control_plane.placement.assignment import assign
from services.control_plane.placement.data_travel import travel_of
from services.control_plane.placement.snapshot import NodeView, Sight, Snapshot
from services.control_plane.reconciler.observation import observe
from services.control_plane.reconciler.plan import plan
from services.control_plane.reconciler.rest import is_at_rest
from services.control_plane.reconciler.settling import settles
from services.control_plane.store.records import PlacementRecord, Role, Version
from tests.unit.control_plane.looks import (
    CUR,
    IDLE,
    IN,
    OUT,
    RUNNING,
    V11,
    V21,
    M,
    N,
    instance,
    node,
    placed,
    record,
    silent,
)  # fmt: skip

LATER = 10**9
"""µs: what was replaced lingers no more."""
STATES = (None, rt.Instance.RUNNING, rt.Instance.IDLE, rt.Instance.FAILED, rt.Instance.STOPPED)
"""Of an instance that will not change by itself; None of one that is not there."""

Found = tuple[Role, Any, str]
"""Role, state and node of one version."""


def combinations() -> Iterator[dict[Version, Found]]:
    """Yield what may be found of an app: no two versions come in, or serve."""
    kinds: list[Found | None] = [None, *product((IN, CUR, OUT), STATES, (N, M))]
    for first, second in product(kinds, repeat=2):
        found = {version: it for version, it in ((V11, first), (V21, second)) if it is not None}
        roles = Counter(role for role, _, _ in found.values())
        if roles[IN] <= 1 and roles[CUR] <= 1:
            yield found


def seen_of(found: dict[Version, Found]) -> Snapshot:
    there: dict[str, dict[str, rt.Instance]] = defaultdict(dict)
    for version, (_, state, at) in found.items():
        if state is not None:
            it = instance(version, state, reason="APP_CRASHED" if state == rt.Instance.FAILED else "")
            it.node = at
            there[at][it.name] = it
    return Snapshot({name: NodeView(node(name), Sight.HEARD, there[name]) for name in (N, M)})


def rest(found: dict[Version, Found], desired: Any, failed: Version | None) -> str:
    """Return what is wrong about how an app comes to rest, empty if nothing is."""
    seen = seen_of(found)
    app = record(V21, desired=desired, failed=failed, status=pb.App(reconciling=True))
    app.spec.database.no_database.SetInParent()  # else it waits for its data, which others bring
    placements: tuple[PlacementRecord, ...] = tuple(placed(v, role, at) for v, (role, _, at) in found.items())
    for _ in range(6):
        assigned = assign(app, placements, seen, LATER)
        observed = observe(app, assigned, seen, LATER)
        if observed == app and set(assigned.placements) == set(placements):
            break
        app, placements = observed, assigned.placements
    else:
        return "it is decided anew each time"
    todo = plan(app, assigned, seen, LATER)
    acts = todo.starts or todo.stop or todo.remove or todo.after or assigned.unplaced
    if acts or travel_of(assigned.placements) is not None:
        return ""  # it is not at rest, or its data is on its way
    roles = ", ".join(f"{it.instance_id} {it.role.name}" for it in placements)
    return f"it says reconciling: {roles}" if app.status.reconciling else ""


@pytest.mark.parametrize("desired", [pb.App.RUNNING, pb.App.STOPPED])
@pytest.mark.parametrize("failed", [None, V21], ids=["wanted", "given up"])
def test_an_app_of_which_nothing_is_left_to_be_done_says_so(desired: Any, failed: Version | None) -> None:
    wrong = [(why, found) for found in combinations() if (why := rest(found, desired, failed))]
    assert wrong == []


@pytest.mark.parametrize("desired", [pb.App.RUNNING, pb.App.STOPPED])
@pytest.mark.parametrize("failed", [None, V21], ids=["wanted", "given up"])
def test_what_a_pass_settles_another_one_finds_as_it_is(desired: Any, failed: Version | None) -> None:
    wrong, settled = [], 0
    for found in combinations():
        app = record(V21, desired=desired, failed=failed, status=pb.App(reconciling=True))
        seen, before = seen_of(found), tuple(placed(v, role, at) for v, (role, _, at) in found.items())
        assigned = assign(app, before, seen, LATER)
        if not settles(app, before, assigned):
            continue
        settled += 1
        observed = observe(app, assigned, seen, LATER)
        again = assign(observed, assigned.placements, seen, LATER)
        same = again.placements == assigned.placements and again.unplaced == assigned.unplaced
        if not same or observe(observed, again, seen, LATER) != observed:
            wrong.append(found)
    assert settled or desired == pb.App.STOPPED
    assert wrong == []


@pytest.mark.parametrize("desired", [pb.App.RUNNING, pb.App.STOPPED])
def test_what_is_at_rest_at_a_glance_is_found_as_it_is_by_a_pass(desired: Any) -> None:
    wrong, resting = [], Counter[tuple[Any, ...]]()
    for found in combinations():
        if V21 not in found or found.get(V11, (CUR, None, N))[::2] != (CUR, N):
            continue  # what has no placement is an instance without one, of whatever state
        seen, (role, _, at) = seen_of(found), found[V21]
        placements, shown = (placed(V21, role, at),), seen.nodes[N].instances
        for before in (seen, silent(*shown.values()), Snapshot()):  # as it was stored, whatever was seen then
            app = record(V21, desired=desired, status=pb.App(reconciling=True))
            app.spec.database.no_database.SetInParent()
            for _ in range(3):
                app = observe(app, assign(app, placements, before, LATER), before, LATER)
            if not is_at_rest(app.packed, placements, N, shown):
                continue
            resting[tuple(it.state for it in shown.values())] += 1
            assigned = assign(app, placements, seen, LATER)
            todo = plan(app, assigned, seen, LATER)
            same = assigned.placements == placements and observe(app, assigned, seen, LATER) is app
            if not same or todo.starts or todo.stop or todo.remove or todo.after:
                wrong.append((found, before))
    assert wrong == []
    assert resting.keys() == ({(RUNNING,), (IDLE,)} if desired == pb.App.RUNNING else {()})


def told(status: pb.App) -> bool:
    """Tell whether an app that runs and is stored with such a status is at rest at a glance."""
    app = record(V21, status=status)
    return is_at_rest(app.packed, (placed(V21, CUR),), N, {RUNS.name: RUNS})


RUNS = instance(V21, RUNNING)
RUNS.node = N


def test_what_tells_anything_else_than_that_an_app_runs_has_it_looked_at() -> None:
    app = record(V21, status=pb.App())
    app.spec.database.no_database.SetInParent()
    seen = Snapshot({N: NodeView(node(), Sight.HEARD, {RUNS.name: RUNS})})
    status = observe(app, assign(app, [placed(V21, CUR)], seen, LATER), seen, LATER).status
    assert told(status)
    for news in (
        {"reconciling": True},
        {"observed_generation": 1},
        {"newest_epoch": 3},
        {"retained_data": "environments/default/nodes/n/retainedData/x"},
        {"availability_reason": pb.App.ONLY_NODE},
        {"data_move": pb.DataMove(state=pb.DataMove.ARRIVED)},
        {"database_move": pb.DatabaseMove(source_server="databaseServers/a")},
        {"canary": pb.Canary(nodes=[N])},
        {"state": IDLE},
        {"instances": [instance(V11, IDLE)]},
        {"conditions": [rt.Condition(type="Ready", status=rt.Condition.UNKNOWN)]},
    ):
        other = pb.App()
        other.CopyFrom(status)
        if "conditions" in news:
            del other.conditions[:]
        other.MergeFrom(pb.App(**news))
        assert not told(other), news
    restarted = rt.Instance()
    restarted.CopyFrom(RUNS)
    restarted.restart_count = 1
    del status.instances[:]
    status.instances.append(restarted)
    assert not told(status), "the node shows another start of it"

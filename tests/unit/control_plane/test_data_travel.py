"""The table of whose an app's data is: where it has to go, what may run meanwhile, what is removed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from services.control_plane.placement.assignment import assign
from services.control_plane.placement.data_travel import (
    data_home,
    has_arrived,
    is_kept,
    is_last_owner,
    leaves_copy,
    travel_of,
    with_new_owner,
)
from services.control_plane.placement.snapshot import Snapshot
from services.control_plane.store.records import AppRecord, PlacementRecord
from tests.unit.control_plane.looks import (
    CUR,
    FAILED,
    IN,
    LOST,
    OUT,
    RUNNING,
    V11,
    V12,
    V21,
    M,
    N,
    heard,
    instance,
    placed,
    planned,
    record,
    roles,
    told,
)

HERE: dict[str, Any] = {"has_data": True}
SOURCE, TARGET = placed(V11, CUR, N, **HERE), placed(V12, IN, M)
GONE, COME = replace(SOURCE, has_data=False), replace(TARGET, has_data=True)

WAYS: dict[str, tuple[list[PlacementRecord], tuple[str, str] | None]] = {
    "nothing has any data": ([placed(V11, CUR), placed(V12, IN, M)], None),
    "it is where the app is": ([SOURCE], None),
    "an update where it is": ([SOURCE, placed(V21, IN, N, **HERE)], None),
    "a move": ([SOURCE, TARGET], ("g1-e1", "g1-e2")),
    "a move whose data has come": ([GONE, COME], None),
    "a move that is over": ([replace(GONE, role=OUT), replace(COME, role=CUR)], None),
    "a move that was taken back": ([SOURCE, replace(TARGET, role=OUT)], None),
    "it did not start there": ([GONE, replace(COME, role=OUT)], ("g1-e2", "g1-e1")),
    "a first start that failed, moved": ([replace(SOURCE, role=OUT), TARGET], ("g1-e1", "g1-e2")),
    "what was given up with its node": ([replace(SOURCE, role=LOST), TARGET], None),
}


@pytest.mark.parametrize("case", WAYS)
def test_data_goes_from_its_owner_to_where_the_app_is_to_run(case: str) -> None:
    placements, way = WAYS[case]
    travel = travel_of(placements)
    assert (travel and (travel.source.instance_id, travel.target.instance_id)) == way


def test_there_is_one_owner_before_and_after() -> None:
    travel = travel_of([SOURCE, TARGET])
    assert travel is not None
    after = with_new_owner([SOURCE, TARGET, replace(placed(V21, LOST, M), has_data=True)], travel)
    assert [it.has_data for it in after] == [False, True, True]
    assert data_home(after) == COME
    assert has_arrived(after)


def test_what_ends_stays_known_while_it_says_where_the_data_is_or_leaves_a_copy() -> None:
    back = [GONE, replace(COME, role=OUT)]
    assert (is_last_owner(back[1], back), leaves_copy(back[1], back)) == (True, False)
    over = [replace(GONE, role=OUT), replace(COME, role=CUR)]
    assert (is_last_owner(over[0], over), leaves_copy(over[0], over)) == (False, True)
    taken_back = [SOURCE, replace(TARGET, role=OUT)]
    assert (is_last_owner(taken_back[1], taken_back), leaves_copy(taken_back[1], taken_back)) == (False, True)
    update = [replace(SOURCE, role=OUT), placed(V21, CUR, N, **HERE)]
    assert not is_kept(update[0], update), "its data is the newer one's, on the same node"


def both(*first: Any, second: tuple[Any, ...] = ()) -> Snapshot:
    return Snapshot({**heard(*first).nodes, **heard(*second, at=M).nodes})


STARTED = instance(V11, RUNNING)
GIVEN_UP = instance(V12, FAILED, reason="APP_FACTORY_FAILED")

Row = tuple[AppRecord, list[PlacementRecord], Snapshot, dict[str, str], str]
"""App, placements, snapshot; the roles that follow, and what is started, if anything."""

TABLE: dict[str, Row] = {
    "while it is copied the app runs where it was": (
        record(V12), [SOURCE, TARGET], both(STARTED), {"g1-e1": "CURRENT at n", "g1-e2": "INCOMING at m"}, "",
    ),
    "and is started there again": (
        record(V12), [SOURCE, TARGET], both(), {"g1-e1": "CURRENT at n", "g1-e2": "INCOMING at m"}, "g1-e1",
    ),
    "once it has come the app starts with it": (
        record(V12), [GONE, COME], both(), {"g1-e1": "CURRENT at n", "g1-e2": "INCOMING at m"}, "g1-e2",
    ),
    "and takes over": (
        record(V12), [GONE, COME], both(second=(instance(V12, RUNNING),)),
        {"g1-e1": "OUTGOING at n", "g1-e2": "CURRENT at m"}, "",
    ),
    "it does not start: nothing does before the data is back": (
        record(V12), [GONE, COME], both(second=(GIVEN_UP,)),
        {"g1-e1": "CURRENT at n", "g1-e2": "OUTGOING at m"}, "",
    ),
    "stopped on the way: it goes on": (
        record(V12, desired=pb.App.STOPPED), [SOURCE, TARGET], both(),
        {"g1-e1": "CURRENT at n", "g1-e2": "INCOMING at m"}, "",
    ),
    "stopped when it had come: it is there": (
        record(V12, desired=pb.App.STOPPED), [GONE, COME], both(),
        {"g1-e1": "OUTGOING at n", "g1-e2": "CURRENT at m"}, "",
    ),
    "an update when it had come: it is where the data is": (
        record(V21), [GONE, COME], both(),
        {"g1-e1": "CURRENT at n", "g1-e2": "OUTGOING at m", "g2-e1": "INCOMING at m"}, "g2-e1",
    ),
    "the source's node is deleted on the way: nothing begins without its data": (
        record(V12), [SOURCE, TARGET], replace(heard(at=M), gone=frozenset({N})),
        {"g1-e1": "LOST at n", "g1-e2": "OUTGOING at m"}, "",
    ),
    "the target's is, when it had come": (
        record(V12), [GONE, COME], replace(heard(), gone=frozenset({M})),
        {"g1-e1": "OUTGOING at n", "g1-e2": "LOST at m"}, "",
    ),
    "what still ends at the source does not make it the owner again": (
        record(V12), [GONE, COME], both(STARTED),
        {"g1-e1": "CURRENT at n", "g1-e2": "INCOMING at m"}, "g1-e2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_an_app_runs_where_its_data_is_and_nowhere_else(case: str) -> None:
    app, placements, seen, expected, started = TABLE[case]
    assert roles(app, placements, seen) == expected
    starts = planned(app, placements, seen).starts
    assert "".join(it.placement.instance_id for it in starts) == started
    owners = {it.node for it in assign(app, placements, seen, 5).placements if it.has_data}
    assert len(owners) == 1
    assert all(it.request.spec.requires_existing_data for it in starts)


def test_what_was_replaced_before_it_was_seen_to_run_leaves_its_data_to_what_replaces_it() -> None:
    first, second = placed(V11, OUT), placed(V21, IN)
    app = record(V21, desired=pb.App.STOPPED, status=told(STARTED))
    while_it_ran = assign(app, [first, second], heard(STARTED), 5).placements
    assert [it.has_data for it in while_it_ran] == [True, True]
    assert [it.instance_id for it in assign(app, while_it_ran, heard(), 5).placements] == ["g2-e1"]


def test_a_copy_is_removed_and_what_the_owner_has_is_not() -> None:
    over = [replace(GONE, role=OUT), replace(COME, role=CUR)]
    (stop,) = planned(record(V12), over, both(second=(instance(V12, RUNNING),))).stop
    assert (stop.node, stop.request.purge_data, stop.ends) == (N, True, over[0])
    back = [GONE, replace(COME, role=OUT)]
    app = record(V12, failed=V12, status=told(GIVEN_UP, at=M))
    (stop,) = planned(app, back, both(second=(GIVEN_UP,))).stop
    assert (stop.node, stop.request.purge_data, stop.ends) == (M, False, None)
    assert planned(app, back, both()).stop == ()
    dropped = record(V12, deleting=pb.DeleteAppRequest.RETAIN)
    purges = {it.node: it.request.purge_data for it in planned(dropped, [SOURCE, TARGET], both()).stop}
    assert purges == {N: False, M: True}, "what is retained is the owner's"

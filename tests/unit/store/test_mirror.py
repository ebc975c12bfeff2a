"""The mirror's indexes follow the apps and operations that are published to it."""

from __future__ import annotations

from dataclasses import replace

from appsupervisor.catalog.v1.app_catalog_pb2 import App, DeleteAppRequest
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance
from services.control_plane.store.mirror import Mirror
from tests.contract.store.samples import app, operation, placement

FIRST, SECOND = "environments/default/nodes/1", "environments/default/nodes/2"


def test_apps_are_found_by_environment_as_they_come_and_go() -> None:
    mirror = Mirror()
    a, b = app("apps/a"), app("apps/b", environment="environments/e")
    mirror.apply(1, apps=[("apps/a", a), ("apps/b", b), ("apps/c", app("apps/c"))])
    assert (sorted(mirror.apps_in("environments/default")), mirror.count_in("environments/e")) == (
        ["apps/a", "apps/c"],
        1,
    )
    mirror.apply(2, apps=[("apps/b", None)])
    assert (mirror.apps_in("environments/e"), mirror.count_in("environments/default")) == ([], 2)


def test_apps_are_found_by_the_nodes_of_their_placements_wherever_they_move() -> None:
    mirror = Mirror()
    a, b = placement("apps/a", node=FIRST), placement("apps/b", node=FIRST)
    mirror.apply(1, placements=[(it.name, it) for it in (a, b)])
    assert (sorted(mirror.apps_on(FIRST)), mirror.count_on(FIRST)) == (["apps/a", "apps/b"], 2)
    moved, beside = placement("apps/a", epoch=2, node=SECOND), placement("apps/b", epoch=2, node=FIRST)
    mirror.apply(2, placements=[(it.name, it) for it in (moved, beside)])
    assert (mirror.count_on(FIRST), mirror.count_on(SECOND)) == (2, 1)  # two of one app count once
    assert sorted(it.epoch for it in mirror.placements_of("apps/a")) == [1, 2]
    mirror.apply(3, placements=[(a.name, None), (b.name, None)])
    assert (mirror.apps_on(FIRST), mirror.apps_on(SECOND)) == (["apps/b"], ["apps/a"])
    mirror.apply(4, placements=[(beside.name, None)])
    assert (mirror.apps_on(FIRST), mirror.count_on(FIRST)) == ([], 0)
    assert mirror.placements_of("apps/b") == ()


def test_apps_are_counted_by_state_and_known_while_they_are_not_as_wanted() -> None:
    mirror = Mirror()
    healthy = Instance.Health.HEALTHY
    starting = replace(app("apps/a"), status=App(state=Instance.STARTING, reconciling=True))
    running = replace(starting, status=App(state=Instance.RUNNING, health=healthy))
    other = replace(running, name="apps/b")
    mirror.load({"apps": [(1, "apps/a", starting.packed), (1, "apps/b", other.packed), (1, "apps/c", None)]})
    assert mirror.count_states() == {(Instance.STARTING, 0): 1, (Instance.RUNNING, healthy): 1}
    assert mirror.unsettled_apps() == ["apps/a"]
    mirror.apply(2, apps=[("apps/a", running)])
    assert mirror.count_states() == {(Instance.RUNNING, healthy): 2}
    assert mirror.unsettled_apps() == []
    mirror.apply(3, apps=[("apps/a", replace(running, deleting=DeleteAppRequest.DROP))])
    assert mirror.unsettled_apps() == ["apps/a"]
    mirror.apply(4, apps=[("apps/a", None)])
    assert mirror.count_states() == {(Instance.RUNNING, healthy): 1}
    assert mirror.unsettled_apps() == []


def test_open_operations_are_an_apps_unfinished_ones_oldest_first() -> None:
    mirror = Mirror()
    one, two, other = (
        operation("operations/1", "apps/a"),
        operation("operations/2", "apps/a"),
        operation("operations/3", "apps/b"),
    )
    mirror.apply(1, operations=[(it.name, it) for it in (two, one, other)])
    assert mirror.open_operations("apps/a") == [one, two]
    assert mirror.open_operations("apps/a", (one.verb,)) == [one, two]
    assert mirror.open_operations("apps/a", ("stop", "delete")) == []
    mirror.apply(2, operations=[(one.name, replace(one, done=True)), (other.name, None)])
    assert mirror.open_operations("apps/a") == [two]
    assert mirror.open_operations("apps/b") == []
    mirror.apply(3, operations=[(one.name, None), (two.name, replace(two, done=True))])
    assert mirror.open_operations("apps/a") == []


def test_a_revision_without_changes_moves_every_feed_on() -> None:
    mirror = Mirror(revision=1)
    mirror.apply(2)
    feeds = (mirror.apps, mirror.environments, mirror.nodes, mirror.operations)
    assert [feed.revision for feed in feeds] == [2, 2, 2, 2]

"""The mirror's indexes follow the apps and operations that are published to it."""

from __future__ import annotations

from dataclasses import replace

from services.control_plane.store.mirror import Mirror
from tests.contract.store.samples import app, operation

FIRST, SECOND = "environments/default/nodes/1", "environments/default/nodes/2"


def test_apps_are_found_by_node_and_environment_wherever_they_move() -> None:
    mirror = Mirror()
    a, b = (
        replace(app("apps/a"), node=FIRST),
        replace(app("apps/b", environment="environments/e"), node=FIRST),
    )
    mirror.apply(1, apps=[("apps/a", a), ("apps/b", b), ("apps/c", app("apps/c"))])
    assert (sorted(mirror.apps_on(FIRST)), mirror.count_on(FIRST)) == (["apps/a", "apps/b"], 2)
    assert (sorted(mirror.apps_in("environments/default")), mirror.count_in("environments/e")) == (
        ["apps/a", "apps/c"],
        1,
    )
    mirror.apply(2, apps=[("apps/a", replace(a, node=SECOND)), ("apps/b", None)])
    assert (mirror.apps_on(FIRST), mirror.count_on(FIRST)) == ([], 0)
    assert mirror.apps_on(SECOND) == ["apps/a"]
    assert (mirror.apps_in("environments/e"), mirror.count_in("environments/default")) == ([], 2)


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

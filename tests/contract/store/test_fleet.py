"""What the fleet keeps in a store: drains, and what apps ask of nodes, also after a reopening."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.fleet.v1.fleet_pb2 import DrainNodeMetadata, Node
from services.control_plane.store.interface import CatalogStore
from services.control_plane.store.records import DRAIN, AppRecord, Version
from tests.contract.store.samples import DEFAULT, WAIT, app, node, operation, placement, put

N, M = f"{DEFAULT}/nodes/n", f"{DEFAULT}/nodes/m"


def asking(name: str, memory: int = 0, *, exclusive: bool = False) -> AppRecord:
    spec = App(name=name, environment=DEFAULT, exclusive=exclusive)
    spec.limits.memory_bytes = memory
    return replace(app(name), spec=spec)


def test_a_drain_is_kept_with_what_it_tells_and_its_node_as_its_result(catalog: Any) -> None:
    store = catalog.open()
    told = DrainNodeMetadata(target=N, verb=DRAIN, left_count=3)
    told.app_results.add(app="apps/a", state=DrainNodeMetadata.AppResult.STUCK)
    begun = replace(operation("operations/1", N), verb=DRAIN, goal=Version(0, 0), metadata=told)
    ended = replace(begun, name="operations/2", done=True, response=Node(name=N, cordoned=True))
    store.write(put(begun, ended)).result(WAIT)
    for mirror in (store.mirror, catalog.reopen().mirror):
        assert mirror.operations.get(begun.name).metadata == told
        assert mirror.operations.get(ended.name).response == ended.response
        assert mirror.open_fleet_operations() == {begun.name: DRAIN}
        assert [it.name for it in mirror.open_operations(N, (DRAIN,))] == [begun.name]
        assert mirror.open_operations(N) == [], "it is no operation on an app"


def test_what_apps_ask_of_nodes_is_summed_by_node(catalog: Any) -> None:
    store: CatalogStore = catalog.open()
    first = [asking("apps/a", 5), placement("apps/a", node=N)]
    second = [asking("apps/b", 7), placement("apps/b", node=N), placement("apps/b", epoch=2, node=M)]
    store.write(put(*first, *second, asking("apps/c"), placement("apps/c", node=M))).result(WAIT)

    def sums(mirror: Any) -> tuple[int, int]:
        return mirror.reserved_on(N), mirror.reserved_on(M)

    assert sums(store.mirror) == (12, 7)
    store.write(put(asking("apps/b", 3), asking("apps/c", 2))).result(WAIT)
    assert sums(store.mirror) == (8, 5)
    store.write(lambda tx: tx.delete_placement(placement("apps/b", node=N))).result(WAIT)
    assert sums(store.mirror) == (5, 5)
    store.write(lambda tx: tx.delete_app("apps/a")).result(WAIT)
    store.write(put(asking("apps/b"))).result(WAIT)
    for mirror in (store.mirror, catalog.reopen().mirror):
        assert sums(mirror) == (0, 2)


def test_the_nodes_of_apps_that_are_to_be_alone_are_known(catalog: Any) -> None:
    store: CatalogStore = catalog.open()
    store.write(put(asking("apps/a", exclusive=True), placement("apps/a", node=N))).result(WAIT)
    store.write(put(asking("apps/b"), placement("apps/b", node=M))).result(WAIT)
    for mirror in (store.mirror, catalog.reopen().mirror):
        assert mirror.exclusive_nodes() == {N}
        assert mirror.exclusive_nodes(besides="apps/a") == set()
        assert sorted(mirror.nodes_with_apps()) == [M, N]


def test_a_watch_of_nodes_may_be_resumed_from_before_a_reopening(catalog: Any) -> None:
    store = catalog.open()
    position = store.write(put(node(N), node(M))).result(WAIT)
    store.write(lambda tx: tx.delete_node(N)).result(WAIT)
    for mirror in (store.mirror, catalog.reopen().mirror):
        assert [(it.key, it.value) for it in mirror.nodes.since(position)] == [(N, None)]
        assert mirror.nodes.oldest_revision <= position

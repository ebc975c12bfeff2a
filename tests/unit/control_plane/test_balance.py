"""The plan of moves that evens out an environment: as few as it takes, and none that cannot be."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from services.control_plane.placement.balance import Movable, Move, plan_moves
from services.control_plane.placement.choice import Candidate, Neighbours, Wish

X = "environments/x"
GIB = 2**30


def app(name: str, memory: int = 0, **fields: Any) -> Movable:
    asked = {name: fields.pop(name) for name in ("selector", "exclusive") if name in fields}
    return Movable(name, Wish(X, memory_bytes=memory * GIB, **asked), **fields)


def node(
    name: str, apps: Iterable[Movable], bound: int = 0, **fields: Any
) -> tuple[Candidate, list[Movable]]:
    """Return a node with apps that can leave it, and so many that can't."""
    apps = list(apps)
    memory = sum(it.memory_bytes for it in apps)
    return Candidate(
        name, fields.pop("heard", True), len(apps) + bound, reserved_bytes=memory, **fields
    ), apps


def many(prefix: str, count: int) -> list[Movable]:
    return [app(f"{prefix}{n}") for n in range(count)]


def planned(nodes: Iterable[tuple[Candidate, list[Movable]]], **fields: Any) -> list[Move]:
    on = {seen.name: apps for seen, apps in nodes}
    return plan_moves(X, [seen for seen, _ in nodes], on.__getitem__, **{"most": 100, **fields})


def after(nodes: Iterable[tuple[Candidate, list[Movable]]], moves: Iterable[Move]) -> Mapping[str, int]:
    counts = Counter({seen.name: seen.apps for seen, _ in nodes})
    for move in moves:
        counts[move.source] -= 1
        counts[move.destination] += 1
    return counts


ROWS: dict[str, tuple[list[tuple[Candidate, list[Movable]]], dict[str, Any], list[str]]] = {
    "no node": ([], {}, []),
    "one node": ([node("a", many("x", 9))], {}, []),
    "even": ([node("a", many("x", 3)), node("b", many("y", 3))], {}, []),
    "one more is even enough": ([node("a", many("x", 3)), node("b", many("y", 2))], {}, []),
    "two more are one move": ([node("a", many("x", 3)), node("b", many("y", 1))], {}, ["x0 a b"]),
    "two more are tolerated": ([node("a", many("x", 3)), node("b", many("y", 1))], {"tolerance": 2}, []),
    "a new node": (
        [node("a", many("x", 4)), node("b", many("y", 4)), node("c", [])], {},
        ["x0 a c", "y0 b c"],
    ),
    "no more than asked for": (
        [node("a", many("x", 8)), node("b", [])], {"most": 2}, ["x0 a b", "x1 a b"],
    ),
    "those whose data goes along go last": (
        [
            node("a", [app("x", takes_data=True), app("y"), *many("z", 1), app("w", takes_data=True)]),
            node("b", []),
        ],
        {}, ["y a b", "z0 a b"],
    ),
    "and only where no other can": (
        [node("a", [app("x", takes_data=True), app("y", takes_data=True)]), node("b", [])], {}, ["x a b"],
    ),
    "those that cannot move stay": ([node("a", many("x", 1), bound=8), node("b", [])], {}, ["x0 a b"]),
    "a node that cannot be heard": ([node("a", many("x", 8), heard=False), node("b", [])], {}, []),
    "to none that cannot be heard": ([node("a", many("x", 8)), node("b", [], heard=False)], {}, []),
    "a cordoned node only gives": (
        [node("a", many("x", 3), cordoned=True), node("b", many("y", 1)), node("c", [], cordoned=True)], {},
        ["x0 a b"],
    ),
    "one with an app that is alone": (
        [node("a", many("x", 8)), node("b", many("y", 1), taken=True), node("c", many("z", 7))], {}, [],
    ),
    "a full node": ([node("a", many("x", 8)), node("b", many("y", 1), max_instances=2)], {}, ["x0 a b"]),
    "by label": (
        [
            node("a", [app("x", selector={"gpu": "1"}), *many("y", 2)], labels={"gpu": "1"}),
            node("b", []),
        ], {}, ["y0 a b"],
    ),
    "where it is apart": (
        [
            node("a", [app("x", neighbours=Neighbours(avoided={"b": "t=1"})), *many("y", 2)]),
            node("b", []),
        ], {}, ["y0 a b"],
    ),
    "no two that are apart to one node": (
        [
            node("a", [app("x", labels=("t=1",)), app("y", apart_from=("t=1",)), *many("z", 3)]),
            node("b", []),
        ], {}, ["x a b", "z0 a b"],
    ),
    "the app that evens out memory": (
        [node("a", [app("x", 1), app("y", 4), app("z", 3)]), node("b", [])], {}, ["y a b"],
    ),
    "the node with less memory": (
        [node("a", many("x", 4)), node("b", [app("y", 2)]), node("c", [app("z", 1)])], {},
        ["x0 a c", "x1 a b"],
    ),
    "memory alone": (
        [node("a", [app("x", 4), app("y", 4)]), node("b", [app("z", 0)])], {}, ["x a b"],
    ),
    "memory is not worth it": (
        [node("a", [app("x", 4), app("y", 1)]), node("b", [app("z", 4)])], {}, [],
    ),
    "memory does not undo the spread": (
        [node("a", [app("x", 4), app("y", 4)]), node("b", many("z", 2))], {}, [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_a_plan_is_as_few_moves_as_it_takes(name: str) -> None:
    nodes, options, expected = ROWS[name]
    moves = planned(nodes, **options)
    assert [f"{it.app} {it.source} {it.destination}" for it in moves] == expected
    assert all(it.why.endswith(".") for it in moves)
    assert planned(list(reversed(nodes)), **options) == moves, "their order does not matter"


def test_any_fleet_is_even_after_the_fewest_moves_and_then_nothing_is_left_to_do() -> None:
    chance = random.Random(3)
    for _ in range(150):
        tolerance = chance.choice((1, 1, 2, 3))
        nodes = [node(f"n{n}", many(f"n{n}-", chance.randrange(12))) for n in range(chance.randrange(1, 6))]
        moves = planned(nodes, tolerance=tolerance)
        counts = after(nodes, moves)
        assert max(counts.values()) - min(counts.values()) <= tolerance
        before = [seen.apps for seen, _ in nodes]
        # Of all windows of counts that would do, the one that the fewest apps are outside of.
        fewest = min(
            max(
                sum(max(0, it - low - tolerance) for it in before), sum(max(0, low - it) for it in before)
            )
            for low in range(max(before) + 1)
            if low * len(before) <= sum(before) <= (low + tolerance) * len(before)
        )  # fmt: skip
        assert len(moves) == fewest
        assert len({it.app for it in moves}) == len(moves), "no app moves twice"


def test_a_copy_goes_beside_no_other_and_not_where_they_would_be_less_apart() -> None:
    copy = Movable("x", Wish(X, siblings=("c",)), full_zones=frozenset({"z"}))
    source = node("a", [copy], bound=6)
    moves = planned([source, node("b", [], zone="z"), node("c", [], bound=1), node("d", [], bound=2)])
    assert [(it.app, it.destination) for it in moves] == [("x", "d")]


def test_of_several_copies_of_an_app_one_is_moved_in_a_plan() -> None:
    one, other = Movable("x", Wish(X, siblings=("b",))), Movable("x", Wish(X, siblings=("a",)))
    moves = planned([node("a", [one], bound=6), node("b", [other], bound=6), node("c", []), node("d", [])])
    assert [it.app for it in moves] == ["x"]

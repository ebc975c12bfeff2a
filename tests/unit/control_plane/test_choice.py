"""Which node an app goes to, and what is said of each that it does not go to: one set of rules for both."""

from __future__ import annotations

import random
from typing import Any

import pytest

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from services.control_plane.placement.choice import (
    Candidate,
    Wish,
    choose,
    is_other_use,
    obstacles,
    ranked,
    wish_of,
)
from tests.eventually import WITHIN
from tests.unit.control_plane.conftest import Refusal, Refused, Server
from tests.unit.control_plane.test_node_commands import NO_DATABASE, ONE, TWO, place, register
from tests.unit.control_plane.test_servicers import create

X = "environments/x"


def candidate(name: str, apps: int = 0, heard: bool = True, room: int = 0, **fields: Any) -> Candidate:
    return Candidate(name, heard, apps, room, **fields)


@pytest.mark.parametrize(
    ("nodes", "chosen", "word"),
    [
        ([], "", "has no node"),
        ([candidate("a", heard=False)], "", "cannot be heard"),
        ([candidate("a", 3, room=3), candidate("b", heard=False)], "", "1 full"),
        ([candidate("a", 10_000)], "", "full"),
        ([candidate("b"), candidate("a")], "a", "fewest"),
        ([candidate("a", 2), candidate("b", 1)], "b", "fewest"),
        ([candidate("a", 0, heard=False), candidate("b", 5)], "b", "fewest"),
        ([candidate("a", 1, room=1), candidate("b", 5, room=6)], "b", "fewest"),
        ([candidate("a", cordoned=True), candidate("b", 5)], "b", "of 2 nodes"),
        ([candidate("a", taken=True), candidate("b", 5)], "b", "fewest"),
    ],
)
def test_the_node_with_the_fewest_apps_is_taken_or_it_is_said_why_none(
    nodes: list[Candidate], chosen: str, word: str
) -> None:
    choice = choose(Wish(X), nodes)
    assert choice.node == chosen
    assert word in choice.reason


IN_ZONES = (
    candidate("a1", 0, zone="a"),
    candidate("a2", 5, zone="a"),
    candidate("b1", 9, zone="b"),
    candidate("n1", 7),
    candidate("n2", 2),
)


@pytest.mark.parametrize(
    ("siblings", "expected"),
    [
        ((), ["a1", "n2", "a2", "n1", "b1"]),
        (("a1",), ["n2", "n1", "b1", "a2"]),
        (("a1", "n2"), ["b1", "a2", "n1"]),
        (("a1", "b1", "n2"), ["a2", "n1"]),
        (("a1", "a1", "b1", "n2"), ["n1", "a2"]),
        (("gone",), ["a1", "n2", "a2", "n1", "b1"]),
    ],
    ids=str,
)
def test_copies_of_an_app_are_spread_over_zones_then_nodes_and_only_then_by_apps(
    siblings: tuple[str, ...], expected: list[str]
) -> None:
    wish = Wish(X, siblings=siblings)
    assert [node.name for node in ranked(wish, IN_ZONES)] == expected
    choice = choose(wish, IN_ZONES)
    assert choice.node == expected[0]
    assert ("copies" in choice.reason) == bool(siblings)


def test_a_zone_that_is_full_of_copies_is_better_than_none() -> None:
    wish = Wish(X, siblings=("a1",))
    a1, a2, b1 = (
        candidate("a1", zone="a"),
        candidate("a2", zone="a"),
        candidate("b1", heard=False, zone="b"),
    )
    choice = choose(wish, [a1, a2, b1])
    assert choice.node == "a2"
    assert "fewest of its other copies in zone a (1) and on the node (0)" in choice.reason
    assert "1 with another replica of it" in choose(wish, [a1, b1]).reason


GIB = 2**30
OBSTACLES: dict[str, tuple[Wish, Candidate, list[str]]] = {
    "none": (Wish(X), candidate("a", 5), []),
    "not heard": (Wish(X), candidate("a", heard=False), ["NOT_HEARD"]),
    "cordoned": (Wish(X), candidate("a", cordoned=True), ["NODE_CORDONED"]),
    "all cordoned": (Wish(X, environment_cordoned=True), candidate("a"), ["ENVIRONMENT_CORDONED"]),
    "full": (Wish(X), candidate("a", 2, room=2), ["INSTANCES_FULL"]),
    "just enough memory": (
        Wish(X, memory_bytes=GIB), candidate("a", memory_bytes=2 * GIB, reserved_bytes=GIB), [],
    ),
    "a byte too little": (
        Wish(X, memory_bytes=GIB + 1), candidate("a", memory_bytes=2 * GIB, reserved_bytes=GIB),
        ["MEMORY_FULL"],
    ),
    "it asks for none": (Wish(X), candidate("a", memory_bytes=1, reserved_bytes=5), []),
    "memory that is not told is no bound": (Wish(X, memory_bytes=GIB), candidate("a", reserved_bytes=5), []),
    "memory that is used": (
        Wish(X), candidate("a", memory_bytes=GIB, used_bytes=GIB, reserved_bytes=0), ["MEMORY_USED"],
    ),
    "almost": (Wish(X, memory_bytes=GIB), candidate("a", memory_bytes=GIB, used_bytes=GIB - 1), []),
    "memory that is used, of who knows how much": (Wish(X), candidate("a", used_bytes=GIB), []),
    "labels": (
        Wish(X, selector={"zone": "a", "gpu": ""}), candidate("a", labels={"zone": "a", "gpu": ""}), [],
    ),
    "another label": (
        Wish(X, selector={"zone": "a"}), candidate("a", labels={"zone": "b"}), ["LABELS_DIFFER"],
    ),
    "no label, though it may be empty": (Wish(X, selector={"gpu": ""}), candidate("a"), ["LABELS_DIFFER"]),
    "taken": (Wish(X), candidate("a", 1, taken=True), ["TAKEN_EXCLUSIVELY"]),
    "to be alone": (Wish(X, exclusive=True), candidate("a", 1), ["NOT_EMPTY"]),
    "alone": (Wish(X, exclusive=True), candidate("a"), []),
    "an app that it avoids": (Wish(X), candidate("a", 1, avoided="tenant=b"), ["APP_AVOIDED"]),
    "an app that avoids it": (Wish(X), candidate("a", 1, averse="tenant=b"), ["AVOIDED_BY_APP"]),
    "a copy of it": (Wish(X, siblings=("a",)), candidate("a", 1), ["COPY_THERE"]),
    "a copy elsewhere": (Wish(X, siblings=("b",)), candidate("a", 1), []),
    "everything": (
        Wish(X, True, {"zone": "a"}, GIB, True),
        candidate("a", 3, False, 3, cordoned=True, memory_bytes=1, taken=True),
        ["NOT_HEARD", "NODE_CORDONED", "ENVIRONMENT_CORDONED", "INSTANCES_FULL", "MEMORY_FULL",
         "LABELS_DIFFER", "TAKEN_EXCLUSIVELY", "NOT_EMPTY"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OBSTACLES)
def test_each_obstacle_says_what_is_and_what_would_have_to_change(name: str) -> None:
    wish, node, expected = OBSTACLES[name]
    found = list(obstacles(wish, node))
    assert [it.reason for it in found] == expected
    assert all(it.message.endswith(".") and it.remedy.endswith(".") for it in found)
    assert choose(wish, [node]).node == ("" if expected else "a")


@pytest.mark.parametrize(
    ("known", "used", "is_other"),
    [(0, 1, False), (0, 2, True), (8, 9, False), (8, 10, True), (8, 0, False), (31, 32, True), (32, 31, True),
     (33, 32, False), (40, 38, True)],
)  # fmt: skip
def test_the_use_of_memory_is_stored_in_steps_and_when_it_begins_or_ends_to_matter(
    known: int, used: int, is_other: bool
) -> None:
    assert is_other_use(fleet.Node(memory_bytes=32, used_memory_bytes=known), used) is is_other
    assert not is_other_use(fleet.Node(used_memory_bytes=known), used), "nobody said how much there is"


def test_what_is_explained_is_what_is_chosen() -> None:
    chance = random.Random(7)
    for _ in range(300):
        wish = Wish(
            X, chance.random() < 0.05, {"zone": "a"} if chance.random() < 0.3 else {},
            chance.choice((0, 0, 5)), chance.random() < 0.2,
            tuple(f"n{n}" for n in chance.choices(range(8), k=chance.choice((0, 0, 3)))),
        )  # fmt: skip
        nodes = [
            candidate(
                f"n{n}", chance.randrange(4), chance.random() < 0.8, chance.choice((0, 3)),
                cordoned=chance.random() < 0.2, labels={"zone": chance.choice("ab")},
                memory_bytes=chance.choice((0, 8)), reserved_bytes=chance.randrange(8),
                taken=chance.random() < 0.1, zone=chance.choice(("", "a", "b")),
            )
            for n in range(chance.randrange(8))
        ]  # fmt: skip
        fit = ranked(wish, nodes)
        assert [node for node in nodes if not list(obstacles(wish, node))] == sorted(fit, key=nodes.index)
        assert choose(wish, nodes).node == (fit[0].name if fit else "")
        chance.shuffle(nodes)
        assert ranked(wish, nodes) == fit, "their order does not matter"


def test_a_wish_is_what_the_spec_says() -> None:
    spec = pb.App(environment=X, node_selector={"zone": "a"}, exclusive=True)
    spec.limits.memory_bytes = 7
    assert wish_of(spec, environment_cordoned=True) == Wish(X, True, {"zone": "a"}, 7, True)
    spec.labels.update(tenant="a", tier="gold")
    assert wish_of(spec, environment_cordoned=False, siblings=["n"]).siblings == ("n",)


# ExplainPlacement, and the figures it goes by


def explain(server: Server, **fields: Any) -> fleet.ExplainPlacementResponse:
    return server("ExplainPlacement", fleet.ExplainPlacementRequest(**fields))


def test_a_placement_is_explained_for_an_app_and_for_one_that_might_be(
    server: Server, refused: Refused
) -> None:
    register(server, labels={"zone": "a"}, memory_bytes=2**30)
    server("CreateApp", create(database=NO_DATABASE, limits={"memory_bytes": 2**29}))
    server("CreateApp", create("wiki"))
    place(server)
    place(server, "wiki", has_data=True)
    assert explain(server, app="apps/wiki").bound_reason == "DATA_ON_NODE"
    register(server, "n2")
    register(server, "n3", ready=False)
    answer = explain(server, app="apps/wiki")
    assert (answer.node, list(answer.current_nodes), answer.bound_reason) == (TWO, [ONE], "")
    assert [(it.node[-2:], it.rank, it.app_count) for it in answer.verdicts] == [
        ("n2", 1, 0), ("n1", 2, 1), ("n3", 0, 0),
    ]  # fmt: skip
    assert [it.reason for it in answer.verdicts[2].obstacles] == ["NOT_HEARD"]
    spec = pb.App(node_selector={"zone": "a"})
    spec.limits.memory_bytes = 2**30
    answer = explain(server, app_spec=spec)
    assert answer.node == ""
    assert {it.node[-2:]: [o.reason for o in it.obstacles] for it in answer.verdicts} == {
        "n1": ["MEMORY_FULL"], "n2": ["LABELS_DIFFER"], "n3": ["NOT_HEARD", "LABELS_DIFFER"],
    }  # fmt: skip
    # The app's own share is no obstacle to itself.
    assert explain(server, app="apps/shop").verdicts[1].obstacles == []
    assert refused("ExplainPlacement", fleet.ExplainPlacementRequest()).fields == {"app"}
    both = fleet.ExplainPlacementRequest(app="apps/shop", app_spec=spec)
    assert refused("ExplainPlacement", both).fields == {"app_spec"}
    wrong = fleet.ExplainPlacementRequest(app_spec=pb.App(node_selector={"-": "x"}))
    assert refused("ExplainPlacement", wrong).fields == {'app_spec.node_selector["-"]'}
    elsewhere = fleet.ExplainPlacementRequest(app_spec=pb.App(environment="environments/none"))
    assert refused("ExplainPlacement", elsewhere).info.reason == "ENVIRONMENT_NOT_FOUND"
    missing = fleet.ExplainPlacementRequest(app="apps/none")
    assert refused("ExplainPlacement", missing).info.reason == "APP_NOT_FOUND"


def test_a_node_shows_what_is_reserved_on_it_and_an_exclusive_app_takes_it(server: Server) -> None:
    register(server)
    server("CreateApp", create(limits={"memory_bytes": 2**28}))
    place(server)
    node = fleet.GetNodeRequest(name=ONE)
    assert server("GetNode", node).reserved_memory_bytes == 2**28
    update = pb.UpdateAppRequest(app=pb.App(name="apps/shop", exclusive=True))
    update.app.limits.memory_bytes = 2**27
    server("UpdateApp", update)
    assert server("GetNode", node).reserved_memory_bytes == 2**27
    (verdict,) = explain(server, app_spec=pb.App()).verdicts
    assert [it.reason for it in verdict.obstacles] == ["TAKEN_EXCLUSIVELY"]
    assert explain(server, app="apps/shop").node == ONE
    record = server.store.mirror.apps.get("apps/shop")
    assert record is not None
    server.store.write(lambda tx: tx.delete_app("apps/shop")).result(WITHIN)
    assert server("GetNode", node).reserved_memory_bytes == 0
    assert explain(server, app_spec=pb.App()).node == ONE


def test_apps_that_are_to_be_apart_see_each_other_from_both_sides_and_zones_are_told(server: Server) -> None:
    register(server, zone="rack-1")
    register(server, "n2", zone="rack-2")
    server("CreateApp", create(labels={"tenant": "b"}))
    server("CreateApp", create("wiki", labels={"tenant": "a"}, anti_affinity={"tenant": "c"}))
    place(server)
    place(server, "wiki", node=TWO)

    def told(**fields: Any) -> dict[str, list[str]]:
        verdicts = explain(server, **fields).verdicts
        return {it.zone: [o.reason for o in it.obstacles] for it in verdicts}

    assert told(app="apps/shop") == {"rack-1": [], "rack-2": []}
    assert told(app_spec=pb.App(anti_affinity={"tenant": "b"})) == {"rack-1": ["APP_AVOIDED"], "rack-2": []}
    assert told(app_spec=pb.App(labels={"tenant": "c"})) == {"rack-1": [], "rack-2": ["AVOIDED_BY_APP"]}
    # What an app says of itself keeps it from no node.
    itself = pb.UpdateAppRequest(app=pb.App(name="apps/wiki", anti_affinity={"tenant": "a", "x": "y"}))
    server("UpdateApp", itself)
    assert told(app="apps/wiki") == {"rack-1": [], "rack-2": []}
    assert explain(server, app_spec=pb.App(labels={"tenant": "c"})).message.startswith("fewest")
    both = pb.App(labels={"tenant": "a"}, anti_affinity={"tenant": "b"})
    assert "with an app that its anti_affinity names" in explain(server, app_spec=both).message
    wrong = fleet.ExplainPlacementRequest(app_spec=pb.App(anti_affinity={"-": "x"}))
    with pytest.raises(Refusal) as refusal:
        server("ExplainPlacement", wrong)
    assert refusal.value.fields == {'app_spec.anti_affinity["-"]'}


def test_an_app_goes_where_its_code_is_as_far_as_nodes_have_told(server: Server) -> None:
    register(server, modules=["blog"])
    register(server, "n2", modules=["blog", "shop"])

    def told(entrypoint: str) -> dict[str, list[str]]:
        verdicts = explain(server, app_spec=pb.App(entrypoint=entrypoint)).verdicts
        return {it.node[-2:]: [o.reason for o in it.obstacles] for it in verdicts}

    assert told("shop.web:app") == {"n2": [], "n1": ["CODE_MISSING"]}
    assert told("blog:create_app") == {"n1": [], "n2": []}
    assert told("wiki:create_app") == {"n1": [], "n2": []}, "nobody tells of it: it may have just come"
    register(server, modules=[])
    assert told("shop.web:app") == {"n1": [], "n2": []}, "a node that does not tell may have it"
    register(server, modules=["blog"])
    server.store.write(lambda tx: tx.delete_node(TWO)).result(5)
    assert told("shop.web:app") == {"n1": []}


def test_a_node_that_tells_of_what_is_no_module_is_refused(server: Server) -> None:
    with pytest.raises(Refusal) as refusal:
        register(server, modules=["fine", "not.one"])
    assert refusal.value.fields == {"node.modules[1]"}

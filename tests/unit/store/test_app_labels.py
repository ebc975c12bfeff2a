"""The index of which nodes have apps with a label, against a look at all apps."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from services.control_plane.store.app_labels import AppLabels, Labels, pairs

LABELS = ("a=1", "a=2", "b=1", "c=")


@dataclass
class Known:
    """One app as the index should know it."""

    labels: Labels = ()
    apart_from: Labels = ()
    nodes: set[str] = field(default_factory=set)


def test_labels_are_told_in_an_order_whatever_the_map() -> None:
    assert pairs({"b": "1", "a": ""}) == pairs({"a": "", "b": "1"}) == ("a=", "b=1")


def test_the_index_finds_what_a_look_at_all_apps_would() -> None:
    chance = random.Random(11)
    index, apps = AppLabels(), {f"apps/{n}": Known() for n in range(8)}

    def some() -> Labels:
        return tuple(sorted(chance.sample(LABELS, chance.choice((0, 0, 1, 3)))))

    for _ in range(600):
        name, app = chance.choice(list(apps.items()))
        node = f"n{chance.randrange(4)}"
        if chance.random() < 0.4:
            app.labels, app.apart_from = some(), some()
            index.note(name, app.labels, app.apart_from, app.nodes)
        elif node in app.nodes:
            app.nodes.remove(node)
            index.left(name, node)
        else:
            app.nodes.add(node)
            index.placed(name, node)
        asked, who = some(), chance.choice(list(apps))
        others = [it for other, it in apps.items() if other != who]
        homes = apps[who].nodes
        for found, has in (
            (index.nodes_having(asked, who, homes), lambda it: it.labels),
            (index.nodes_averse(asked, who, homes), lambda it: it.apart_from),
        ):
            expected = {
                (node, label) for it in others for node in it.nodes for label in asked if label in has(it)
            }
            assert found.keys() == {node for node, _ in expected}
            assert found.items() <= expected
    for name, app in apps.items():
        index.note(name, (), (), app.nodes)
    assert index.nodes_having(LABELS, "", ()) == index.nodes_averse(LABELS, "", ()) == {}

"""On which nodes there are apps with a label, and on which ones apps that keep others with a label off.

Two indexes of the mirror, which guards them: a placement is decided without a look at all apps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

Labels = tuple[str, ...]
"""Labels, each as `key=value`."""

_NONE: tuple[Labels, Labels] = ((), ())


def pairs(labels: Mapping[str, str]) -> Labels:
    """Return labels as they are indexed, in an order."""
    # By key: the items of a message's map take twice as long.
    return tuple(sorted([f"{key}={labels[key]}" for key in labels]))


class AppLabels:
    """The labels of the apps that are placed, and those from which they are to be apart, by node."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[Labels, Labels]] = {}
        """By app: the labels it has, and those it is to be apart from. Only of apps that have any."""
        self._having: dict[str, Counter[str]] = {}
        self._averse: dict[str, Counter[str]] = {}

    def note(self, app: str, labels: Labels, apart_from: Labels, nodes: Iterable[str]) -> None:
        """Note what an app has now; `nodes` are those that it is placed on."""
        before, after = self._of.get(app, _NONE), (labels, apart_from)
        if before == after:
            return
        for node in nodes:
            self._count(before, node, -1)
            self._count(after, node, 1)
        if labels or apart_from:
            self._of[app] = after
        else:
            del self._of[app]

    def placed(self, app: str, node: str) -> None:
        """Note that an app is placed on a node."""
        self._count(self._of.get(app, _NONE), node, 1)

    def left(self, app: str, node: str) -> None:
        """Note that an app is placed on a node no longer."""
        self._count(self._of.get(app, _NONE), node, -1)

    def nodes_having(self, labels: Labels, app: str, homes: Iterable[str]) -> dict[str, str]:
        """Return the nodes with an app that has one of some labels, with that label.

        Not counted is `app` itself, which is placed on `homes`.
        """
        return _found(self._having, labels, self._of.get(app, _NONE)[0], homes)

    def nodes_averse(self, labels: Labels, app: str, homes: Iterable[str]) -> dict[str, str]:
        """Return the nodes with an app that is to be apart from one of some labels, with that label."""
        return _found(self._averse, labels, self._of.get(app, _NONE)[1], homes)

    def _count(self, of: tuple[Labels, Labels], node: str, step: int) -> None:
        for index, labels in zip((self._having, self._averse), of, strict=True):
            for label in labels:
                nodes = index.get(label)
                if nodes is None:
                    nodes = index[label] = Counter()
                count = nodes[node] + step
                if count:
                    nodes[node] = count
                    continue
                del nodes[node]
                if not nodes:
                    del index[label]


def _found(
    index: Mapping[str, Counter[str]], labels: Labels, own: Labels, homes: Iterable[str]
) -> dict[str, str]:
    found: dict[str, str] = {}
    for label in labels:
        nodes = index.get(label)
        if not nodes:
            continue
        itself = set(homes) if label in own else ()
        found.update((node, label) for node, count in nodes.items() if count > (node in itself))
    return found

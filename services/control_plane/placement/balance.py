"""Plans the fewest moves that even out how many apps the nodes have, and then how much memory those may use.

Pure: what is on the nodes in, moves out; ties go by name, so that the same state gives the same plan.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from itertools import islice
from typing import NamedTuple

from services.control_plane.placement.choice import MIB, Candidate, Neighbours, Wish, beside, fits
from services.control_plane.rules.sentences import counted

LOOKED_AT = 200
"""Apps of one node of which those to move are chosen."""

MEMORY_SHARE = 8
"""A move for the sake of memory evens out at least one part in so many of what the nodes have on average."""


class Movable(NamedTuple):
    """An app that could leave its node."""

    app: str
    wish: Wish
    neighbours: Neighbours = Neighbours()
    labels: tuple[str, ...] = ()
    apart_from: tuple[str, ...] = ()
    full_zones: AbstractSet[str] = frozenset()
    """Zones with more of its other copies than its own has: there they would be less apart."""
    takes_data: bool = False
    """Its data goes with it: it is left where it is while another can go."""

    @property
    def memory_bytes(self) -> int:
        """What its limits let it use; 0 if they say nothing."""
        return self.wish.memory_bytes


class Move(NamedTuple):
    """One move of a plan."""

    app: str
    source: str
    destination: str
    why: str


def plan_moves(
    environment: str,
    nodes: Iterable[Candidate],
    movable: Callable[[str], Iterable[Movable]],
    *,
    tolerance: int = 1,
    most: int,
) -> list[Move]:
    """Return the moves after which no node has more than `tolerance` apps more than another that takes some.

    At most `most`. `movable` returns the apps of a node that may leave it. Nodes that cannot be heard, or are
    taken by an exclusive app, are left alone; others that can take no app, as cordoned ones, only give some.
    """
    plan = _Plan(environment, nodes, movable, tolerance, most)
    plan.even_out_apps()
    plan.even_out_memory()
    return plan.moves


class _Node:
    """A node while a plan is made."""

    def __init__(self, seen: Candidate, movable: Callable[[str], Iterable[Movable]]) -> None:
        self.name = seen.name
        self.apps = seen.apps
        self.memory = seen.reserved_bytes
        self.arrived: list[Movable] = []
        self._seen = seen
        self._movable = movable
        self._leaving: dict[str, Movable] | None = None

    @property
    def leaving(self) -> dict[str, Movable]:
        """The apps that may leave it; looked for once somebody asks."""
        if self._leaving is None:
            self._leaving = {it.app: it for it in islice(self._movable(self.name), LOOKED_AT)}
        return self._leaving

    def takes(self, app: Movable) -> bool:
        """Tell whether it can take one more app, beside those that are to come."""
        if self._seen.zone in app.full_zones:
            return False
        seen = self._seen._replace(apps=self.apps, reserved_bytes=self.memory)
        return fits(app.wish, beside(seen, app.neighbours)) and not any(
            _are_apart(app, other) or _are_apart(other, app) for other in self.arrived
        )


class _Plan:
    """The moves so far, and the nodes as they leave them."""

    def __init__(
        self,
        environment: str,
        nodes: Iterable[Candidate],
        movable: Callable[[str], Iterable[Movable]],
        tolerance: int,
        most: int,
    ) -> None:
        self.moves: list[Move] = []
        self._moved: set[str] = set()
        """Of several copies of an app one is moved: where the others may go is not known before it has."""
        self._tolerance = tolerance
        self._most = most
        self._sources: list[_Node] = []
        self._destinations: list[_Node] = []
        for seen in sorted(nodes):
            if not seen.heard or seen.taken:
                continue
            node = _Node(seen, movable)
            self._sources.append(node)
            if fits(Wish(environment), seen):
                self._destinations.append(node)

    def even_out_apps(self) -> None:
        """Move apps from the nodes with the most to those with the fewest."""
        fullest = [(-node.apps, -node.memory, node.name, node) for node in self._sources]
        emptiest = [(node.apps, node.memory, node.name, node) for node in self._destinations]
        heapq.heapify(fullest)
        heapq.heapify(emptiest)
        while fullest and len(self.moves) < self._most:
            source = fullest[0][3]
            if -fullest[0][0] != source.apps:  # it has changed since
                heapq.heapreplace(fullest, (-source.apps, -source.memory, source.name, source))
                continue
            passed, destination = [], None
            while emptiest and source.apps - emptiest[0][3].apps > self._tolerance:
                entry = heapq.heappop(emptiest)
                passed.append(entry[3])
                app = self._best(source, entry[3])
                if app is not None:
                    destination = entry[3]
                    self._move(app, source, destination, _of_apps(source, destination))
                    break
            for node in passed:
                heapq.heappush(emptiest, (node.apps, node.memory, node.name, node))
            if destination is None:
                heapq.heappop(fullest)  # nothing of it can go anywhere
            else:
                heapq.heapreplace(fullest, (-source.apps, -source.memory, source.name, source))

    def even_out_memory(self) -> None:
        """Move apps from the node whose apps may use the most memory to the one with the least."""
        nodes = self._destinations
        least_gain = sum(node.memory for node in nodes) // (len(nodes) * MEMORY_SHARE) if nodes else 0
        while least_gain and len(self.moves) < self._most:
            by_memory = sorted(nodes, key=lambda it: (-it.memory, it.name))
            source, destination = by_memory[0], by_memory[-1]
            app = self._best(source, destination)
            if app is None or not self._keeps_spread(source, destination):
                return
            apart = source.memory - destination.memory
            if apart - abs(apart - 2 * app.memory_bytes) < 2 * least_gain:
                return
            self._move(app, source, destination, _of_memory(source, destination))

    def _keeps_spread(self, source: _Node, destination: _Node) -> bool:
        """Tell whether one app more and one less leaves no node too far above another."""
        counts = [it.apps for it in self._destinations if it not in (source, destination)]
        counts += [source.apps - 1, destination.apps + 1]
        return max(counts) - min(counts) <= self._tolerance

    def _best(self, source: _Node, destination: _Node) -> Movable | None:
        """Return the app whose move leaves the two nodes' memory the most alike, of those that can go.

        One without data on its node before all with some.
        """
        half = (source.memory - destination.memory) / 2
        leaving = (app for app in source.leaving.values() if app.app not in self._moved)
        fit = (app for app in leaving if destination.takes(app))
        return min(fit, key=lambda app: (app.takes_data, abs(app.memory_bytes - half), app.app), default=None)

    def _move(self, app: Movable, source: _Node, destination: _Node, why: str) -> None:
        self.moves.append(Move(app.app, source.name, destination.name, why))
        self._moved.add(app.app)
        del source.leaving[app.app]  # once moved it stays: it is not taken from where it comes to
        destination.arrived.append(app)
        source.apps, destination.apps = source.apps - 1, destination.apps + 1
        source.memory -= app.memory_bytes
        destination.memory += app.memory_bytes


def _are_apart(one: Movable, other: Movable) -> bool:
    return bool(one.apart_from) and not set(one.apart_from).isdisjoint(other.labels)


def _of_apps(source: _Node, destination: _Node) -> str:
    return f"{source.name} has {counted(source.apps, 'app')}, and {destination.name} {destination.apps}."


def _of_memory(source: _Node, destination: _Node) -> str:
    sizes: Sequence[str] = [f"{node.memory // MIB:,} MiB" for node in (source, destination)]
    return f"Apps on {source.name} may use {sizes[0]}, and those on {destination.name} {sizes[1]}."

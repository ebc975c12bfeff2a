"""Compares what a node that is heard shows of its apps with what is stored, and asks for passes where they
differ. So a thousand nodes that come back with what they had cost a comparison for each app.

What is the same is looked at later all the same, in its own time: also by another version of this program.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from services.control_plane.controller.turns import TURN_SECONDS, Turn
from services.control_plane.nodes.link import NodeLink
from services.control_plane.nodes.links import NodeLinks
from services.control_plane.reconciler.former_homes import FormerHomes
from services.control_plane.reconciler.rest import is_at_rest
from services.control_plane.store.mirror import Mirror


class Resync:
    """Of all nodes that one leader follows. Lives on one event loop."""

    def __init__(
        self,
        mirror: Mirror,
        links: NodeLinks,
        former_homes: FormerHomes,
        enqueue: Callable[[str], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`enqueue` asks for a pass; `clock` gives seconds, and goes on while the loop is busy."""
        self._mirror = mirror
        self._links = links
        self._former_homes = former_homes
        self._enqueue = enqueue
        self._clock = clock
        self._heard: deque[tuple[NodeLink, Iterator[str]]] = deque()
        self._at_rest: dict[str, None] = {}
        self._next_turn: Turn | None = None

    def heard(self, link: NodeLink, apps: Iterable[str]) -> None:
        """Look at these apps, in their order: `link` has just told all that is there."""
        self._heard.append((link, iter(list(apps))))
        if self._next_turn is None:
            self._go_on()

    def close(self) -> None:
        """Look at nothing more."""
        if self._next_turn is not None:
            self._next_turn.cancel()
        self._heard.clear()

    def count(self) -> int:
        """Return how many nodes are still to be looked at."""
        return len(self._heard)

    def take(self, most: int) -> list[str]:
        """Return apps that have been found at rest, each once, for a pass that nothing has asked for."""
        found = [app for app, _ in zip(self._at_rest, range(most), strict=False)]
        for app in found:
            del self._at_rest[app]
        return found

    def _go_on(self) -> None:
        self._next_turn = None
        ends = self._clock() + TURN_SECONDS
        while self._heard:
            link, apps = self._heard[0]
            for app in apps:
                if self._is_at_rest(link, app):
                    self._at_rest[app] = None
                else:
                    self._enqueue(app)
                if self._clock() >= ends:
                    self._next_turn = Turn(self._go_on)
                    return
            self._heard.popleft()

    def _is_at_rest(self, link: NodeLink, app: str) -> bool:
        packed = self._mirror.packed(app)
        if packed is None or not link.synced or self._links.is_elsewhere(app, link):
            return False
        if self._former_homes.knows(app) or link.hindrance(app) is not None:
            return False
        node = self._mirror.nodes.get(link.name)
        if node is None or node.node.serves_alone:
            return False
        placements = self._mirror.placements_of(app)
        return is_at_rest(
            packed, placements, link.name, link.instances(app)
        ) and not self._mirror.open_operations(app)

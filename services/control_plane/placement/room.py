"""How many more apps that ask the same there is room for. Pure; the rules are those of `choice`."""

from __future__ import annotations

from collections.abc import Iterable

from services.control_plane.placement.choice import DEFAULT_MAX_INSTANCES, Candidate, Wish, fits


def room_for(wish: Wish, candidates: Iterable[Candidate], most: int) -> int:
    """Return how many apps with a wish the nodes can take, none of which is there yet; `most` if more."""
    room = 0
    for node in candidates:
        if fits(wish, node):
            room += _room_on(wish, node)
            if room >= most:
                return most
    return room


def _room_on(wish: Wish, node: Candidate) -> int:
    if wish.exclusive:
        return 1
    room = (node.max_instances or DEFAULT_MAX_INSTANCES) - node.apps
    if wish.memory_bytes and node.memory_bytes:
        room = min(room, (node.memory_bytes - node.reserved_bytes) // wish.memory_bytes)
    return max(1, room)

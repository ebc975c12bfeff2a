"""Picks the node with the fewest apps among those that can take one; says of each other one why it can't.

The rules are `obstacles`, for placing and for explaining alike. Pure; ties go by name, so that the same
state gives the same answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.fleet.v1.fleet_pb2 import Node
from services.control_plane.rules.sentences import counted

DEFAULT_MAX_INSTANCES = 10_000

KEPT = 10_000
"""Nodes that are remembered."""

MIB = 1024 * 1024


class Candidate(NamedTuple):
    """A node as placement sees it. A tuple: a decision makes one for each node of an environment."""

    name: str
    heard: bool
    apps: int
    max_instances: int = 0
    """0 for DEFAULT_MAX_INSTANCES."""
    cordoned: bool = False
    labels: Mapping[str, str] = {}
    memory_bytes: int = 0
    """0 if it isn't known; then it is no bound."""
    reserved_bytes: int = 0
    """Sum of the memory limits of the apps on it."""
    taken: bool = False
    """An app is on it that is to be alone."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What an app asks of its node."""

    environment: str
    environment_cordoned: bool = False
    selector: Mapping[str, str] = field(default_factory=dict)
    memory_bytes: int = 0
    exclusive: bool = False
    siblings: tuple[str, ...] = ()
    """The nodes that other copies of the app are on, each as often as there are copies on it."""


class Obstacle(NamedTuple):
    """One thing that keeps an app off a node: a word, what is the case, and what would have to change."""

    reason: str
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The node chosen, or none and why, as one sentence."""

    node: str
    reason: str


class Candidates:
    """Makes candidates, and gives the same ones again for nodes that look as they did, which most do."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Node, Candidate]] = {}

    def of(self, node: Node, heard: bool, apps: int, reserved_bytes: int, taken: bool) -> Candidate:
        """Return a node as placement sees it."""
        name = node.name
        known, candidate = self._known.get(name, _NOTHING)
        if (
            known is node
            and candidate.apps == apps
            and candidate.heard is heard
            and candidate.reserved_bytes == reserved_bytes
            and candidate.taken is taken
        ):
            return candidate
        if len(self._known) >= KEPT:
            self._known.clear()  # nodes come and go
        candidate = candidate_of(node, heard=heard, apps=apps, reserved_bytes=reserved_bytes, taken=taken)
        self._known[name] = node, candidate
        return candidate


_NOTHING: tuple[Node | None, Candidate] = (None, Candidate("", False, 0))


def candidate_of(node: Node, *, heard: bool, apps: int, reserved_bytes: int, taken: bool) -> Candidate:
    """Return a node as placement sees it."""
    return Candidate(
        node.name,
        heard,
        apps,
        node.max_instances,
        node.cordoned,
        dict(node.labels),
        node.memory_bytes,
        reserved_bytes,
        taken,
    )


def wish_of(spec: App, *, environment_cordoned: bool, siblings: Iterable[str] = ()) -> Wish:
    """Return what an app's spec asks of a node; `siblings` are the nodes that its other copies are on."""
    return Wish(
        spec.environment,
        environment_cordoned,
        dict(spec.node_selector),
        spec.limits.memory_bytes,
        spec.exclusive,
        tuple(siblings),
    )


def obstacles(wish: Wish, node: Candidate) -> list[Obstacle]:
    """Return everything that keeps an app off a node."""
    return [_TEXTS[reason](wish, node) for reason in _reasons(wish, node)]


def fits(wish: Wish, node: Candidate) -> bool:
    """Tell whether a node can take an app."""
    return next(_reasons(wish, node), None) is None


def _reasons(wish: Wish, node: Candidate) -> Iterator[str]:
    """Yield the reasons that keep an app off a node. These are the rules; what is said of each is below."""
    if not node.heard:
        yield "NOT_HEARD"
    if node.cordoned:
        yield "NODE_CORDONED"
    if wish.environment_cordoned:
        yield "ENVIRONMENT_CORDONED"
    if node.apps >= (node.max_instances or DEFAULT_MAX_INSTANCES):
        yield "INSTANCES_FULL"
    if wish.memory_bytes and 0 < node.memory_bytes < node.reserved_bytes + wish.memory_bytes:
        yield "MEMORY_FULL"
    if wish.selector and _differing(wish, node):
        yield "LABELS_DIFFER"
    if node.taken:
        yield "TAKEN_EXCLUSIVELY"
    if wish.exclusive and node.apps:
        yield "NOT_EMPTY"
    if node.name in wish.siblings:
        yield "HAS_REPLICA"


def _differing(wish: Wish, node: Candidate) -> list[str]:
    return [f"{key}={value}" for key, value in wish.selector.items() if node.labels.get(key) != value]


_TEXTS: dict[str, Callable[[Wish, Candidate], Obstacle]] = {
    "NOT_HEARD": lambda _wish, _node: Obstacle(
        "NOT_HEARD", "It cannot be heard.", "Start its process again, or delete the node."
    ),
    "NODE_CORDONED": lambda _wish, _node: Obstacle("NODE_CORDONED", "It is cordoned.", "Uncordon the node."),
    "ENVIRONMENT_CORDONED": lambda wish, _node: Obstacle(
        "ENVIRONMENT_CORDONED",
        f"{wish.environment} is cordoned.",
        f"Set `cordoned` of {wish.environment} to false.",
    ),
    "INSTANCES_FULL": lambda _wish, node: Obstacle(
        "INSTANCES_FULL",
        f"It has {counted(node.apps, 'app')}, and accepts {node.max_instances or DEFAULT_MAX_INSTANCES}.",
        "Move an app off it, or start the node with a higher --max-instances.",
    ),
    "MEMORY_FULL": lambda wish, node: Obstacle(
        "MEMORY_FULL",
        f"{_mib(node.reserved_bytes)} of its {_mib(node.memory_bytes)} are reserved, and the app asks for "
        f"{_mib(wish.memory_bytes)}.",
        "Move an app off it, lower limits.memory_bytes, or give the node more memory.",
    ),
    "LABELS_DIFFER": lambda wish, node: Obstacle(
        "LABELS_DIFFER",
        f"The app's node_selector asks for {', '.join(_differing(wish, node))}, which it has not.",
        f"Start the node with --label {' --label '.join(_differing(wish, node))}, or change the app's "
        "node_selector.",
    ),
    "TAKEN_EXCLUSIVELY": lambda _wish, _node: Obstacle(
        "TAKEN_EXCLUSIVELY",
        "An app is on it that is to be alone.",
        "Move that app, or set its `exclusive` to false.",
    ),
    "NOT_EMPTY": lambda _wish, node: Obstacle(
        "NOT_EMPTY",
        f"The app is to be alone, and the node has {counted(node.apps, 'app')}.",
        "Move them off it, or add a node.",
    ),
    "HAS_REPLICA": lambda _wish, _node: Obstacle(
        "HAS_REPLICA",
        "Another replica of the app is on it.",
        "Add a node, or lower the app's replicas.",
    ),
}


def ranked(wish: Wish, candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return the nodes that can take an app, the best first."""
    return sorted((node for node in candidates if fits(wish, node)), key=_order)


def choose(wish: Wish, candidates: Iterable[Candidate]) -> Choice:
    """Return the node for one more app: the first of `ranked`, without ranking them all."""
    known = list(candidates)
    best: Candidate | None = None
    for node in known:
        # Most have more apps than the best so far: only the others are looked at closely.
        if (best is None or _order(node) < _order(best)) and fits(wish, node):
            best = node
    if best is not None:
        reason = f"fewest apps ({best.apps}) of those that can take it, of {len(known)} nodes in all"
        return Choice(best.name, reason)
    if not known:
        return Choice("", f"{wish.environment} has no node that it could go to; start one there.")
    return Choice("", _why_none(wish, known))


_WORDS = {
    "NOT_HEARD": "cannot be heard",
    "NODE_CORDONED": "cordoned",
    "ENVIRONMENT_CORDONED": "in a cordoned environment",
    "INSTANCES_FULL": "full",
    "MEMORY_FULL": "without enough memory",
    "LABELS_DIFFER": "without the labels of its node_selector",
    "TAKEN_EXCLUSIVELY": "taken by an app that is to be alone",
    "NOT_EMPTY": "not empty, as an exclusive app needs it",
    "HAS_REPLICA": "with a replica of it already",
}


def _why_none(wish: Wish, known: list[Candidate]) -> str:
    count = Counter(next(_reasons(wish, node)) for node in known)
    told = ", ".join(f"{number} {_WORDS[reason]}" for reason, number in sorted(count.items()))
    return f"None of the {len(known)} nodes of {wish.environment} can take it: {told}."


def _order(node: Candidate) -> tuple[int, str]:
    return node.apps, node.name


def _mib(size: int) -> str:
    return f"{size // MIB:,} MiB"

"""Picks the node with the fewest apps among those that can take one; says of each other one why it can't.

Copies of one app are spread first: over zones, then over nodes. The rules are `obstacles`, for placing and
for explaining alike. Pure; ties go by name, so that the same state gives the same answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import NamedTuple

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.fleet.v1.fleet_pb2 import Node
from services.control_plane.rules.sentences import counted

DEFAULT_MAX_INSTANCES = 10_000

KEPT = 10_000
"""Nodes that are remembered."""

USE_STEPS = 16
"""Parts of a node's memory; that it uses one more, or one less, is stored."""

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
    zone: str = ""
    """What fails together; nodes without one are in one zone of their own."""
    avoided: str = ""
    """A label of an app on it, with which the app is to share no node."""
    averse: str = ""
    """A label of the app, with which an app on it is to share no node."""
    used_bytes: int = 0
    """Memory that it uses, as was measured; 0 if that isn't known."""
    lacks_code: bool = False
    """Another node has the app's code, and this one, as it tells, has not."""


class Neighbours(NamedTuple):
    """What nodes are to one app, beside what they are to all: who is there, and what code."""

    taken: AbstractSet[str] = frozenset()
    """Nodes with an app that is to be alone."""
    avoided: Mapping[str, str] = {}
    """Nodes with an app that has a label which the app is to be apart from, with that label."""
    averse: Mapping[str, str] = {}
    """Nodes with an app that is to be apart from a label of the app, with that label."""
    without_code: AbstractSet[str] = frozenset()
    """Nodes that cannot run the app, as they tell, while others can."""


Load = tuple[int, int]
"""What is on a node: apps, and the sum of their memory limits in bytes."""

NO_LOAD: Load = (0, 0)


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
    module: str = ""
    """The top-level module of its entrypoint."""


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
        self._known: dict[str, tuple[Node, bool, Load, Candidate]] = {}

    def of(
        self,
        nodes: Iterable[tuple[str, Node, bool]],
        loads: Mapping[str, Load],
        neighbours: Neighbours,
        more: Mapping[str, int],
    ) -> list[Candidate]:
        """Return nodes, given by name and with whether they are heard, as placement sees them for one app.

        A load is another object once it is another; `more` apps are about to be placed there.
        """
        known, found = self._known, []
        if len(known) > KEPT:
            known.clear()  # nodes come and go
        special = {
            *more,
            *neighbours.taken,
            *neighbours.avoided,
            *neighbours.averse,
            *neighbours.without_code,
        }
        for name, node, heard in nodes:
            load = loads.get(name, NO_LOAD)
            entry = known.get(name)
            if entry is None or entry[0] is not node or entry[2] is not load or entry[1] is not heard:
                made = candidate_of(node, heard=heard, apps=load[0], reserved_bytes=load[1])
                entry = known[name] = node, heard, load, made
            if name in special:
                found.append(beside(entry[3], neighbours, more.get(name, 0)))
            else:
                found.append(entry[3])
        return found


def candidate_of(node: Node, *, heard: bool, apps: int, reserved_bytes: int) -> Candidate:
    """Return a node as placement sees it, whoever its other apps are."""
    return Candidate(
        node.name,
        heard,
        apps,
        node.max_instances,
        node.cordoned,
        dict(node.labels),
        node.memory_bytes,
        reserved_bytes,
        zone=node.zone,
        used_bytes=node.used_memory_bytes,
    )


def beside(node: Candidate, neighbours: Neighbours, more: int = 0) -> Candidate:
    """Return a node as one app sees it, with its neighbours; `more` apps are about to be placed there."""
    name = node.name
    return node._replace(
        apps=node.apps + more,
        taken=name in neighbours.taken,
        avoided=neighbours.avoided.get(name, ""),
        averse=neighbours.averse.get(name, ""),
        lacks_code=name in neighbours.without_code,
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
        module_of(spec),
    )


def module_of(spec: App) -> str:
    """Return the top-level module that an app's code is in."""
    return spec.entrypoint.partition(":")[0].partition(".")[0]


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
    if _is_used_up(node.memory_bytes, node.used_bytes):
        yield "MEMORY_USED"
    if wish.selector and _differing(wish, node):
        yield "LABELS_DIFFER"
    yield from _reasons_beside(wish, node)


def _reasons_beside(wish: Wish, node: Candidate) -> Iterator[str]:
    """Yield those that lie in what else is there, or is not."""
    if node.taken:
        yield "TAKEN_EXCLUSIVELY"
    if wish.exclusive and node.apps:
        yield "NOT_EMPTY"
    if node.avoided:
        yield "APP_AVOIDED"
    if node.averse:
        yield "AVOIDED_BY_APP"
    if node.name in wish.siblings:
        yield "COPY_THERE"
    if node.lacks_code:
        yield "CODE_MISSING"


def _is_used_up(memory_bytes: int, used_bytes: int) -> bool:
    return 0 < memory_bytes <= used_bytes


def is_other_use(node: Node, used_bytes: int) -> bool:
    """Tell whether a node uses so much more memory than is stored, or less, that it is worth storing."""
    known, whole = node.used_memory_bytes, node.memory_bytes
    if not whole or not used_bytes or known == used_bytes:
        return False
    crossed = _is_used_up(whole, known) != _is_used_up(whole, used_bytes)
    return crossed or abs(known - used_bytes) >= whole // USE_STEPS


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
    "MEMORY_USED": lambda _wish, node: Obstacle(
        "MEMORY_USED",
        f"It uses {_mib(node.used_bytes)} of its {_mib(node.memory_bytes)} of memory.",
        "Move an app off it, or give the node more memory.",
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
    "APP_AVOIDED": lambda _wish, node: Obstacle(
        "APP_AVOIDED",
        f"An app with the label {node.avoided} is on it, which the app's anti_affinity names.",
        "Move that app, or change the app's anti_affinity.",
    ),
    "AVOIDED_BY_APP": lambda _wish, node: Obstacle(
        "AVOIDED_BY_APP",
        f"An app is on it whose anti_affinity names {node.averse}, a label of the app.",
        "Move that app, or change its anti_affinity or the app's labels.",
    ),
    "COPY_THERE": lambda _wish, _node: Obstacle(
        "COPY_THERE",
        "Another replica of the app is on it.",
        "Add a node, or ask for fewer replicas.",
    ),
    "CODE_MISSING": lambda wish, _node: Obstacle(
        "CODE_MISSING",
        f"It tells of no module {wish.module!r} in its app directories or installed packages, as other nodes "
        f"of {wish.environment} do.",
        "Put the code into one of its app directories, or start it with an --app-dir that has it; it tells "
        "within 15 s.",
    ),
}


class Spread:
    """Where an app's other copies are: how many in a zone, and how many on a node."""

    def __init__(self, wish: Wish, candidates: Iterable[Candidate]) -> None:
        self._on = Counter(wish.siblings)
        self._in: Counter[str] = Counter()
        if self._on:
            for node in candidates:
                self._in[node.zone] += self._on[node.name]

    def on(self, node: Candidate) -> int:
        """Return how many copies are on a node."""
        return self._on[node.name]

    def in_zone(self, node: Candidate) -> int:
        """Return how many copies are in a node's zone."""
        return self._in[node.zone]

    def order(self, node: Candidate) -> tuple[int, int, int, str]:
        """Return what nodes are ordered by, the best first."""
        return self._in[node.zone], self._on[node.name], node.apps, node.name


def ranked(wish: Wish, candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return the nodes that can take an app, the best first."""
    known = list(candidates)
    return sorted((node for node in known if fits(wish, node)), key=Spread(wish, known).order)


def choose(wish: Wish, candidates: Iterable[Candidate]) -> Choice:
    """Return the node for one more copy of an app: the first of `ranked`, without ranking them all."""
    known = list(candidates)
    best = _best_by_spread(wish, known) if wish.siblings else _best_by_apps(wish, known)
    if best is not None:
        return Choice(best.name, _why(wish, best, known))
    if not known:
        return Choice("", f"{wish.environment} has no node that it could go to; start one there.")
    return Choice("", _why_none(wish, known))


def _best_by_spread(wish: Wish, known: list[Candidate]) -> Candidate | None:
    order = Spread(wish, known).order
    return min((node for node in known if fits(wish, node)), key=order, default=None)


def _best_by_apps(wish: Wish, known: list[Candidate]) -> Candidate | None:
    best, least = None, float("inf")
    for node in known:
        apps = node.apps
        # Most have more apps than the best so far: only the others are looked at closely.
        if apps > least or (best is not None and apps == least and node.name > best.name):
            continue
        if fits(wish, node):
            best, least = node, apps
    return best


def _why(wish: Wish, best: Candidate, known: list[Candidate]) -> str:
    fewest = f"fewest apps ({best.apps}) of those that can take it, of {counted(len(known), 'node')} in all"
    if not wish.siblings:
        return fewest
    spread = Spread(wish, known)
    where = f"in zone {best.zone}" if best.zone else "without a zone"
    return (
        f"fewest of its other copies {where} ({spread.in_zone(best)}) and on the node ({spread.on(best)}), "
        f"then {fewest}"
    )


_WORDS = {
    "NOT_HEARD": "cannot be heard",
    "NODE_CORDONED": "cordoned",
    "ENVIRONMENT_CORDONED": "in a cordoned environment",
    "INSTANCES_FULL": "full",
    "MEMORY_FULL": "without enough memory",
    "MEMORY_USED": "using all of its memory",
    "LABELS_DIFFER": "without the labels of its node_selector",
    "TAKEN_EXCLUSIVELY": "taken by an app that is to be alone",
    "NOT_EMPTY": "not empty, as an exclusive app needs it",
    "APP_AVOIDED": "with an app that its anti_affinity names",
    "AVOIDED_BY_APP": "with an app whose anti_affinity names it",
    "COPY_THERE": "with another replica of it",
    "CODE_MISSING": "without its code",
}


def _why_none(wish: Wish, known: list[Candidate]) -> str:
    count = Counter(next(_reasons(wish, node)) for node in known)
    told = ", ".join(f"{number} {_WORDS[reason]}" for reason, number in sorted(count.items()))
    if len(known) == 1:
        return f"The only node of {wish.environment} cannot take it: {told.removeprefix('1 ')}."
    return f"None of the {len(known)} nodes of {wish.environment} can take it: {told}."


def _mib(size: int) -> str:
    return f"{size // MIB:,} MiB"

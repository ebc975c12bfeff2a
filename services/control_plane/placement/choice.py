"""Picks the node with the fewest apps among those that can take one; says of each other one why it can't.

The rules are `obstacles`, for placing and for explaining alike. Pure; ties go by name, so that the same
state gives the same answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.fleet.v1.fleet_pb2 import Node

DEFAULT_MAX_INSTANCES = 10_000

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


def candidate_of(node: Node, *, heard: bool, apps: int, reserved_bytes: int, taken: bool) -> Candidate:
    """Return a node as placement sees it."""
    return Candidate(
        node.name,
        heard,
        apps,
        node.max_instances,
        node.cordoned,
        node.labels,
        node.memory_bytes,
        reserved_bytes,
        taken,
    )


def wish_of(spec: App, *, environment_cordoned: bool) -> Wish:
    """Return what an app's spec asks of a node."""
    return Wish(
        spec.environment,
        environment_cordoned,
        dict(spec.node_selector),
        spec.limits.memory_bytes,
        spec.exclusive,
    )


def obstacles(wish: Wish, node: Candidate) -> Iterator[Obstacle]:
    """Yield everything that keeps an app off a node."""
    if not node.heard:
        yield Obstacle("NOT_HEARD", "It cannot be heard.", "Start its process again, or delete the node.")
    if node.cordoned:
        yield Obstacle("NODE_CORDONED", "It is cordoned.", "Uncordon the node.")
    if wish.environment_cordoned:
        yield Obstacle(
            "ENVIRONMENT_CORDONED",
            f"{wish.environment} is cordoned.",
            f"Set `cordoned` of {wish.environment} to false.",
        )
    most = node.max_instances or DEFAULT_MAX_INSTANCES
    if node.apps >= most:
        yield Obstacle(
            "INSTANCES_FULL",
            f"It has {node.apps} apps, and accepts {most}.",
            "Move an app off it, or start the node with a higher --max-instances.",
        )
    if (
        wish.memory_bytes
        and node.memory_bytes
        and node.reserved_bytes + wish.memory_bytes > node.memory_bytes
    ):
        yield Obstacle(
            "MEMORY_FULL",
            f"{_mib(node.reserved_bytes)} of its {_mib(node.memory_bytes)} are reserved, and the app asks "
            f"for {_mib(wish.memory_bytes)}.",
            "Move an app off it, lower limits.memory_bytes, or give the node more memory.",
        )
    for key, value in wish.selector.items():
        if node.labels.get(key) != value:
            has = f"{key}={node.labels[key]}" if key in node.labels else f"no label {key}"
            yield Obstacle(
                "LABELS_DIFFER",
                f"It has {has}, and the app's node_selector asks for {key}={value}.",
                f"Start the node with --label {key}={value}, or change the app's node_selector.",
            )
    if node.taken:
        yield Obstacle(
            "TAKEN_EXCLUSIVELY",
            "An app is on it that is to be alone.",
            "Move that app, or set its `exclusive` to false.",
        )
    if wish.exclusive and node.apps:
        yield Obstacle(
            "NOT_EMPTY",
            f"The app is to be alone, and {node.apps} apps are on it.",
            "Move them off it, or add a node.",
        )


def ranked(wish: Wish, candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return the nodes that can take an app, the best first."""
    fit = [node for node in candidates if next(obstacles(wish, node), None) is None]
    return sorted(fit, key=_order)


def choose(wish: Wish, candidates: Iterable[Candidate]) -> Choice:
    """Return the node for one more app."""
    known = list(candidates)
    fit = [node for node in known if next(obstacles(wish, node), None) is None]
    if fit:
        best = min(fit, key=_order)
        return Choice(best.name, f"fewest apps ({best.apps}) of {len(fit)} nodes that can take it")
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
}


def _why_none(wish: Wish, known: list[Candidate]) -> str:
    count = Counter(next(obstacles(wish, node)).reason for node in known)
    told = ", ".join(f"{number} {_WORDS[reason]}" for reason, number in sorted(count.items()))
    return f"None of the {len(known)} nodes of {wish.environment} can take it: {told}."


def _order(node: Candidate) -> tuple[int, str]:
    return node.apps, node.name


def _mib(size: int) -> str:
    return f"{size // MIB:,} MiB"

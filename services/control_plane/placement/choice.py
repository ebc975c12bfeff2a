"""Picks the node with the fewest apps; says why if none can take the app.

Among the nodes of the app's environment that are heard and have room; ties go by name, so that the same
state gives the same answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

DEFAULT_MAX_INSTANCES = 10_000


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node as placement sees it."""

    name: str
    heard: bool
    apps: int
    max_instances: int


@dataclass(frozen=True, slots=True)
class Choice:
    """The node chosen, or none and why, as one sentence."""

    node: str
    reason: str


def choose(environment: str, candidates: Iterable[Candidate]) -> Choice:
    """Return the node for one more app in an environment."""
    known = list(candidates)
    heard = [node for node in known if node.heard]
    roomy = [node for node in heard if node.apps < (node.max_instances or DEFAULT_MAX_INSTANCES)]
    if roomy:
        best = min(roomy, key=lambda node: (node.apps, node.name))
        return Choice(best.name, f"fewest apps ({best.apps}) of {len(roomy)} nodes with room")
    if heard:
        return Choice("", f"All {len(heard)} nodes of {environment} are full.")
    if known:
        return Choice("", f"None of the {len(known)} nodes of {environment} can be heard.")
    return Choice("", f"{environment} has no node; start one that registers in it.")

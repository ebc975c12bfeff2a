"""Resources that are made when a client first asks for their names, and forgotten when none does any more.

Whoever follows a name is told when its resource may be another one; what nobody follows costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from services.gateway.xds.cache import Follower, Resource, resource_of

Make = Callable[[str, str], Any | None]
"""Returns the message of a kind and a name as it is now; None where there is none."""
Topics = Callable[[str, str], Iterable[str]]
"""Returns what a resource of a kind and a name depends on, by which its changes are told."""


@dataclass(slots=True)
class _Kept:
    """One resource that is followed."""

    topics: tuple[str, ...]
    followers: set[Follower] = field(default_factory=set)
    made: bool = False
    resource: Resource | None = None


class OnDemandCache:
    """The resources that are followed. Belongs to one event loop; nothing here waits."""

    def __init__(self, make: Make, topics: Topics = lambda _, name: (name,)) -> None:
        self._make = make
        self._topics = topics
        self._kept: dict[tuple[str, str], _Kept] = {}
        self._names: dict[tuple[str, str], dict[str, None]] = {}
        """Names that are followed, by kind and topic."""
        self.complete = False
        """Whether what could be made is all there is: before that nobody is told anything."""

    def __len__(self) -> int:
        return len(self._kept)

    def followed(self, kind: str) -> Iterator[str]:
        """Yield the names of a kind that are followed."""
        return (name for of, name in self._kept if of == kind)

    def open(self) -> None:
        """Say that what can be made is all there is, and let everyone who waits for that look."""
        self.complete = True
        for key in list(self._kept):
            self._tell(key)

    def follow(self, kind: str, name: str, follower: Follower) -> None:
        """Tell of each change of a resource from now on, its coming and going included."""
        kept = self._kept.get((kind, name))
        if kept is None:
            kept = self._kept[kind, name] = _Kept(tuple(self._topics(kind, name)))
            for topic in kept.topics:
                self._names.setdefault((kind, topic), {})[name] = None
        kept.followers.add(follower)

    def leave(self, kind: str, name: str, follower: Follower) -> None:
        """Tell no more."""
        kept = self._kept.get((kind, name))
        if kept is None:
            return
        kept.followers.discard(follower)
        if kept.followers:
            return
        del self._kept[kind, name]
        for topic in kept.topics:
            names = self._names[kind, topic]
            del names[name]
            if not names:
                del self._names[kind, topic]

    def get(self, kind: str, name: str) -> Resource | None:
        """Return a resource that is followed, as it is now; None where there is none."""
        kept = self._kept[kind, name]
        if not kept.made:
            content = self._make(kind, name)
            kept.resource = None if content is None else resource_of(content)
            kept.made = True
        return kept.resource

    def changed(self, kind: str, topic: str) -> None:
        """Make what depends on a topic anew when it is next asked for."""
        if names := self._names.get((kind, topic)):
            for name in list(names):
                self._tell((kind, name))

    def _tell(self, key: tuple[str, str]) -> None:
        kept = self._kept[key]
        kept.made, kept.resource = False, None
        if self.complete:
            for follower in list(kept.followers):
                follower(*key)

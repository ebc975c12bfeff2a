"""The highest version of each app that this life of the node knows: no older one is accepted. Pure."""

from __future__ import annotations

from collections.abc import Callable, Set

from runtime_node import rules

Version = tuple[int, int]
"""`(epoch, generation)`."""

MAX_FENCES = 100_000
"""Apps without an instance here whose highest epoch is still known."""

_VERSIONS = {(e, g): (e, g) for e in range(1, 17) for g in range(1, 17)}


class Fences:
    """By the app's uid, the one raised least recently first."""

    def __init__(self, here: Callable[[], Set[str]]) -> None:
        """`here` returns the uids of the apps that have an instance: theirs are never forgotten."""
        self._here = here
        self._known: dict[str, Version] = {}
        self._look_at = 2 * MAX_FENCES

    def check(self, name: str, uid: str, version: Version) -> None:
        """Raise STALE_EPOCH for a version of an instance's app that is older than what is known."""
        known = self._known.get(uid, (0, 0))
        if version < known:
            raise rules.stale(name, version, known)

    def raise_to(self, uid: str, version: Version) -> None:
        """Refuse what is older than a version from now on."""
        version = max(version, self._known.pop(uid, (0, 0)))
        # Most apps stand at the same few versions: one tuple serves them all.
        self._known[uid] = _VERSIONS.get(version, version)
        if len(self._known) > self._look_at:
            here = self._here()
            old = [known for known in self._known if known not in here]
            for known in old[:-MAX_FENCES]:
                del self._known[known]
            self._look_at = len(self._known) + MAX_FENCES

"""Which nodes can import a module, as far as they have told: an index of the mirror, which guards it."""

from __future__ import annotations

from collections.abc import Iterable

NOBODY: frozenset[str] = frozenset()


class NodeCode:
    """The modules that nodes have told of, by node and by name."""

    def __init__(self) -> None:
        self._of: dict[str, frozenset[str]] = {}
        """Of nodes that have told."""
        self._having: dict[str, set[str]] = {}
        self._lists: dict[frozenset[str], frozenset[str]] = {}
        """What nodes tell, each list once: most tell the same."""

    def note(self, node: str, modules: Iterable[str]) -> None:
        """Note what a node tells now; nothing of one that is gone, or has not told."""
        before, after = self._of.get(node, NOBODY), frozenset(modules)
        if before == after:
            return
        for module in before - after:
            having = self._having[module]
            having.discard(node)
            if not having:
                del self._having[module]
        for module in after - before:
            self._having.setdefault(module, set()).add(node)
        if after:
            self._of[node] = self._lists.setdefault(after, after)
        else:
            self._of.pop(node, None)
        if len(self._lists) > 2 * len(self._of) + 1:
            self._lists = {it: it for it in self._of.values()}

    def lacking(self, module: str, environment: str) -> frozenset[str]:
        """Return the nodes of an environment that have told, but not of a module that another there has.

        None where nobody there has told of it: of what has just come a node tells late.
        """
        having, prefix = self._having.get(module), f"{environment}/nodes/"
        if having is None or not any(node.startswith(prefix) for node in having):
            return NOBODY
        return frozenset(it for it in self._of if it not in having and it.startswith(prefix))

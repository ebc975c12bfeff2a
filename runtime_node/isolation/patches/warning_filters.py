"""Filters of warnings that apps add: all see them, and they go with the last instance that wants them."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

from runtime_node.isolation.current import acting_instance
from runtime_node.isolation.undo_log import undo_log_of

_filter_owners: dict[Any, set[str]] = {}
"""Which instances want a filter of warnings that is set; those of the node's own are not here."""


def install() -> None:
    """Note the filters that apps add."""
    for name in ("filterwarnings", "simplefilter"):
        setattr(warnings, name, _noting_filter(getattr(warnings, name)))


def _noting_filter(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def add_filter(*args: Any, **kwargs: Any) -> None:
        instance = acting_instance()
        before = list(warnings.filters) if instance else []
        original(*args, **kwargs)
        if not instance:
            return
        added = [item for item in warnings.filters if item not in before]
        if not added and warnings.filters[0] in _filter_owners:
            # The same as another one's, moved to the front: an app's next instance sets what the last did.
            added = [warnings.filters[0]]
        for item in added:
            _filter_owners.setdefault(item, set()).add(instance)
            undo_log_of(instance).record(("warning", item), functools.partial(_drop_filter, item, instance))

    return add_filter


def _drop_filter(item: Any, instance: str) -> None:
    owners = _filter_owners.get(item, set())
    owners.discard(instance)
    if owners:
        return
    _filter_owners.pop(item, None)
    filters: Any = warnings.filters
    if item in filters:
        filters.remove(item)
        warnings._filters_mutated()  # type: ignore[attr-defined]

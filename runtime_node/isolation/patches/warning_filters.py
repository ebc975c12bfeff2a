"""Filters of warnings per instance: one that an app adds decides about warnings in the app's own code alone.

The filters are one list of the process, which C code walks. It asks a filter's pattern whether it matches a
warning's text; the pattern of an app's filter asks first whose code is running.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from runtime_node.isolation import environ
from runtime_node.isolation.current import CURRENT_INSTANCE, acting_instance
from runtime_node.isolation.undo_log import undo_log_of


class _Own(NamedTuple):
    """A pattern that matches while code of one instance, or of one code location, runs."""

    owner: str
    pattern: Any

    def match(self, text: str) -> bool:
        """Tell whether the filter is about this warning."""
        mine = environ.belongs_to(CURRENT_INSTANCE.get(), self.owner)
        return mine and (self.pattern is None or self.pattern.match(text) is not None)


def install() -> None:
    """Keep the filters that apps add apart, for this process."""
    for name in ("filterwarnings", "simplefilter"):
        setattr(warnings, name, _keeping_apart(getattr(warnings, name)))


def _keeping_apart(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def add_filter(*args: Any, **kwargs: Any) -> None:
        instance = acting_instance()
        if not instance:
            original(*args, **kwargs)
            return
        before: list[Any] = list(warnings.filters)
        original(*args, **kwargs)
        filters: Any = warnings.filters
        place = -1 if kwargs.get("append", False) else 0
        action, pattern, category, module, line = filters[place]
        own = (action, _Own(instance, pattern), category, module, line)
        if len(filters) > len(before) and own not in before:
            filters[place] = own
        else:
            # One that all have already was only moved; one of the app's own is taken for the newer one.
            kept = [each for each in before if each != own]
            filters[:] = [*kept, own] if place else [own, *kept]
        _changed()
        undo_log_of(instance).record(("warning", own), functools.partial(_drop, own))

    return add_filter


def _drop(own: Any) -> None:
    filters: Any = warnings.filters
    if own in filters:
        filters.remove(own)
        _changed()


def _changed() -> None:
    for tell in _TELL:
        tell()


# Python 3.14 has it under the second name.
_TELL = [
    getattr(warnings, name)
    for name in ("_filters_mutated", "_filters_mutated_lock_held")
    if hasattr(warnings, name)
]

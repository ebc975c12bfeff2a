"""Filters of warnings per instance: one that an app adds decides about warnings in the app's own code alone.

The filters are one list of the process, which C code walks. It asks a filter's pattern whether it matches a
warning's text; the pattern of an app's filter asks first whose code is running.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

from runtime_node.isolation import environ
from runtime_node.isolation.current import CURRENT_INSTANCE, acting_instance
from runtime_node.isolation.undo_log import undo_log_of


class _Own:
    """A pattern that matches while code of one instance, or of one code location, runs."""

    def __init__(self, owner: str, pattern: Any) -> None:
        self._owner = owner
        self._pattern = pattern

    def match(self, text: str) -> bool:
        """Tell whether the filter is about this warning."""
        mine = environ.belongs_to(CURRENT_INSTANCE.get(), self._owner)
        return mine and (self._pattern is None or self._pattern.match(text) is not None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Own) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self._owner, self._pattern))


def install() -> None:
    """Keep the filters that apps add apart, for this process."""
    for name in ("filterwarnings", "simplefilter"):
        setattr(warnings, name, _keeping_apart(getattr(warnings, name)))


def _keeping_apart(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def add_filter(*args: Any, **kwargs: Any) -> None:
        instance = acting_instance()
        before: list[Any] = list(warnings.filters) if instance else []
        original(*args, **kwargs)
        if not instance:
            return
        filters: Any = warnings.filters
        last = kwargs.get("append", False)
        added = filters[-1 if last else 0]
        action, pattern, category, module, line = added
        own = (action, _Own(instance, pattern), category, module, line)
        # One that all have already was only moved; one of the app's own is taken for the newer one.
        kept = [each for each in before if each != own]
        filters[:] = [*kept, own] if last else [own, *kept]
        _changed()
        undo_log_of(instance).record(("warning", own), functools.partial(_drop, own))

    return add_filter


def _drop(own: Any) -> None:
    filters: Any = warnings.filters
    if own in filters:
        filters.remove(own)
        _changed()


def _changed() -> None:
    # Python 3.14 has it under the second name.
    for name in ("_filters_mutated", "_filters_mutated_lock_held"):
        if hasattr(warnings, name):
            getattr(warnings, name)()

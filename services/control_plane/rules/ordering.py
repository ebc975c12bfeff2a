"""`order_by` of ListApps: AIP-132 text to sort keys.

A position has two forms: the plain `key`, which a page token can carry, and the `sort_key` made of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from services.control_plane.rules.paging import Position
from services.rpc.errors import SupervisorError, Violation
from services.spec.scalars import SECOND

SortKey = tuple[str | int | tuple[int, ...], ...]

_MAX_LENGTH = 256


_FIELDS: dict[str, Callable[[App], str | int]] = {
    "name": lambda app: app.name,
    "display_name": lambda app: app.display_name,
    "environment": lambda app: app.environment,
    # By number, which is the order of an app's life.
    "state": lambda app: app.state,
    "health": lambda app: app.health,
    "create_time": lambda app: app.create_time.seconds * SECOND + app.create_time.nanos,
    "update_time": lambda app: app.update_time.seconds * SECOND + app.update_time.nanos,
}
_TEXT_FIELDS = frozenset({"name", "display_name", "environment"})


@dataclass(frozen=True, slots=True)
class Order:
    """A total order of apps: the fields asked for, then `name`."""

    fields: tuple[tuple[str, bool], ...]
    """Pairs of a field and whether it descends; the last one is always `name`."""
    getters: tuple[Callable[[App], str | int], ...]
    """What reads each of the fields."""

    @property
    def is_default(self) -> bool:
        """Whether this is the order by `name`, ascending."""
        return self.fields == (("name", False),)

    def key(self, app: App) -> Position:
        """Return the app's position as plain values, for a page token; compare it by `sort_key`."""
        return tuple([get(app) for get in self.getters])

    def sort_key(self, key: Position) -> SortKey:
        """Return what the positions of this order are sorted by."""
        return tuple(
            [
                _descending(value) if descends else value
                for value, (_, descends) in zip(key, self.fields, strict=True)
            ]
        )

    def follows(self, key: Position, after: Position) -> bool:
        """Tell whether `key` comes after the position of a page token.

        Raises INVALID_PAGE_TOKEN if `after` is not a position of this order.
        """
        return self.sort_key(key) > _token_sort_key(self, after)


@lru_cache(maxsize=128)
def _token_sort_key(order: Order, after: Position) -> SortKey:
    kinds = [str if field in _TEXT_FIELDS else int for field, _ in order.fields]
    if [type(value) for value in after] != kinds:
        rule = "is not a next_page_token of this request"
        raise SupervisorError(
            "INVALID_PAGE_TOKEN", f"page_token {rule}.", violations=(Violation("page_token", rule),)
        )
    return order.sort_key(after)


@lru_cache(maxsize=128)
def compile_order(text: str) -> Order:
    """Return the order that `text` asks for; raises INVALID_ORDER_BY naming the place and the fields."""
    if len(text) > _MAX_LENGTH:
        raise _invalid(f"must be at most {_MAX_LENGTH} characters")
    fields: list[tuple[str, bool]] = []
    if text.strip():
        for item in text.split(","):
            words = item.split()
            if len(words) not in (1, 2) or (len(words) == 2 and words[1] != "desc"):
                raise _invalid(f"{item.strip()!r} must be a field, or a field followed by ' desc'")
            if words[0] not in _FIELDS:
                raise _invalid(f"{words[0]!r} is no field to order by; use {', '.join(_FIELDS)}")
            if any(field == words[0] for field, _ in fields):
                raise _invalid(f"{words[0]!r} stands more than once")
            fields.append((words[0], len(words) == 2))
    names = [field for field, _ in fields]
    # Names are unique, so what follows one never decides; without one, it breaks the ties.
    fields = fields[: names.index("name") + 1] if "name" in names else [*fields, ("name", False)]
    return Order(tuple(fields), tuple(_FIELDS[field] for field, _ in fields))


def _descending(value: str | int) -> int | tuple[int, ...]:
    if isinstance(value, int):
        return -value
    # The end mark is above every negated character, so a longer string comes before its own prefix.
    return (*(-ord(character) for character in value), 1)


def _invalid(rule: str) -> SupervisorError:
    return SupervisorError(
        "INVALID_ORDER_BY", f"order_by: {rule}.", violations=(Violation("order_by", rule),)
    )

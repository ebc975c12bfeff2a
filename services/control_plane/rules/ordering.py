"""`order_by` of ListApps: AIP-132 text to sort keys.

A key comes in two forms: plain `values`, which a page token can carry, and the comparable `key` made of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from appsupervisor.catalog.v1.app_catalog_pb2 import App

from services.rpc.errors import SupervisorError, Violation

SortValues = tuple[str | int, ...]
SortKey = tuple[str | int | tuple[int, ...], ...]

_MAX_LENGTH = 256


def _nanos(app: App, field: str) -> int:
    time = getattr(app, field)
    return int(time.seconds) * 1_000_000_000 + int(time.nanos)


_FIELDS: dict[str, Callable[[App], str | int]] = {
    "name": lambda app: app.name,
    "display_name": lambda app: app.display_name,
    "environment": lambda app: app.environment,
    # By number, which is the order of an app's life.
    "state": lambda app: app.state,
    "health": lambda app: app.health,
    "create_time": lambda app: _nanos(app, "create_time"),
    "update_time": lambda app: _nanos(app, "update_time"),
}


@dataclass(frozen=True, slots=True)
class Order:
    """A total order of apps: the fields asked for, then `name`."""

    fields: tuple[tuple[str, bool], ...]
    """Pairs of a field and whether it descends; the last one is always `name`."""

    @property
    def is_default(self) -> bool:
        """Whether this is the order by `name`, ascending."""
        return self.fields == (("name", False),)

    def values(self, app: App) -> SortValues:
        """Return the app's position as plain values, for a page token."""
        return tuple(_FIELDS[field](app) for field, _ in self.fields)

    def key_of(self, values: SortValues) -> SortKey:
        """Return the comparable key of a position; raises INVALID_PAGE_TOKEN if it is of another order."""
        if len(values) != len(self.fields):
            raise SupervisorError("INVALID_PAGE_TOKEN", "page_token belongs to another order.")
        return tuple(
            _descending(value) if descends else value
            for value, (_, descends) in zip(values, self.fields, strict=True)
        )

    def key(self, app: App) -> SortKey:
        """Return the comparable key of an app."""
        return self.key_of(self.values(app))


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
    return Order(tuple(fields))


def _descending(value: str | int) -> int | tuple[int, ...]:
    if isinstance(value, int):
        return -value
    # The end mark is above every negated character, so a longer string comes before its own prefix.
    return (*(-ord(character) for character in value), 1)


def _invalid(rule: str) -> SupervisorError:
    return SupervisorError(
        "INVALID_ORDER_BY", f"order_by: {rule}.", violations=(Violation("order_by", rule),)
    )
